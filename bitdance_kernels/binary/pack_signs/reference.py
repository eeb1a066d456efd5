"""pack_signs in plain PyTorch."""

from __future__ import annotations

import torch


def run(x: torch.Tensor) -> torch.Tensor:
    weights = torch.tensor([1, 2, 4, 8, 16, 32, 64, 128], dtype=torch.uint8, device=x.device)
    bits = (x > 0).unflatten(-1, (-1, 8))
    return (bits * weights).sum(dim=-1, dtype=torch.uint8)
