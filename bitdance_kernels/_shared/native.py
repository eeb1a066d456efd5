"""Helpers to call the C functions of the compiled modules on tensors."""

from __future__ import annotations

import functools

import torch

from bitdance_kernels._shared.native_modules import (
    BFLOAT16,
    FLOAT16,
    FLOAT32,
    ISAS,
    UINT8,
    NativeModule,
    cpu,
    cpu_isa,
    cuda,
)

__all__ = [
    "BFLOAT16",
    "DTYPE_CODES",
    "FLOAT16",
    "FLOAT32",
    "ISAS",
    "SIGN_CODES",
    "UINT8",
    "NativeModule",
    "aligned_rows",
    "cpu",
    "cpu_isa",
    "cpu_unsupported",
    "cuda",
    "cuda_unsupported",
    "dtype_unsupported",
    "rows_are_aligned",
    "sm90_capability_unsupported",
    "sm90_unsupported",
    "stream",
]

if not hasattr(torch.Tensor, "__dlpack_c_exchange_api__"):
    for module in (cpu, cuda):
        module.disable("this version of PyTorch does not offer its tensors by DLPack's C interface")

DTYPE_CODES = {torch.float32: FLOAT32, torch.float16: FLOAT16, torch.bfloat16: BFLOAT16}
SIGN_CODES = DTYPE_CODES | {torch.bool: UINT8, torch.uint8: UINT8}  # for packing signs


def cpu_unsupported(function: str, *tensors: torch.Tensor) -> str | None:
    """The reason why C++ code cannot run on these tensors: no such function, or no CPU tensors."""
    reason = cpu.unavailable(function)
    if reason is not None:
        return reason
    for tensor in tensors:
        if not tensor.is_cpu:
            return f"it needs CPU tensors, got {tensor.device}"
    return None


def cuda_unsupported(function: str, *tensors: torch.Tensor) -> str | None:
    """The reason why CUDA code cannot run on these tensors: no function, or no CUDA tensors."""
    reason = cuda.unavailable(function)
    if reason is not None:
        return reason
    for tensor in tensors:
        if tensor.device.type != "cuda":
            return f"it needs CUDA tensors, got {tensor.device}"
    return None


def sm90_unsupported(device: torch.device) -> str | None:
    """The reason why kernels of ``*_sm90.cu`` do not run on `device`; None if they do."""
    if device.type != "cuda":
        return f"it needs CUDA tensors, got {device}"
    index = device.index if device.index is not None else torch.cuda.current_device()
    return sm90_capability_unsupported(*_capability(index))


def sm90_capability_unsupported(major: int, minor: int) -> str | None:
    """The reason why kernels of ``*_sm90.cu`` do not run on cards of a compute capability.

    They take clusters of up to eight blocks that store into each other's shared memory, and
    launches that begin before the one before has ended. Cards before 9.0 have neither; those of
    12.x have clusters of one block.
    """
    if major in (9, 10):
        return None
    return f"it needs compute capability 9.0 or 10.x for its clusters, got {major}.{minor}"


@functools.cache
def _capability(index: int) -> tuple[int, int]:
    return torch.cuda.get_device_capability(index)


def dtype_unsupported(*dtypes: torch.dtype) -> str | None:
    """The reason why native code does not handle one of these dtypes; None if it does."""
    for dtype in dtypes:
        if dtype not in DTYPE_CODES:
            return f"it does not handle {dtype}"
    return None


def aligned_rows(x: torch.Tensor) -> torch.Tensor:
    """`x` [..., C], copied unless its rows are contiguous and aligned to 16 bytes."""
    return x if rows_are_aligned(x) else x.clone(memory_format=torch.contiguous_format)


def rows_are_aligned(x: torch.Tensor) -> bool:
    """Whether all rows of `x` [..., C] are contiguous and aligned to 16 bytes."""
    unit = 16 // x.element_size()
    aligned = x.data_ptr() % 16 == 0 and all(step % unit == 0 for step in x.stride()[:-1])
    return aligned and x.stride(-1) == 1


def stream(device: torch.device) -> tuple[int, int]:
    """Index of `device` and handle of its current stream, as the C functions take them."""
    index = device.index if device.index is not None else torch.cuda.current_device()
    return index, torch.cuda.current_stream(index).cuda_stream
