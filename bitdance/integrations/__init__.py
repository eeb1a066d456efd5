"""The kernels inside models that other code has built."""
