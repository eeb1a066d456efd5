"""Layers that training and sampling run in different ways."""

from __future__ import annotations

import torch
from torch import nn

from bitdance_kernels import linear

__all__ = ["Linear"]


class Linear(nn.Linear):
    """``nn.Linear``, which is quicker without gradients on the CPU, for few rows."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., in_features] to [..., out_features]."""
        if x.is_cpu and not torch.is_grad_enabled() and not torch.is_autocast_enabled("cpu"):
            return linear(x, self.weight, self.bias)
        return super().forward(x)
