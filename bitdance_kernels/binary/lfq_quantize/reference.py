"""lfq_quantize in plain PyTorch."""

from __future__ import annotations

from typing import Any

import torch

from bitdance_kernels._shared.dtypes import accumulate_dtype
from bitdance_kernels.binary._shared import bits


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


def functional(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """``run`` with the derivative of the op, that of the identity."""
    quantized, packed = run(x)
    return _StraightThrough.apply(x, quantized), packed


def functional_commitment(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """``run_commitment`` with the derivative of the op."""
    quantized, packed, commitment = run_commitment(x)
    return _StraightThrough.apply(x, quantized), packed, commitment


class _StraightThrough(torch.autograd.Function):
    """`value` with the derivative of `x`."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: torch.Tensor, quantized: torch.Tensor) -> torch.Tensor:
        return quantized.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None]:
        return grads[0], None

    @staticmethod
    def jvp(ctx: Any, *tangents: torch.Tensor) -> torch.Tensor:
        return tangents[0].clone()
