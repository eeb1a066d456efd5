"""denoise_step: one step of the sampler, with guidance and noise."""
