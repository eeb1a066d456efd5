"""The step of the sampler and the projection of the next state."""
