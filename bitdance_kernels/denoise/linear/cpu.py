"""linear in C++: csrc/cpu/linear."""

from __future__ import annotations

import torch

from bitdance_kernels._shared import native, packed_weight
from bitdance_kernels.denoise._shared import rows_cpu

MAX_ROWS = 512
"""Maximum of rows; with more, a library's product amortizes packing its operands."""


def unsupported(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> str | None:
    reason = rows_cpu.float32_unsupported("linear", x)
    if reason is not None:
        return reason
    if packed_weight.is_packed(weight):
        return "it takes a matrix, got a packed weight"
    rows = rows_cpu.size(x)[0]
    if rows > MAX_ROWS:
        return f"it is for at most {MAX_ROWS} rows, got {rows}"
    return None


def run(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    out = x.new_empty((*x.shape[:-1], weight.shape[0]))
    run_out(x, weight, bias, out)
    return out


native_functions_out = ("linear",)


def unsupported_out(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, out: torch.Tensor
) -> str | None:
    reason = unsupported(x, weight, bias)
    if reason is not None:
        return reason
    if not out.is_contiguous() and (out.dim() != 2 or out.stride(1) != 1):
        return "it writes rows whose features are adjacent"
    return None


def run_out(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, out: torch.Tensor
) -> None:
    native.cpu.linear(
        *rows_cpu.spaced(x, weight),
        None if bias is None else bias.contiguous(),
        out,
        *rows_cpu.size(x),
        weight.shape[0],
        torch.get_num_threads(),
    )
