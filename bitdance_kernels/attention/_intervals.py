"""Intervals of visible keys, start_i <= j < end_i, as tensors: start and end are [..., T]."""

from __future__ import annotations

import torch


def visible(start: torch.Tensor, end: torch.Tensor, keys: int) -> torch.Tensor:
    """Whether query i sees key j, start_i <= j < end_i: bool [..., T, keys]."""
    j = torch.arange(keys, dtype=torch.int32, device=start.device)
    return (j >= start[..., None]) & (j < end[..., None])


def seen(start: torch.Tensor, end: torch.Tensor, keys: int) -> torch.Tensor:
    """Whether any query sees key j: bool [..., keys], in O(T + keys) memory.

    As both ends never decrease, the queries with end > j are a tail of the sequence and those with
    start <= j a head of it; j is seen where the two overlap.
    """
    j = torch.arange(keys, dtype=torch.int32, device=start.device)
    j = j.expand(*start.shape[:-1], keys).contiguous()
    first = torch.searchsorted(end.contiguous(), j, right=True)
    last = torch.searchsorted(start.contiguous(), j, right=True)
    return first < last
