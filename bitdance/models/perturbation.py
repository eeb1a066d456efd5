"""Flips of bits that are fed in training, so that a model learns to go on from wrong ones."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from bitdance_kernels import flip_signs

__all__ = ["perturb"]


def perturb(
    tokens: torch.Tensor,
    rate: float,
    draws: torch.Tensor | tuple[torch.Tensor, torch.Tensor] | None = None,
) -> torch.Tensor:
    """Flip bits as training does: where r1 < rate r2, so with probability rate / 2.

    Args:
        tokens: +1 and -1, of any shape.
        rate: rate of flips in [0, 1].
        draws: a seed for each row of `tokens`, int64 [B], whose flips do not depend on the other
            rows; or (r1, r2), each of the shape of `tokens`. By default one seed is drawn for all.

    Returns:
        Of the shape of `tokens`.

    Raises:
        ValueError: `rate` is out of range, or shapes do not fit.
    """
    if draws is None:
        drawn = torch.randint(2**63 - 1, (1,), dtype=torch.int64, device=tokens.device)
        return _flip(tokens, rate, seed=drawn)
    if isinstance(draws, torch.Tensor):
        if draws.shape != tokens.shape[:1]:
            raise ValueError(
                f"perturb: draws must be [B] = [{len(tokens)}], got {list(draws.shape)}"
            )
        rows = zip(tokens, draws, strict=True)
        return torch.stack([_flip(row, rate, seed=seed) for row, seed in rows])
    r1, r2 = draws
    if r1.shape != tokens.shape or r2.shape != tokens.shape:
        raise ValueError(
            f"perturb: draws must be two of shape {list(tokens.shape)}, got {list(r1.shape)} "
            f"and {list(r2.shape)}"
        )
    return _flip(tokens, rate, uniforms=(_whole_bytes(r1), _whole_bytes(r2)))


def _flip(tokens: torch.Tensor, rate: float, **draw: Any) -> torch.Tensor:
    flipped = flip_signs(_whole_bytes(tokens), rate, **draw)
    return flipped[: tokens.numel()].view(tokens.shape)


def _whole_bytes(values: torch.Tensor) -> torch.Tensor:
    """Flat, filled up to whole bytes of bits, as the op takes them."""
    return F.pad(values.flatten(), (0, -values.numel() % 8))
