"""pack_signs in plain PyTorch."""

from __future__ import annotations

import torch

from bitdance_kernels.binary._shared import bits


def run(x: torch.Tensor) -> torch.Tensor:
    return bits.pack(x > 0)
