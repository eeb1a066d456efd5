"""Layers and helpers that networks share."""

from __future__ import annotations

import torch
from torch import nn

from bitdance.models import rms_gradient
from bitdance_kernels import linear, rms_norm

__all__ = ["Linear", "RMSNorm", "compute_dtype", "is_autocast_enabled"]


class Linear(nn.Linear):
    """``nn.Linear`` that runs the op ``linear`` on the CPU when gradients are off.

    The op is faster for few rows.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., in_features] to [..., out_features]."""
        return linear(x, self.weight, self.bias) if _takes_ops(x) else super().forward(x)


class RMSNorm(nn.RMSNorm):
    """``nn.RMSNorm`` of the last dimension that runs the op ``rms_norm`` where ``Linear`` does.

    With gradients it has one on the CPU, see ``rms_gradient``.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., C] to [..., C]."""
        if self.eps is None or len(self.normalized_shape) != 1:
            return super().forward(x)
        if _takes_ops(x):
            return rms_norm(x, self.weight, eps=self.eps)
        if self.elementwise_affine and rms_gradient.applies(x, self.weight):
            return rms_gradient.rms_norm(x, self.weight, self.eps)
        return super().forward(x)


def _takes_ops(x: torch.Tensor) -> bool:
    return x.is_cpu and not torch.is_grad_enabled() and not torch.is_autocast_enabled("cpu")


def compute_dtype(module: nn.Module) -> torch.dtype:
    """Dtype of a module's matrix products: autocast's where it is on, else the parameters'."""
    weight = next(module.parameters())
    kind = weight.device.type
    return torch.get_autocast_dtype(kind) if is_autocast_enabled(kind) else weight.dtype


def is_autocast_enabled(kind: str) -> bool:
    """``torch.is_autocast_enabled`` of a device type, also of the meta device, which has none."""
    return kind != "meta" and torch.is_autocast_enabled(kind)
