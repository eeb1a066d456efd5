"""All evaluations of a head for one patch, and the steps between them."""
