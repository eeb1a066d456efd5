"""denoise_step_linear in plain PyTorch."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from bitdance_kernels._shared import moments, packed_weight
from bitdance_kernels._shared.dtypes import accumulate_dtype
from bitdance_kernels.denoise._shared import affine_step


def run(
    x: torch.Tensor,
    x0: torch.Tensor,
    table: torch.Tensor,
    step: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    cfg: torch.Tensor | None,
    noise: torch.Tensor | None,
    keys: torch.Tensor | None,
    squash: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    if squash:
        x0 = (2 * torch.sigmoid(x0.to(accumulate_dtype(x0)).contiguous()) - 1).to(x0.dtype)
    state = affine_step.forward(x, x0, table, step, cfg, noise, keys)
    half = F.linear(state.to(weight.dtype), packed_weight.matrix(weight), bias)
    stream = half.contiguous() if cfg is None else torch.cat([half, half])
    return state, stream, moments.of(stream)
