"""Bits of bytes in plain PyTorch, for the references, by operators that ONNX has too."""

from __future__ import annotations

import torch


def places(device: torch.device) -> torch.Tensor:
    """Uint8 [8]: the byte in which bit j alone is set."""
    return torch.tensor([1, 2, 4, 8, 16, 32, 64, 128], dtype=torch.uint8, device=device)


def pack(bits: torch.Tensor) -> torch.Tensor:
    """Bool [..., C] to uint8 [..., C / 8], channel c to bit c % 8."""
    bytes_ = bits.unflatten(-1, (-1, 8)) * places(bits.device)
    return bytes_.sum(dim=-1, dtype=torch.int32).to(torch.uint8)


def unpack(packed: torch.Tensor) -> torch.Tensor:
    """Uint8 [..., C / 8] to uint8 [..., C] of 0 and 1."""
    return ((packed.unsqueeze(-1) & places(packed.device)) != 0).flatten(-2).to(torch.uint8)


def signs(packed: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Uint8 [..., C / 8] to [..., C] of +1 and -1."""
    return unpack(packed).to(dtype) * 2 - 1
