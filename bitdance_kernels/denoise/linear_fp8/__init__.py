"""linear_fp8: the product of a linear layer whose weight is in float8."""
