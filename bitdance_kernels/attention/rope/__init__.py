"""rope: rotary position embedding with a gradient, for training."""
