"""Bytes and bits in plain PyTorch, for the references of this family."""

from __future__ import annotations

import torch


def pack(bits: torch.Tensor) -> torch.Tensor:
    """Bool [..., C] to uint8 [..., C / 8], channel c to bit c % 8."""
    weights = torch.tensor([1, 2, 4, 8, 16, 32, 64, 128], dtype=torch.uint8, device=bits.device)
    return (bits.unflatten(-1, (-1, 8)) * weights).sum(dim=-1, dtype=torch.uint8)


def unpack(packed: torch.Tensor) -> torch.Tensor:
    """Uint8 [..., C / 8] to uint8 [..., C] of 0 and 1."""
    shifts = torch.arange(8, dtype=torch.uint8, device=packed.device)
    return ((packed.unsqueeze(-1) >> shifts) & 1).flatten(-2)


def signs(packed: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Uint8 [..., C / 8] to [..., C] of +1 and -1."""
    return unpack(packed).to(dtype) * 2 - 1
