"""Sizes of what conv3x3 takes and returns."""

from __future__ import annotations

import torch

from bitdance_kernels._shared import packed_weight

MAX_FACTOR = 16
"""Maximum of `upscale_factor`."""


def features_of(weight: torch.Tensor) -> int:
    """F of a weight, in panels or not."""
    return len(weight) * (packed_weight.TILE if packed_weight.is_panels(weight) else 1)


def empty_result(x: torch.Tensor, features: int, factor: int) -> torch.Tensor:
    """Memory for the result for `x`, channels-last."""
    B, _, H, W = x.shape
    size = (B, features // factor**2, factor * H, factor * W)
    return torch.empty(size, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
