"""From tokens of bits to the transformer's width, and position embeddings of image tokens."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from bitdance.models.layers import Linear
from bitdance_kernels import swiglu

__all__ = ["InputProjection", "TextToImageProjection", "position_embedding_2d"]


class InputProjection(nn.Module):
    """Bits to embeddings in the ImageNet models: a SwiGLU network.

    Args:
        bits: bits of a token.
        dim: width of the transformer.
        **factory: ``dtype`` and ``device`` as torch.nn's layers take them.
    """

    def __init__(self, bits: int, dim: int, **factory: Any) -> None:
        super().__init__()
        hidden = int(1.5 * dim)
        self.w1 = Linear(bits, 2 * hidden, **factory)
        self.w2 = Linear(hidden, dim, **factory)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """[..., bits] to [..., dim]."""
        return self.w2(swiglu(self.w1(tokens)))


class TextToImageProjection(nn.Module):
    """Bits to embeddings in the text-to-image models: linear, GELU (tanh form), linear.

    Args:
        bits: bits of a token.
        dim: width of the language model.
        **factory: ``dtype`` and ``device`` as torch.nn's layers take them.
    """

    def __init__(self, bits: int, dim: int, **factory: Any) -> None:
        super().__init__()
        self.fc1 = Linear(bits, dim, **factory)
        self.fc2 = Linear(dim, dim, **factory)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """[..., bits] to [..., dim]."""
        return self.fc2(F.gelu(self.fc1(tokens), approximate="tanh"))


def position_embedding_2d(order: torch.Tensor, width: int, dim: int) -> torch.Tensor:
    """Sinusoids of column and row of the text-to-image tokens.

    Args:
        order: int64 [N], raster index of each token.
        width: tokens per row of the image.
        dim: C, a multiple of 4; the first half encodes the column, the second the row, each with
            sines first.

    Returns:
        float32 [N, C].

    Raises:
        ValueError: `dim` is no multiple of 4.
    """
    if dim % 4 != 0:
        raise ValueError(f"position_embedding_2d: dim must be a multiple of 4, got {dim}")
    quarter = dim // 4
    raster = order if order.is_meta else order.cpu()  # so that all devices have the same angles
    frequencies = 1.0 / 10000 ** (
        torch.arange(quarter, dtype=torch.float64, device=raster.device) / quarter
    )
    halves = []
    for position in (raster % width, raster // width):
        angles = position.double()[:, None] * frequencies
        halves += [torch.sin(angles), torch.cos(angles)]
    return torch.cat(halves, dim=-1).float().to(order.device)
