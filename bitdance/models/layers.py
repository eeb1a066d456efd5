"""Layers and helpers that networks share."""

from __future__ import annotations

import torch
from torch import nn

from bitdance_kernels import linear

__all__ = ["Linear", "compute_dtype"]


class Linear(nn.Linear):
    """``nn.Linear`` that runs the op ``linear`` on the CPU when gradients are off.

    The op is faster for few rows.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., in_features] to [..., out_features]."""
        if x.is_cpu and not torch.is_grad_enabled() and not torch.is_autocast_enabled("cpu"):
            return linear(x, self.weight, self.bias)
        return super().forward(x)


def compute_dtype(module: nn.Module) -> torch.dtype:
    """Dtype of a module's matrix products: autocast's where it is on, else the parameters'."""
    weight = next(module.parameters())
    kind = weight.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype
