"""Denoising steps of the diffusion head: its elementwise passes, its attention and its sampler.

The head predicts the clean bits of a patch from a noisy state, z_t = (1 - t) eps + t x with t from
0 (noise) to 1 (data). A network call is a few blocks of modulated norm, attention among the tokens
of the patch and SwiGLU, each added to the stream through a gate; after each call the sampler takes
one affine step, x' = a x + b x0 + s eps, with coefficients from a table made once
(``denoise_schedule``). Statistics and sums are kept in float32 whatever the dtype of the data.
"""
