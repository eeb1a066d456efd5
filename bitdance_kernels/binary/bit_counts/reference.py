"""bit_counts in plain PyTorch."""

from __future__ import annotations

import torch

from bitdance_kernels.binary._shared import bits


def run(packed: torch.Tensor) -> torch.Tensor:
    rows = packed.reshape(-1, packed.shape[-1])
    # One bit of every byte at a time, so that no tensor exceeds the input.
    places = bits.places(packed.device)
    ones = [((rows & place) != 0).sum(0, dtype=torch.int64) for place in places]
    return torch.stack(ones, dim=-1).flatten()
