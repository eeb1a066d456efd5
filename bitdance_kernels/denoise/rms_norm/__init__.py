"""Package of rms_norm."""
