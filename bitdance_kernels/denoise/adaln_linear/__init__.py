"""adaln_linear: a product of modulated norms, alone or with the SwiGLU gate."""
