"""unpack_signs in plain PyTorch."""

from __future__ import annotations

import torch


def run(packed: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    shifts = torch.arange(8, dtype=torch.uint8, device=packed.device)
    bits = (packed.unsqueeze(-1) >> shifts) & 1
    return (bits.to(dtype) * 2 - 1).flatten(-2)
