"""Helpers of the CUDA C++ backends of the head's row ops."""

from __future__ import annotations

import functools
from typing import Any

import torch

from bitdance_kernels._shared import native
from bitdance_kernels._shared.dtypes import accumulate_dtype
from bitdance_kernels._shared.rows import as_rows

# Limit of the registers: kMaxRowChannels of csrc/cuda/common/modulated_norm_config.h.
MAX_CHANNELS = 8192
# Shared memory of a block for the gradients of weight and bias: kAffineHeld floats per thread, a
# warp for every kWarpChannels channels, and the sums of its rows.
_WARP_CHANNELS, _WARP_BYTES, _ROW_BYTES = 512, 32 * 65 * 4, 320
# Rows per sum and maximum of sums in the first stage of the gradients of weight and bias. They do
# not depend on the card, so that every card adds in the same order.
_SLICE_ROWS = 4
_MAX_SLICES = 1024


def unsupported(function: str, *tensors: torch.Tensor | None) -> str | None:
    """The reason why the CUDA code cannot take these tensors, x first; None if it can."""
    given = [tensor for tensor in tensors if tensor is not None]
    channels = given[0].shape[-1]
    if channels > MAX_CHANNELS:
        return f"it handles up to {MAX_CHANNELS} channels, got {channels}"
    return native.cuda_unsupported(function, *given) or native.dtype_unsupported(
        *(tensor.dtype for tensor in given)
    )


def unsupported_backward(
    function: str,
    x: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    *others: torch.Tensor,
) -> str | None:
    """The reason why the CUDA code cannot compute these gradients; None if it can."""
    reason = unsupported(function, x, weight, bias, *others)
    if reason is not None or (weight is None and bias is None):
        return reason
    channels = x.shape[-1]
    needed = -(-channels // _WARP_CHANNELS) * _WARP_BYTES + _ROW_BYTES
    available = _block_memory(x.device)
    if needed <= available:
        return None
    return (
        f"gradients of weight and bias of {channels} channels take {needed} bytes of shared memory "
        f"a block, of which this card has {available}"
    )


@functools.cache
def _block_memory(device: torch.device) -> int:
    """Shared memory that a block may use, in bytes: 99 KiB on small cards, else 163 KiB or more."""
    properties: Any = torch.cuda.get_device_properties(device)  # its stub lacks some
    return properties.shared_memory_per_block_optin


def rows(*tensors: torch.Tensor | None) -> list[torch.Tensor | None]:
    """The tensors [..., C] or [C], with copies of those whose rows are not evenly spaced."""
    return [None if tensor is None else as_rows(tensor)[0] for tensor in tensors]


def count(x: torch.Tensor) -> int:
    """Rows of `x` [..., C]."""
    return x.shape[:-1].numel()


def gradients(
    x: torch.Tensor, *given: torch.Tensor | None
) -> tuple[list[torch.Tensor], list[torch.Tensor | None]]:
    """New tensors for the gradients of `given`, as results and as arguments of a C function.

    As in the reference, the gradient of an argument that is None is an empty tensor.
    """
    outputs = [
        None if t is None else torch.empty_like(t, memory_format=torch.contiguous_format)
        for t in given
    ]
    dtype = accumulate_dtype(x)
    return [x.new_empty(0, dtype=dtype) if t is None else t for t in outputs], outputs


def workspace(
    x: torch.Tensor, weight: torch.Tensor | None, bias: torch.Tensor | None
) -> tuple[torch.Tensor, int]:
    """Workspace for partial sums of the gradients of weight and bias, and its number of slices."""
    affine = weight is not None or bias is not None
    slices = max(1, min(-(-count(x) // _SLICE_ROWS), _MAX_SLICES)) if affine else 0
    return x.new_empty(slices, 2, x.shape[-1], dtype=torch.float32), slices
