"""lfq_quantize in plain PyTorch."""

from __future__ import annotations

import torch

from bitdance_kernels._dtypes import accumulate_dtype
from bitdance_kernels.binary import bits


def run(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    positive = x > 0
    return positive.to(x.dtype) * 2 - 1, bits.pack(positive)


def run_commitment(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    quantized, packed = run(x)
    distance = x.to(accumulate_dtype(x)) - quantized
    return quantized, packed, distance.square().mean().to(x.dtype)


def run_commitment_backward(
    grad: torch.Tensor, grad_commitment: torch.Tensor, x: torch.Tensor
) -> torch.Tensor:
    wide = x.to(accumulate_dtype(x))
    quantized = (x > 0).to(wide.dtype) * 2 - 1
    factor = grad_commitment.to(wide.dtype) * (2 / max(x.numel(), 1))
    return (grad + factor * (wide - quantized)).to(x.dtype)
