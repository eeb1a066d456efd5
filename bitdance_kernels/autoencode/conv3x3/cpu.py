"""conv3x3 in C++: csrc/cpu/conv3x3."""

from __future__ import annotations

import torch

from bitdance_kernels._shared import native, packed_weight
from bitdance_kernels.autoencode.conv3x3._shapes import empty_result, features_of

_FLOATS = 6144  # of rows of maps that are taken together, which the first-level cache holds


def unsupported(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    residual: torch.Tensor | None,
    upscale_factor: int,
) -> str | None:
    reason = native.cpu_unsupported("conv3x3", x)
    if reason is not None:
        return reason
    if x.dtype != torch.float32:
        return f"it does not handle {x.dtype}"
    if not packed_weight.is_panels(weight):
        return 'it takes weights that pack_weight has packed in "panels"'
    if features_of(weight) % (packed_weight.TILE * upscale_factor**2) != 0:
        multiple = packed_weight.TILE * upscale_factor**2
        return f"it takes a multiple of {multiple} features, got {features_of(weight)}"
    return None


def run(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    residual: torch.Tensor | None,
    upscale_factor: int,
) -> torch.Tensor:
    B, C, H, W = x.shape
    features = features_of(weight)
    y = empty_result(x, features, upscale_factor)
    last, threads = torch.channels_last, torch.get_num_threads()
    row = (W + 2) * C
    at_once = _FLOATS // row + 1
    size = (at_once + 2 * ((at_once - 1) // H + 2)) * row  # each image has two rows of zeros more
    native.cpu.conv3x3(
        x.contiguous(memory_format=last),
        weight.contiguous(),
        None if bias is None else bias.contiguous(),
        None if residual is None else residual.contiguous(memory_format=last),
        y,
        x.new_empty(threads * size),
        B,
        H,
        W,
        C,
        features,
        upscale_factor,
        at_once,
        size,
        threads,
    )
    return y
