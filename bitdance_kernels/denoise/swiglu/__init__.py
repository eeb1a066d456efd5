"""swiglu: the gate of the feed-forward blocks."""
