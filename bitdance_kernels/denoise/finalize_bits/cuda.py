"""finalize_bits in CUDA C++: csrc/cuda/finalize_bits."""

from __future__ import annotations

import torch

from bitdance_kernels._shared import native
from bitdance_kernels.denoise._shared import guidance


def unsupported(x0: torch.Tensor, cfg: torch.Tensor | None) -> str | None:
    return native.cuda_unsupported("finalize_bits", x0) or native.dtype_unsupported(x0.dtype)


def run(x0: torch.Tensor, cfg: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    shape = (guidance.rows(x0, cfg), *x0.shape[1:])
    signs = x0.new_empty(shape)
    packed = x0.new_empty((*shape[:-1], shape[-1] // 8), dtype=torch.uint8)
    x0 = x0.contiguous()
    cfg = None if cfg is None else cfg.to(torch.float32)
    native.cuda.finalize_bits(
        x0,
        cfg,
        signs,
        packed,
        signs.numel(),
        native.DTYPE_CODES[x0.dtype],
        *native.stream(x0.device),
    )
    return signs, packed
