"""block_decode_attention: new tokens of a patch against the cache."""
