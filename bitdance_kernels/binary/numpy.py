"""Packs and unpacks numpy arrays by the same C++, without PyTorch, for data loaders.

Importing this module does not import PyTorch. Where the package has no compiled module, numpy does
the work.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from bitdance_kernels._shared import native_modules, pool

__all__ = ["pack_signs", "unpack_signs"]

_UINT8 = np.dtype(np.uint8)
_CODES: dict[np.dtype[Any], int] = {
    np.dtype(np.float32): native_modules.FLOAT32,
    np.dtype(np.float16): native_modules.FLOAT16,
}
_SIGN_CODES: dict[np.dtype[Any], int] = _CODES | {
    np.dtype(np.bool_): native_modules.UINT8,
    _UINT8: native_modules.UINT8,
}


def pack_signs(x: npt.NDArray[Any], *, threads: int = 1) -> npt.NDArray[np.uint8]:
    """Pack the signs of an array: bit = 1 exactly where the value is > 0.

    Args:
        x: float32, float16, bool, uint8 or ml_dtypes.bfloat16 [..., C], C a positive multiple of 8;
            any strides.
        threads: of the C++ kernel; one, since a loader has a process for each core.

    Returns:
        uint8 [..., C / 8]; channel c is bit c % 8 of byte c // 8.

    Raises:
        TypeError: `x` is of another dtype.
        ValueError: C is not a positive multiple of 8, or `threads` is less than 1.
    """
    _check_array("pack_signs", "x", x)
    code = _code(x.dtype, _SIGN_CODES)
    if code is None:
        expected = "float32 or float16 or bfloat16 or bool or uint8"
        raise TypeError(f"pack_signs: x must be {expected}, got {x.dtype}")
    if x.ndim == 0 or x.shape[-1] == 0 or x.shape[-1] % 8:
        raise ValueError(
            "pack_signs: x must be [..., C] with C a positive multiple of 8, got shape "
            f"{list(x.shape)}"
        )
    _check_threads("pack_signs", threads)
    if native_modules.cpu.unavailable("pack_signs") is not None:
        with np.errstate(invalid="ignore"):
            return np.packbits(x > 0, axis=-1, bitorder="little")
    x = np.ascontiguousarray(x)
    channels = x.shape[-1]
    packed = np.empty((*x.shape[:-1], channels // 8), np.uint8)
    native_modules.cpu.pack_signs(
        _memory(x), packed, x.size // channels, channels, channels, code, threads
    )
    return packed


def unpack_signs(
    packed: npt.NDArray[np.uint8], dtype: npt.DTypeLike = np.float32, *, threads: int = 1
) -> npt.NDArray[Any]:
    """Unpack bits to +1 and -1, the inverse of ``pack_signs``.

    Args:
        packed: uint8 [..., C / 8]; any strides.
        dtype: float32, float16 or ml_dtypes.bfloat16.
        threads: of the C++ kernel.

    Returns:
        [..., C] of `dtype`.

    Raises:
        TypeError: `packed` is not uint8, or `dtype` another.
        ValueError: `packed` has no dimension or an empty last one, or `threads` is less than 1.
    """
    dtype = np.dtype(dtype)
    _check_array("unpack_signs", "packed", packed)
    if packed.dtype != _UINT8:
        raise TypeError(f"unpack_signs: packed must be uint8, got {packed.dtype}")
    code = _code(dtype, _CODES)
    if code is None:
        raise TypeError(f"unpack_signs: dtype must be float32 or float16 or bfloat16, got {dtype}")
    if packed.ndim == 0 or packed.shape[-1] == 0:
        raise ValueError(
            f"unpack_signs: packed must be [..., C / 8] with C > 0, got shape {list(packed.shape)}"
        )
    _check_threads("unpack_signs", threads)
    if native_modules.cpu.unavailable("unpack_signs") is not None:
        bits = np.unpackbits(packed, axis=-1, bitorder="little").astype(dtype)
        return 2 * bits - 1
    packed = np.ascontiguousarray(packed)
    width = packed.shape[-1]
    y = pool.empty((*packed.shape[:-1], 8 * width), dtype)
    native_modules.cpu.unpack_signs(
        packed, _memory(y), packed.size // width, 8 * width, width, code, threads
    )
    return y


def _code(dtype: np.dtype[Any], codes: dict[np.dtype[Any], int]) -> int | None:
    code = codes.get(dtype)
    if code is None and dtype.name == "bfloat16":  # a dtype of the package ml_dtypes
        return native_modules.BFLOAT16
    return code


def _memory(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """`array`, or the same memory in a dtype that the buffer protocol knows."""
    return array.view(np.uint16) if array.dtype.kind == "V" else array


def _check_array(op: str, argument: str, value: object) -> None:
    if isinstance(value, (np.ndarray, np.generic)):
        return
    kind = f"{type(value).__module__}.{type(value).__qualname__}".removeprefix("builtins.")
    hint = f"; bitdance_kernels.{op} takes tensors" if kind == "torch.Tensor" else ""
    raise TypeError(f"{op}: {argument} must be a numpy.ndarray, got {kind}{hint}")


def _check_threads(op: str, threads: int) -> None:
    if threads < 1:
        raise ValueError(f"{op}: threads must be at least 1, got {threads}")
