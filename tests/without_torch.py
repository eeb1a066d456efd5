"""``python -m tests.without_torch``: packing with NumPy alone, in the compiled module."""

from __future__ import annotations

import sys

import numpy as np

from bitdance_kernels._shared import native_modules
from bitdance_kernels.binary.numpy import pack_signs, unpack_signs


def check() -> None:
    """Pack and unpack every float16 and rows of every width up to 130 bytes.

    Raises:
        AssertionError: a result differs from NumPy's, or PyTorch was imported.
    """
    reason = native_modules.cpu.unavailable("pack_signs")
    assert reason is None, reason
    patterns = np.arange(2**16, dtype=np.uint16).view(np.float16)
    _check_one(patterns.reshape(-1, 64))
    draw = np.random.default_rng(0)
    for width in range(1, 131):
        _check_one(draw.standard_normal((3, 8 * width), np.float32))
    assert "torch" not in sys.modules, "torch was imported"


def _check_one(x: np.ndarray) -> None:
    with np.errstate(invalid="ignore"):
        ones = x > 0
    packed = pack_signs(x)
    assert np.array_equal(packed, np.packbits(ones, axis=-1, bitorder="little")), x.shape
    signs = unpack_signs(packed, x.dtype)
    assert signs.dtype == x.dtype, signs.dtype
    assert np.array_equal(signs, np.where(ones, 1, -1)), x.shape


if __name__ == "__main__":
    check()
    version = ".".join(map(str, sys.version_info[:3]))
    print(f"Python {version}, NumPy {np.__version__}: packed and unpacked")
