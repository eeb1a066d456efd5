"""adaln_norm: LayerNorm, then scale and shift per token."""
