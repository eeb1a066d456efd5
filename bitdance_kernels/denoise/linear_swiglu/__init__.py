"""linear_swiglu: a product and the gate of the feed-forward blocks."""
