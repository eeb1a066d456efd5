"""finalize_bits: predictions to bits, the sampler's last step."""
