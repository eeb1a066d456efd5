"""gated_residual: a gated sum, alone or with the adaln_norm that follows it."""
