"""Sampling: the loop over AR steps, denoising of one patch, captured graphs, decoding to pixels."""
