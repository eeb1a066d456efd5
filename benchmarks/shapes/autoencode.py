"""Shapes of the decoder's norm: d16c32 at 256 x 256 pixels."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.shapes import Timing, short, timing


def _norm(batch: int, channels: int, size: int, dtype: torch.dtype, **more: Any) -> Timing:
    def arguments(make: Any) -> list[Any]:
        x = make.randn(batch, channels, size, size, dtype=dtype)
        affine = torch.ones(channels, device=make.device), torch.zeros(channels, device=make.device)
        return [x.contiguous(memory_format=torch.channels_last), 32, *affine]

    # Read twice and written once: the statistics of a whole map come first.
    moved = 3 * batch * channels * size * size * dtype.itemsize
    return timing(f"[{batch}, {channels}, {size}, {size}] {short(dtype)}", arguments, moved, **more)


def group_norm_then_silu(x: Tensor, num_groups: int, weight: Tensor, bias: Tensor) -> Tensor:
    wide = F.group_norm(x.float(), num_groups, weight, bias, 1e-6)
    return (wide * torch.sigmoid(wide)).to(x.dtype)


SHAPES = {
    "group_norm_silu": (
        [
            _norm(1, 256, 128, torch.float32),
            _norm(1, 512, 32, torch.float32),
            _norm(16, 256, 256, torch.bfloat16, devices=("cuda",)),
            _norm(16, 512, 64, torch.bfloat16, devices=("cuda",)),
        ],
        {"torch": group_norm_then_silu},
    )
}
"""Timings and baselines by op."""
