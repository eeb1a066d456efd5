"""BitDance, an autoregressive image generator whose tokens are bits."""

from bitdance_kernels import __version__

__all__ = ["__version__"]
