"""linear_gated_residual: a product that ends a branch, added to the stream."""
