"""hamming_distance and nearest_codes in plain PyTorch."""

from __future__ import annotations

import torch

from bitdance_kernels.binary._shared import bits

# Rows of a and of b whose distances are stored at a time: 4 M numbers.
_ROWS, _COLUMNS = 1024, 4096


def run(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    # With values +1 and -1, <a, b> = C - 2 distance; sums below 2^24 are exact in float32.
    product = bits.signs(a, torch.float32) @ bits.signs(b, torch.float32).T
    return ((a.shape[1] * 8 - product) / 2).to(torch.int32)


def run_nearest(a: torch.Tensor, b: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    count = b.shape[0]
    best = [_nearest_rows(rows, b, k) for rows in a.split(_ROWS)]
    ranks = torch.cat(best) if best else a.new_empty((0, k), dtype=torch.int64)
    return ranks % count, torch.div(ranks, count, rounding_mode="floor").to(torch.int32)


def _nearest_rows(a: torch.Tensor, b: torch.Tensor, k: int) -> torch.Tensor:
    """The k smallest of distance * M + index, int64 [N, k] ascending, so the index breaks ties."""
    best = a.new_empty((a.shape[0], 0), dtype=torch.int64)
    start = 0
    for columns in b.split(_COLUMNS):
        end = start + columns.shape[0]
        index = torch.arange(start, end, dtype=torch.int64, device=b.device)
        ranks = run(a, columns).to(torch.int64) * b.shape[0] + index
        together = torch.cat([best, ranks], dim=1)
        best = together.topk(min(k, together.shape[1]), largest=False, sorted=True).values
        start = end
    return best
