"""RMSNorm with one gradient, for training on the CPU.

PyTorch records its norm there as six operators, each of which has a gradient of its own; the
formula passes over the data half as often.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd import forward_ad
from torch.autograd.function import once_differentiable

__all__ = ["applies", "rms_norm"]


def applies(x: torch.Tensor, weight: torch.Tensor) -> bool:
    """Whether `rms_norm` takes a call: float32, outside of autocast, transforms and traces."""
    return (
        torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
        and type(x) is torch.Tensor
        and x.is_cpu
        and x.dtype == weight.dtype == torch.float32
        and not torch.is_autocast_enabled("cpu")
        and not torch.jit.is_tracing()  # type: ignore[attr-defined]
        and not torch._C._are_functorch_transforms_active()
        and forward_ad._current_level < 0
    )


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """The norm of the last dimension, x / sqrt(mean(x^2) + eps) weight."""
    result: torch.Tensor = _Norm.apply(x, weight, eps)
    return result


class _Norm(torch.autograd.Function):
    """y = w x r with r = 1 / sqrt(mean(x^2) + eps).

    With u = x r the gradients are w' = sum(g u) and x' = r (g w - u mean(g w u)).
    """

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        rstd = x.square().mean(-1, keepdim=True).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, rstd)
        return torch.mul(x, rstd).mul_(weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None]:
        x, weight, rstd = ctx.saved_tensors
        unit = x * rstd
        product = grad * unit
        grad_weight = product.reshape(-1, x.shape[-1]).sum(0)
        share = (product @ weight).div_(-x.shape[-1]).unsqueeze(-1)
        grad_x = torch.mul(grad, weight).addcmul_(unit, share).mul_(rstd)
        return grad_x, grad_weight, None
