"""What backends need to call the compiled modules' C functions on tensors."""

from __future__ import annotations

import torch

from bitdance_kernels._shared.native_modules import (
    BFLOAT16,
    FLOAT16,
    FLOAT32,
    ISAS,
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
    "NativeModule",
    "aligned_rows",
    "cpu",
    "cpu_isa",
    "cpu_unsupported",
    "cuda",
    "cuda_unsupported",
    "dtype_unsupported",
    "rows_are_aligned",
    "stream",
]

if not hasattr(torch.Tensor, "__dlpack_c_exchange_api__"):
    for module in (cpu, cuda):
        module.disable("this version of PyTorch does not offer its tensors by DLPack's C interface")

DTYPE_CODES = {torch.float32: FLOAT32, torch.float16: FLOAT16, torch.bfloat16: BFLOAT16}


def cpu_unsupported(function: str, *tensors: torch.Tensor) -> str | None:
    """What every C++ backend asks first: is the module there, are these CPU tensors it knows?"""
    reason = cpu.unavailable(function)
    if reason is not None:
        return reason
    for tensor in tensors:
        if not tensor.is_cpu:
            return f"it needs CPU tensors, got {tensor.device}"
    return None


def cuda_unsupported(function: str, *tensors: torch.Tensor) -> str | None:
    """What every CUDA C++ backend asks first: is the module there, are these CUDA tensors?"""
    reason = cuda.unavailable(function)
    if reason is not None:
        return reason
    for tensor in tensors:
        if tensor.device.type != "cuda":
            return f"it needs CUDA tensors, got {tensor.device}"
    return None


def dtype_unsupported(*dtypes: torch.dtype) -> str | None:
    """Why the native code does not handle one of these dtypes; None when it does."""
    for dtype in dtypes:
        if dtype not in DTYPE_CODES:
            return f"it does not handle {dtype}"
    return None


def aligned_rows(x: torch.Tensor) -> torch.Tensor:
    """`x` [..., C], or a copy if not every row lies, without gaps, at a multiple of 16 bytes."""
    return x if rows_are_aligned(x) else x.clone(memory_format=torch.contiguous_format)


def rows_are_aligned(x: torch.Tensor) -> bool:
    """Whether every row of `x` [..., C] lies, without gaps, at a multiple of 16 bytes."""
    unit = 16 // x.element_size()
    aligned = x.data_ptr() % 16 == 0 and all(step % unit == 0 for step in x.stride()[:-1])
    return aligned and x.stride(-1) == 1


def stream(device: torch.device) -> tuple[int, int]:
    """Device index and handle of PyTorch's current stream there, as the C functions take them."""
    index = device.index if device.index is not None else torch.cuda.current_device()
    return index, torch.cuda.current_stream(index).cuda_stream
