"""The block-causal transformer: one class for any number of tokens per step.

Serial decoding is the case P = 1: every step feeds P tokens, which see the whole cache and each
other. In training one pass over the sequence does the same under interval masks.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import nn

from bitdance.models.kv_cache import KVCache
from bitdance.models.layers import Linear, RMSNorm
from bitdance_kernels import (
    Ranges,
    block_causal_attention,
    block_decode_attention,
    rope,
    rope_append,
    swiglu,
)

__all__ = ["Transformer", "TransformerBlock", "cell_centers", "rope_table_2d"]

_EPS = 1e-6
_ROPE_BASE = 10000.0


def cell_centers(height: int, width: int) -> torch.Tensor:
    """Centers (x, y) of the cells of a grid in raster order, [H W, 2] float32."""
    sides = (torch.arange(side, dtype=torch.float32, device="cpu") for side in (height, width))
    y, x = torch.meshgrid(*sides, indexing="ij")
    return torch.stack([x.flatten(), y.flatten()], dim=-1) + 0.5


def rope_table_2d(centers: torch.Tensor, head_dim: int, prefix: int = 0) -> torch.Tensor:
    """Rotations of a sequence of `prefix` unrotated positions and then image cells.

    The first half of a head's pairs turns with x + 1, the second with y + 1, pair i of a half at
    the frequency 10000^(-2 i / (D / 2)).

    Args:
        centers: [N, 2] of any dtype, (x, y) of the cells in the order in which they are fed in.
        head_dim: D, a multiple of 4.
        prefix: positions before them.

    Returns:
        float32 [prefix + N, D / 2, 2]: cosine and sine.

    Raises:
        ValueError: `head_dim` is no multiple of 4.
    """
    if head_dim % 4 != 0:
        raise ValueError(f"rope_table_2d: head_dim must be a multiple of 4, got {head_dim}")
    half = head_dim // 2
    channel = torch.arange(0, half, 2, dtype=torch.float32, device=centers.device)
    frequencies = _ROPE_BASE ** (-channel / half)  # [D / 4]
    angles = ((centers.float() + 1)[:, :, None] * frequencies).flatten(
        1
    )  # [N, D / 2]: of x, then of y
    angles = torch.cat([angles.new_zeros(prefix, half), angles])
    return torch.stack([torch.cos(angles), torch.sin(angles)], dim=-1)


class _Attention(nn.Module):
    def __init__(self, dim: int, num_heads: int, **factory: Any) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.wqkv = Linear(dim, 3 * dim, bias=False, **factory)
        self.wo = Linear(dim, dim, bias=False, **factory)

    def forward(self, x: torch.Tensor, freqs: torch.Tensor, ranges: Ranges) -> torch.Tensor:
        """A whole sequence [B, T, C] under an interval mask."""
        q, k, v = self.wqkv(x).unflatten(-1, (3, self.num_heads, -1)).unbind(2)
        out = block_causal_attention(rope(q, freqs), rope(k, freqs), v, ranges)
        return self.wo(out.flatten(2))

    def decode(
        self,
        x: torch.Tensor,
        freqs: torch.Tensor,
        cache: tuple[torch.Tensor, torch.Tensor],
        lengths: torch.Tensor,
        mask: Ranges | torch.Tensor,
    ) -> torch.Tensor:
        """New tokens [B, T, C] after `lengths` cached ones; see ``TransformerBlock.decode``."""
        return self.wo(self.attend(x, freqs, cache, lengths, mask))

    def attend(
        self,
        x: torch.Tensor,
        freqs: torch.Tensor,
        cache: tuple[torch.Tensor, torch.Tensor],
        lengths: torch.Tensor,
        mask: Ranges | torch.Tensor,
    ) -> torch.Tensor:
        """All of ``decode`` but its last product."""
        keys, values = cache
        q = rope_append(self.wqkv(x), keys, values, lengths, freqs, num_heads=self.num_heads)
        if isinstance(mask, Ranges):
            count = x.shape[1]
            out = block_causal_attention(q, keys[:, :count], values[:, :count], mask)
        else:
            out = block_decode_attention(q, keys, values, mask)
        return out.flatten(2)


class _FeedForward(nn.Module):
    def __init__(self, dim: int, **factory: Any) -> None:
        super().__init__()
        hidden = -(-int(8 / 3 * dim) // 256) * 256  # rounded up to a multiple of 256
        self.w1 = Linear(dim, 2 * hidden, bias=False, **factory)
        self.w2 = Linear(hidden, dim, bias=False, **factory)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.w2(swiglu(self.w1(x)))


class TransformerBlock(nn.Module):
    """Pre-norm attention and SwiGLU network, without biases.

    Args:
        dim: C.
        num_heads: H, with C / H a multiple of 4.
        **factory: ``dtype`` and ``device`` as torch.nn's layers take them.
    """

    def __init__(self, dim: int, num_heads: int, **factory: Any) -> None:
        super().__init__()
        self.attention = _Attention(dim, num_heads, **factory)
        self.feed_forward = _FeedForward(dim, **factory)
        self.attention_norm = RMSNorm(dim, eps=_EPS, **factory)
        self.ffn_norm = RMSNorm(dim, eps=_EPS, **factory)

    def forward(self, x: torch.Tensor, freqs: torch.Tensor, ranges: Ranges) -> torch.Tensor:
        """A whole sequence [B, T, C] to [B, T, C], under an interval mask."""
        x = x + self.attention(self.attention_norm(x), freqs, ranges)
        return x + self.feed_forward(self.ffn_norm(x))

    def decode(
        self,
        x: torch.Tensor,
        freqs: torch.Tensor,
        cache: tuple[torch.Tensor, torch.Tensor],
        lengths: torch.Tensor,
        mask: Ranges | torch.Tensor,
    ) -> torch.Tensor:
        """New tokens [B, T, C] after `lengths` cached ones; `cache` is written.

        `mask` is Ranges for the first tokens of an empty cache, which see each other by them; else
        int32 [B], lengths with the new tokens, all of which every new token sees.
        """
        x = x + self.attention.decode(self.attention_norm(x), freqs, cache, lengths, mask)
        return x + self.feed_forward(self.ffn_norm(x))


class Transformer(nn.ModuleList):
    """The blocks, as a list, so that parameters are named as in the official model.

    Args:
        depth: blocks.
        dim: C.
        num_heads: H.
        **factory: ``dtype`` and ``device`` as torch.nn's layers take them.
    """

    def __init__(self, depth: int, dim: int, num_heads: int, **factory: Any) -> None:
        super().__init__(TransformerBlock(dim, num_heads, **factory) for _ in range(depth))
        self.num_heads = num_heads
        self.head_dim = dim // num_heads

    def __iter__(self) -> Iterator[TransformerBlock]:
        return cast(Iterator[TransformerBlock], super().__iter__())

    def forward(self, x: torch.Tensor, freqs: torch.Tensor, ranges: Ranges) -> torch.Tensor:
        """A whole sequence through all blocks."""
        for block in self:
            x = block(x, freqs, ranges)
        return x

    def decode(
        self, x: torch.Tensor, freqs: torch.Tensor, cache: KVCache, ranges: Ranges | None = None
    ) -> torch.Tensor:
        """New tokens through all blocks; the cache then holds them.

        With `ranges` they are the first tokens, which see each other under that mask.
        """
        mask = cache.lengths + x.shape[1] if ranges is None else ranges
        for block, layer in zip(self, cache.layers, strict=True):
            x = block.decode(x, freqs, layer, cache.lengths, mask)
        cache.advance(x.shape[1])
        return x
