"""denoise_step in C++: csrc/cpu/denoise_step."""

from __future__ import annotations

import torch

from bitdance_kernels._shared import native

fills_results = True


def unsupported(x: torch.Tensor, x0: torch.Tensor, *_: object) -> str | None:
    return native.cpu_unsupported("denoise_step", x, x0) or native.dtype_unsupported(
        x.dtype, x0.dtype
    )


def run(
    x: torch.Tensor,
    x0: torch.Tensor,
    table: torch.Tensor,
    step: torch.Tensor,
    cfg: torch.Tensor | None,
    noise: torch.Tensor | None,
    keys: torch.Tensor | None,
) -> torch.Tensor:
    y = x.new_empty(x.shape)
    x, x0, table = x.contiguous(), x0.contiguous(), table.contiguous()
    cfg = None if cfg is None else cfg.to(torch.float32)
    noise = None if noise is None else noise.contiguous()
    keys = None if keys is None else keys.contiguous()
    native.cpu.denoise_step(
        x,
        x0,
        table,
        table.shape[0],
        step,
        step.element_size(),
        cfg,
        noise,
        keys,
        y,
        x.shape[0],
        x.shape[1:].numel(),
        native.DTYPE_CODES[x0.dtype],
        torch.get_num_threads(),
    )
    return y
