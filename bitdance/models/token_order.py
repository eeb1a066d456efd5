"""Tokens of a latent map: how cells are grouped into tokens, and in which order tokens come.

A token covers `patch_size` x `patch_size` cells, flattened as (channel, row, column). Tokens are
generated P at a time: in "standard" order P consecutive ones in raster order, in "patch" order a
sqrt(P) x sqrt(P) square, squares in raster order and raster order inside a square.
"""

from __future__ import annotations

import math

import torch

__all__ = ["generation_order", "latents_to_tokens", "tokens_to_latents"]


def generation_order(
    grid: tuple[int, int], patch_tokens: int, mode: str, device: torch.device | str = "cpu"
) -> torch.Tensor:
    """Raster index of the k-th token that is generated.

    Args:
        grid: tokens vertically and horizontally.
        patch_tokens: P.
        mode: "patch" or "standard".
        device: device of the result.

    Returns:
        int64 [N], a permutation of 0 to N - 1.

    Raises:
        ValueError: `mode` is unknown, or squares of P tokens do not tile the grid.
    """
    height, width = grid
    raster = torch.arange(height * width, dtype=torch.int64, device=device)
    if mode == "standard":
        return raster
    if mode != "patch":
        raise ValueError(f"generation_order: mode must be 'patch' or 'standard', got {mode!r}")
    side = math.isqrt(patch_tokens)
    if side * side != patch_tokens or height % side or width % side:
        raise ValueError(
            "generation_order: patch_tokens must be a square whose root divides the grid "
            f"{height} x {width}, got {patch_tokens}"
        )
    squares = raster.view(height // side, side, width // side, side)
    return squares.permute(0, 2, 1, 3).flatten()


def latents_to_tokens(latents: torch.Tensor, patch_size: int, order: torch.Tensor) -> torch.Tensor:
    """Codes [B, C, H, W] (any memory format) to tokens [B, N, C p^2] in generation order."""
    batch, channels, height, width = latents.shape
    cells = latents.reshape(
        batch, channels, height // patch_size, patch_size, width // patch_size, patch_size
    )
    tokens = cells.permute(0, 2, 4, 1, 3, 5)
    return tokens.reshape(batch, len(order), channels * patch_size**2)[:, order]


def tokens_to_latents(
    tokens: torch.Tensor, patch_size: int, order: torch.Tensor, grid: tuple[int, int]
) -> torch.Tensor:
    """The inverse of ``latents_to_tokens``: [B, N, C p^2] to [B, C, H, W]."""
    batch, _, bits = tokens.shape
    raster = torch.empty_like(tokens)
    raster[:, order] = tokens
    cells = raster.view(batch, *grid, bits // patch_size**2, patch_size, patch_size)
    height, width = (side * patch_size for side in grid)
    return cells.permute(0, 3, 1, 4, 2, 5).reshape(batch, -1, height, width)
