"""Products of RMS norms, plain and with the gate of SwiGLU."""
