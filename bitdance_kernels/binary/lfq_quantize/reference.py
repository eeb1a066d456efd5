"""lfq_quantize in plain PyTorch."""

from __future__ import annotations

import torch

from bitdance_kernels.binary import bits


def run(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    positive = x > 0
    return positive.to(x.dtype) * 2 - 1, bits.pack(positive)
