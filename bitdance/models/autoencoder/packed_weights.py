"""The decoder for small maps on the CPU: its convolutions read weights packed in panels.

PyTorch brings the weights of a convolution into another order in every call. Between the small maps
of a small decoder this is felt, and so are passes over a map that only add another one, or that
spread channels over pixels. Its sums are also in another order for another size of the batch; those
of packed convolutions are not, so an image has the bits that it has alone.
"""

from __future__ import annotations

import copy

import torch
from torch import nn

from bitdance.models import large_pages
from bitdance.models.autoencoder.blocks import Decoder, Upsample
from bitdance_kernels import CpuGraph, conv3x3, linear, pack_weight

__all__ = ["PackedConvolution", "can_pack", "packed"]

_PANEL = 16  # features


def can_pack(decoder: Decoder) -> bool:
    """Whether there are packed convolutions for this decoder here.

    Not for weights that are trained, which what is packed would not follow, nor within a capture,
    which would pack them again in every replay.
    """
    return (
        not CpuGraph.capturing()
        and CpuGraph.unavailable() is None
        and all(
            p.is_cpu and p.dtype == torch.float32 and not p.requires_grad
            for p in decoder.parameters()
        )
    )


def packed(decoder: Decoder) -> Decoder:
    """A copy of `decoder` with packed convolutions, which shares all its other parameters.

    Those whose features are no multiple of 16 stay as they are, but for the last one, whose few
    features are filled up. A later change of the weights of the others is not seen.
    """
    result = _packed(decoder)
    assert isinstance(result, Decoder)
    if isinstance(decoder.conv_out, nn.Conv2d) and not _is_wide(decoder.conv_out):
        result.add_module("conv_out", _FilledConvolution(decoder.conv_out))
    return result


def _packed(module: nn.Module) -> nn.Module:
    if isinstance(module, nn.Conv2d) and _is_wide(module):
        return PackedConvolution(module)
    if isinstance(module, Upsample) and module.conv1.in_channels % _PANEL == 0:
        return PackedConvolution(module.conv1, upscale_factor=2)
    result = copy.copy(module)  # with the same parameters
    result._modules = {}
    for name, child in module._modules.items():
        result._modules[name] = None if child is None else _packed(child)
    return result


def _is_wide(convolution: nn.Conv2d) -> bool:
    return convolution.out_channels % _PANEL == 0


class PackedConvolution(nn.Module):
    """A convolution of 3 x 3 pixels with a border of zeros, or of one pixel; without gradients.

    Args:
        convolution: the convolution, whose weights are copied; its features are a multiple of 16.
        upscale_factor: see ``conv3x3``; 1 for one pixel.
    """

    weight: torch.Tensor

    def __init__(self, convolution: nn.Conv2d, *, upscale_factor: int = 1) -> None:
        super().__init__()
        self._whole = convolution.kernel_size == (3, 3)
        self._upscale_factor, self.bias = upscale_factor, convolution.bias
        self.register_buffer("weight", _panels(_rows(convolution)), persistent=False)

    def forward(self, x: torch.Tensor, residual: torch.Tensor | None = None) -> torch.Tensor:
        """The convolution of `x`; with 3 x 3 pixels added to `residual`, where one is given."""
        if self._whole:
            factor = self._upscale_factor
            return conv3x3(x, self.weight, self.bias, residual, upscale_factor=factor)
        return linear(x.permute(0, 2, 3, 1), self.weight, self.bias).permute(0, 3, 1, 2)


class _FilledConvolution(nn.Module):
    """The same of a convolution of 3 x 3 pixels with few features, beside which there are zeros."""

    weight: torch.Tensor
    bias: torch.Tensor | None

    def __init__(self, convolution: nn.Conv2d) -> None:
        super().__init__()
        self._features = convolution.out_channels
        filled = -self._features % _PANEL
        rows = nn.functional.pad(_rows(convolution), (0, 0, 0, filled))
        self.register_buffer("weight", _panels(rows), persistent=False)
        bias = convolution.bias
        bias = None if bias is None else nn.functional.pad(bias.detach(), (0, filled))
        self.register_buffer("bias", bias, persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The convolution of `x`."""
        return conv3x3(x, self.weight, self.bias)[:, : self._features]


def _rows(convolution: nn.Conv2d) -> torch.Tensor:
    """The weight as a matrix of features and what they are products of."""
    return convolution.weight.detach().permute(0, 2, 3, 1).flatten(1)


def _panels(rows: torch.Tensor) -> torch.Tensor:
    """The matrix in panels."""
    memory = large_pages.empty((len(rows) // _PANEL, rows.shape[1], _PANEL), rows.dtype)
    return pack_weight(rows, "panels", out=memory)
