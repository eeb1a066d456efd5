"""Attention in the middle of UniWeTok: transformer blocks over the cells of the latent map."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from bitdance.models.config import AutoencoderConfig
from bitdance.models.transformer import TransformerBlock, rope_table_2d
from bitdance_kernels import Ranges

__all__ = ["REGISTER_TOKENS", "attend", "attention_blocks", "center_positions", "edge_positions"]

REGISTER_TOKENS = 4
# Side of the grid that positions refer to, that of 256 pixels at 32 a cell: the cells of an image
# of any size are spread over it.
_REFERENCE_GRID = 8


def attention_blocks(config: AutoencoderConfig, channels: int, **factory: Any) -> nn.ModuleList:
    """The blocks of one side of the autoencoder, at width `channels`."""
    return nn.ModuleList(
        TransformerBlock(channels, config.n_heads, **factory) for _ in range(config.attn_blocks)
    )


def attend(
    h: torch.Tensor,
    register_tokens: torch.Tensor,
    blocks: nn.ModuleList,
    num_heads: int,
    positions: Callable[[int], torch.Tensor],
) -> torch.Tensor:
    """Run full attention over the cells of a map, joined by the register tokens.

    Args:
        h: [B, C, H, W].
        register_tokens: [R, C]; they come first, are not rotated, and are dropped at the end.
        blocks: result of `attention_blocks`.
        num_heads: heads of the blocks.
        positions: gives the positions along an axis of some size.

    Returns:
        [B, C, H, W].
    """
    B, C, H, W = h.shape
    registers = len(register_tokens)
    tokens = torch.cat([register_tokens.to(h.dtype).expand(B, -1, -1), h.flatten(2).mT], dim=1)
    y, x = torch.meshgrid(positions(H), positions(W), indexing="ij")
    centers = torch.stack([x.flatten(), y.flatten()], dim=-1)
    freqs = rope_table_2d(centers, C // num_heads, prefix=registers).to(h.device)
    T = tokens.shape[1]
    start = torch.zeros(T, dtype=torch.int32, device=h.device)
    everything = Ranges(start, torch.full_like(start, T), validate=False)
    for block in blocks:
        tokens = block(tokens, freqs, everything)
    return tokens[:, registers:].mT.unflatten(2, (H, W))


def edge_positions(size: int) -> torch.Tensor:
    """The encoder's: the first and last cell lie on the first and last center of the grid."""
    return (
        torch.arange(size, dtype=torch.float32, device="cpu") * ((_REFERENCE_GRID - 1) / (size - 1))
        + 0.5
    )


def center_positions(size: int) -> torch.Tensor:
    """The decoder's: cell centers, the last one on the last center of the grid."""
    centers = torch.arange(size, dtype=torch.float32, device="cpu") + 0.5
    return centers * ((_REFERENCE_GRID - 0.5) / (size - 0.5))
