"""The decoder for many decodes on the CPU: its convolutions read weights in oneDNN's own order.

PyTorch brings the weights of a convolution into that order in every call. Between the small maps of
a small decoder this is felt, and so is a pass over a map that only adds another one.
"""

from __future__ import annotations

import copy

import torch
from torch import nn

from bitdance.models.autoencoder.blocks import Decoder
from bitdance_kernels import CpuGraph

__all__ = ["PackedConvolution", "can_pack", "packed"]


def can_pack(decoder: Decoder) -> bool:
    """Whether there are packed convolutions for this decoder here.

    Not for weights that are trained, which what is packed would not follow, nor within a capture,
    which would pack them again in every replay.
    """
    return (
        not CpuGraph.capturing()
        and torch.backends.mkldnn.is_available()
        and bool(torch.backends.mkldnn.enabled)
        and all(
            p.is_cpu and p.dtype == torch.float32 and not p.requires_grad
            for p in decoder.parameters()
        )
    )


def packed(decoder: Decoder) -> Decoder:
    """A copy of `decoder` with packed convolutions, which shares all its other parameters."""
    shared = {id(parameter): parameter for parameter in decoder.parameters()}
    result = copy.deepcopy(decoder, shared)
    for module in list(result.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.Conv2d):
                setattr(module, name, PackedConvolution(child))
    return result


class PackedConvolution(nn.Module):
    """A convolution of maps of one size, without gradients.

    The weights are packed by its first call, for maps like those that it is given then; a later
    change of `convolution` is not seen.

    Args:
        convolution: convolution whose weights are packed.
    """

    def __init__(self, convolution: nn.Conv2d) -> None:
        super().__init__()
        self.convolution = convolution
        self._weight: torch.Tensor | None = None

    def forward(self, x: torch.Tensor, residual: torch.Tensor | None = None) -> torch.Tensor:
        """The convolution of `x`; added to `residual`, of its shape, where one is given."""
        layer, ops = self.convolution, torch.ops.mkldnn
        shape = (layer.padding, layer.stride, layer.dilation, layer.groups)
        if self._weight is None:
            self._weight = ops._reorder_convolution_weight(layer.weight, *shape, list(x.shape))
        weights = (self._weight, layer.bias, *shape)
        if residual is None:
            return ops._convolution_pointwise(x, *weights, "none", [], "")
        return ops._convolution_pointwise_(residual, x, *weights, "add", None, None, [], None)
