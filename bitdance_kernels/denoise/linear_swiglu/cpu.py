"""linear_swiglu in C++: csrc/cpu/linear_swiglu."""

from __future__ import annotations

import torch

from bitdance_kernels.denoise._shared import panels_cpu


def unsupported(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> str | None:
    reason = panels_cpu.unsupported(weight, "linear_swiglu", tensors=(x,))
    return reason or panels_cpu.swiglu_unsupported(weight)


def run(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    return panels_cpu.swiglu(x, weight, bias)
