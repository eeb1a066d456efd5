"""block_causal_attention: attention to one interval of keys per query."""
