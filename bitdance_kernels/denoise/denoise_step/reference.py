"""denoise_step in plain PyTorch: x' = a x + b x0_cfg + s eps."""

from __future__ import annotations

import torch

from bitdance_kernels.denoise._shared import affine_step


def run(
    x: torch.Tensor,
    x0: torch.Tensor,
    table: torch.Tensor,
    step: torch.Tensor,
    cfg: torch.Tensor | None,
    noise: torch.Tensor | None,
    keys: torch.Tensor | None,
) -> torch.Tensor:
    return affine_step.forward(x, x0, table, step, cfg, noise, keys)
