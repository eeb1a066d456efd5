"""linear in C++: csrc/cpu/linear."""

from __future__ import annotations

import torch

from bitdance_kernels._shared import native, packed_weight
from bitdance_kernels.denoise._shared import rows_cpu

MAX_ROWS = 512
"""Maximum of rows for a matrix; with more, a library's product amortizes packing its operands."""

MAX_HALF_ROWS = 256
"""The same for rows in half precision and an int8 weight, which the library widens to multiply."""


def unsupported(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> str | None:
    if packed_weight.is_int8(weight):
        return rows_cpu.unsupported("linear_int8", x) or _too_many_halves(x)
    name = "linear_panels" if packed_weight.is_panels(weight) else "linear"
    reason = rows_cpu.float32_unsupported(name, x)
    if reason is not None:
        return reason
    if packed_weight.is_packed(weight):
        return "it takes a matrix or panels, got a weight packed for tensor cores"
    rows = rows_cpu.size(x)[0]
    if rows > MAX_ROWS and not packed_weight.is_panels(weight):
        return f"it is for at most {MAX_ROWS} rows, got {rows}"
    return None


def _too_many_halves(x: torch.Tensor) -> str | None:
    rows = rows_cpu.size(x)[0]
    if x.dtype == torch.float32 or rows <= MAX_HALF_ROWS:
        return None
    return f"it is for at most {MAX_HALF_ROWS} rows of {x.dtype}, got {rows}"


def run(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    out = x.new_empty((*x.shape[:-1], packed_weight.features(weight)))
    run_out(x, weight, bias, out)
    return out


native_functions = native_functions_out = ("linear", "linear_panels", "linear_int8")


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
    if packed_weight.is_int8(weight) and x.dtype != torch.float32:
        wide = torch.empty(out.shape, dtype=torch.float32, device=out.device)
        run_out(x.float(), weight, None if bias is None else bias.float(), wide)
        out.copy_(wide)
        return
    features, threads = packed_weight.features(weight), torch.get_num_threads()
    bias = None if bias is None else bias.contiguous()
    if packed_weight.is_panels(weight):
        (x,), panels, size = rows_cpu.spaced(x), weight.contiguous(), rows_cpu.size(x)
        int8 = packed_weight.is_int8(weight)
        product = native.cpu.linear_int8 if int8 else native.cpu.linear_panels
        product(x, panels, bias, out, *size, features, threads)
        return
    native.cpu.linear(*rows_cpu.spaced(x, weight), bias, out, *rows_cpu.size(x), features, threads)
