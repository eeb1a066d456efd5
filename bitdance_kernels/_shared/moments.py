"""Moments of parts of a row, from which a norm of the whole row follows.

A row's parts are its runs of 16 channels. Each has its mean and the sum of squared deviations from
that mean: merged, they give mean and variance as exactly as two passes over the row do.
"""

from __future__ import annotations

import torch

from bitdance_kernels._shared import checks
from bitdance_kernels._shared.dtypes import accumulate_dtype

PART = 16


def of(x: torch.Tensor) -> torch.Tensor:
    """Moments [..., C / 16, 2] of the parts of the rows of `x` [..., C], in float32 or float64."""
    parts = x.to(accumulate_dtype(x)).unflatten(-1, (x.shape[-1] // PART, PART))
    mean = parts.mean(-1, keepdim=True)
    return torch.cat([mean, (parts - mean).square().sum(-1, keepdim=True)], dim=-1)


def fake(x: torch.Tensor) -> torch.Tensor:
    """An empty tensor like the result of `of`."""
    return x.new_empty((*x.shape[:-1], x.shape[-1] // PART, 2), dtype=accumulate_dtype(x))


def check(op: str, x: torch.Tensor, moments: torch.Tensor | None) -> None:
    """Raise TypeError or ValueError unless `moments` is None or may be those of `x`."""
    if moments is None:
        return
    checks.dtype(op, "moments", moments, (accumulate_dtype(x),))
    check_parts(op, "x", x.shape, "[..., C] with C a multiple of 16 where moments are given")
    wanted = (*x.shape[:-1], x.shape[-1] // PART, 2)
    checks.shape(op, "moments", moments, wanted, "[..., C / 16, 2]")
    checks.same_device(op, "x", x, moments=moments)


def check_parts(op: str, name: str, shape: torch.Size, expected: str) -> None:
    """Raise ValueError unless the last of `shape`, that of the argument `name`, is whole parts."""
    if shape[-1] % PART != 0:
        raise checks.fail(op, name, expected, f"shape {list(shape)}")
