"""swiglu in plain PyTorch."""

from __future__ import annotations

import torch

from bitdance_kernels._shared.dtypes import accumulate_dtype
from bitdance_kernels.denoise._shared import activations


def run(h: torch.Tensor) -> torch.Tensor:
    return activations.swiglu_gate(h)


def run_backward(grad: torch.Tensor, h: torch.Tensor) -> torch.Tensor:
    dtype = accumulate_dtype(h)
    gate, value = h.to(dtype).chunk(2, dim=-1)
    wide = grad.to(dtype)
    sigmoid = torch.sigmoid(gate)
    # d/dg of g sigmoid(g) is sigmoid(g) (1 + g (1 - sigmoid(g))).
    grad_gate = wide * value * sigmoid * (1 + gate * (1 - sigmoid))
    grad_value = wide * gate * sigmoid
    return torch.cat([grad_gate, grad_value], dim=-1).to(h.dtype)
