"""Shapes of the decoder's norm, d16c32 at 256 x 256 pixels, and of a small one's convolutions."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from benchmarks import peers
from benchmarks.shapes import Timing, short, timing
from bitdance_kernels import pack_weight, unpack_weight

_FILTERS = WeakIdKeyDictionary()


def _norm(
    batch: int, channels: int, size: int, dtype: torch.dtype, *, planes: bool = False, **more: Any
) -> Timing:
    layout = torch.contiguous_format if planes else torch.channels_last

    def arguments(make: Any) -> list[Any]:
        x = make.randn(batch, channels, size, size, dtype=dtype)
        affine = torch.ones(channels, device=make.device), torch.zeros(channels, device=make.device)
        return [x.contiguous(memory_format=layout), 32, *affine]

    # Read twice and written once: the statistics of a whole map come first.
    moved = 3 * batch * channels * size * size * dtype.itemsize
    name = f"[{batch}, {channels}, {size}, {size}] {short(dtype)}{', contiguous' if planes else ''}"
    return timing(name, arguments, moved, **more)


def group_norm_then_silu(x: Tensor, num_groups: int, weight: Tensor, bias: Tensor) -> Tensor:
    wide = F.group_norm(x.float(), num_groups, weight, bias, 1e-6)
    return (wide * torch.sigmoid(wide)).to(x.dtype)


def group_norm_silu_torch(x: Tensor, num_groups: int, weight: Tensor, bias: Tensor) -> Tensor:
    """PyTorch's own kernel, which takes half precision with an affine map in float32."""
    return F.silu(F.group_norm(x, num_groups, weight, bias, 1e-6), inplace=True)


def _convolution(batch: int, channels: int, size: int, features: int) -> Timing:
    def arguments(make: Any) -> list[Any]:
        x = make.randn(batch, channels, size, size).contiguous(memory_format=torch.channels_last)
        weight, bias = make.layer(features, 9 * channels, torch.float32)
        return [x, pack_weight(weight, "panels"), bias]

    pixels = batch * size**2
    moved = 4 * (pixels * (channels + features) + 9 * channels * features)
    flops = 18 * pixels * channels * features
    name = f"[{batch}, {channels}, {size}, {size}] to {features} float32"
    return timing(name, arguments, moved, flops=flops, devices=("cpu",))


def convolution(x: Tensor, panels: Tensor, bias: Tensor) -> Tensor:
    """PyTorch's, which packs the weight itself."""
    if panels not in _FILTERS:
        filters = unpack_weight(panels, "panels").unflatten(1, (3, 3, -1)).permute(0, 3, 1, 2)
        _FILTERS[panels] = filters.contiguous(memory_format=torch.channels_last)
    return F.conv2d(x, _FILTERS[panels], bias, padding=1)


SHAPES = {
    "group_norm_silu": (
        [
            _norm(1, 256, 128, torch.float32),
            _norm(1, 512, 32, torch.float32),
            *(
                _norm(*size, dtype, planes=planes, devices=("cpu",))
                for size in ((1, 128, 16), (1, 256, 64))
                for dtype in (torch.float32, torch.bfloat16)
                for planes in (False, True)
            ),
            _norm(16, 256, 256, torch.bfloat16, devices=("cuda",)),
            _norm(16, 512, 64, torch.bfloat16, devices=("cuda",)),
        ],
        {"torch": group_norm_then_silu},
        peers.and_compiled(group_norm_silu_torch),
    ),
    "conv3x3": (
        [
            _convolution(1, 96, 4, 96),
            _convolution(1, 64, 8, 256),
            _convolution(1, 32, 16, 32),
            _convolution(8, 96, 4, 96),
            _convolution(8, 64, 16, 32),
        ],
        {},
        {"torch": convolution},
    ),
}
"""Timings and baselines by op."""
