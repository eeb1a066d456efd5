"""The SwiGLU gate in PyTorch, for the references."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from bitdance_kernels._shared.dtypes import accumulate_dtype


def swiglu_gate(h: torch.Tensor) -> torch.Tensor:
    """silu(h1) h2 of h = [h1 | h2], rounded once."""
    first, second = h.to(accumulate_dtype(h)).chunk(2, dim=-1)
    return (F.silu(first) * second).to(h.dtype)
