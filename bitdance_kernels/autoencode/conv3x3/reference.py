"""conv3x3 in plain PyTorch."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from bitdance_kernels._shared import packed_weight


def run(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    residual: torch.Tensor | None,
    upscale_factor: int,
) -> torch.Tensor:
    if packed_weight.is_panels(weight):
        weight = packed_weight.matrix(weight).unflatten(1, (3, 3, -1)).permute(0, 3, 1, 2)
    y = F.conv2d(x, weight, bias, padding=1)
    if residual is not None:
        y = y + residual
    B, _, H, W = y.shape
    s = upscale_factor
    blocks = y.unflatten(1, (s, s, -1)).permute(0, 4, 1, 5, 2, 3)  # B H di W dj C
    pixels = blocks.reshape(B, s * H, s * W, y.shape[1] // s**2).clone(
        memory_format=torch.contiguous_format
    )
    return pixels.permute(0, 3, 1, 2)
