"""swiglu in plain PyTorch."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from bitdance_kernels._dtypes import accumulate_dtype


def run(h: torch.Tensor) -> torch.Tensor:
    gate, value = h.to(accumulate_dtype(h)).chunk(2, dim=-1)
    return (F.silu(gate) * value).to(h.dtype)


def run_backward(grad: torch.Tensor, h: torch.Tensor) -> torch.Tensor:
    dtype = accumulate_dtype(h)
    gate, value = h.to(dtype).chunk(2, dim=-1)
    wide = grad.to(dtype)
    sigmoid = torch.sigmoid(gate)
    # d/dg of g sigmoid(g) is sigmoid(g) (1 + g (1 - sigmoid(g))).
    of_gate = wide * value * sigmoid * (1 + gate * (1 - sigmoid))
    of_value = wide * gate * sigmoid
    return torch.cat([of_gate, of_value], dim=-1).to(h.dtype)
