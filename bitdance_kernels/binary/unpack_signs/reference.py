"""unpack_signs in plain PyTorch."""

from __future__ import annotations

import torch

from bitdance_kernels.binary._shared import bits


def run(packed: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return bits.signs(packed, dtype)
