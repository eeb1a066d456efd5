"""group_norm_silu: GroupNorm, adaptive scale and shift, SiLU."""
