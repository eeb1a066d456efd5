"""patch_attention: full attention among the tokens of one patch."""
