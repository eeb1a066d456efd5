"""Intervals of visible keys, start_i <= j < end_i, as tensors: start and end are [..., T]."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def visible(start: torch.Tensor, end: torch.Tensor, keys: int) -> torch.Tensor:
    """Whether query i sees key j, start_i <= j < end_i: bool [..., T, keys]."""
    j = torch.arange(keys, dtype=torch.int32, device=start.device)
    return (j >= start[..., None]) & (j < end[..., None])


def seen(start: torch.Tensor, end: torch.Tensor, keys: int) -> torch.Tensor:
    """Whether any query sees key j: bool [..., keys], in O(T + keys) memory.

    As both ends never decrease, the queries with end > j are a tail of the sequence and those with
    start <= j a head of it; j is seen where the two overlap.
    """
    first, past = transposed(start, end, keys)
    return first < past


def transposed(
    start: torch.Tensor, end: torch.Tensor, keys: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The queries that see key j, first_j <= i < past_j: two int64 [..., keys]."""
    j = torch.arange(keys, dtype=torch.int32, device=start.device)
    j = j.expand(*start.shape[:-1], keys).contiguous()
    first = torch.searchsorted(end.contiguous(), j, right=True)
    past = torch.searchsorted(start.contiguous(), j, right=True)
    return first, past


def sum_of_nonfinite(
    x: torch.Tensor, start: torch.Tensor, end: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Split sums over intervals into finite values and the sum of all others.

    A product with a mask's weights of 0 would spread NaN and infinity to all; so the product takes
    the finite part, and the rest is counted where it is seen.

    Args:
        x: [B, N, H, D].
        start: [B, M], of intervals of its rows.
        end: [B, M].

    Returns:
        `x` with 0 in place of NaN and infinity; and [B, M, H, D], their sum over the rows of each
        interval: NaN, an infinity or 0.
    """
    if x.device.type == "cpu" and is_finite(x):  # reading values of the CPU waits for nothing
        return x, x.new_zeros(()).expand(*start.shape, *x.shape[2:])
    batch = torch.arange(len(x), dtype=torch.int64, device=x.device)[:, None]
    first, past = (bound.long().clamp(0, x.shape[1]) for bound in (start, end))
    total = x.new_zeros(())
    for value in (float("inf"), float("-inf"), float("nan")):
        found = x.isnan() if value != value else x == value
        before = F.pad(found.cumsum(1), (0, 0, 0, 0, 1, 0))  # as many of the rows before each
        total = total + torch.where(before[batch, past] > before[batch, first], value, 0.0).to(x)
    return x.where(x.isfinite(), 0), total


def is_finite(*tensors: torch.Tensor) -> bool:
    """Whether no value is NaN or infinite; may be False for finite values whose sum overflows.

    Sums of bfloat16 are in float32 inside; asked for as such they take up to nine times as long.
    """
    dtypes = {torch.float16: torch.float32}
    return all(bool(torch.isfinite(x.sum(dtype=dtypes.get(x.dtype)))) for x in tensors)
