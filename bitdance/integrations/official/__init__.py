"""The kernels inside models that the authors' code has built: ``patch_official``."""
