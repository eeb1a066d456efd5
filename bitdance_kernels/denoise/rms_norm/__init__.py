"""rms_norm: RMSNorm of rows."""
