"""finalize_bits in C++: csrc/cpu/finalize_bits; without guidance it is lfq_quantize."""

from __future__ import annotations

import torch

from bitdance_kernels._shared import native
from bitdance_kernels.denoise._shared import guidance

fills_results = True
native_functions = ("finalize_bits", "lfq_quantize")


def unsupported(x0: torch.Tensor, cfg: torch.Tensor | None) -> str | None:
    reasons = (native.cpu_unsupported(function, x0) for function in native_functions)
    return next(filter(None, reasons), None) or native.dtype_unsupported(x0.dtype)


def run(x0: torch.Tensor, cfg: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    shape = (guidance.rows(x0, cfg), *x0.shape[1:])
    signs = x0.new_empty(shape)
    packed = x0.new_empty((*shape[:-1], shape[-1] // 8), dtype=torch.uint8)
    x0 = x0.contiguous()
    code, threads = native.DTYPE_CODES[x0.dtype], torch.get_num_threads()
    outputs = (signs, packed)
    if cfg is None:
        count, width = packed[..., 0].numel(), shape[-1]
        native.cpu.lfq_quantize(x0, *outputs, count, width, width, code, threads)
    else:
        cfg = cfg.to(torch.float32)
        native.cpu.finalize_bits(x0, cfg, *outputs, signs.numel(), code, threads)
    return signs, packed
