"""linear: the product of a linear layer, for few rows."""
