"""linear in plain PyTorch."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from bitdance_kernels._shared import packed_weight


def run(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    return F.linear(x, packed_weight.matrix(weight, dtype=x.dtype), bias).contiguous()


def run_out(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, out: torch.Tensor
) -> None:
    weight = packed_weight.matrix(weight, dtype=x.dtype)
    if not out.is_contiguous():
        out.copy_(F.linear(x, weight, bias))
        return
    rows = x.reshape(x.shape[:-1].numel(), x.shape[-1])
    written = out.view(len(rows), len(weight))
    if bias is None:
        torch.mm(rows, weight.t(), out=written)
    else:
        torch.addmm(bias, rows, weight.t(), out=written)


def functional_out(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, out: torch.Tensor
) -> None:
    out.copy_(F.linear(x, packed_weight.matrix(weight, dtype=x.dtype), bias))
