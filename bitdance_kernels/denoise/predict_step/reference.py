"""predict_step in plain PyTorch."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from bitdance_kernels._shared.dtypes import accumulate_dtype
from bitdance_kernels.denoise._shared import affine_step, modulated_norm


def run(
    h: torch.Tensor,
    scale: torch.Tensor,
    shift: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    x: torch.Tensor,
    table: torch.Tensor,
    step: torch.Tensor,
    in_weight: torch.Tensor,
    in_bias: torch.Tensor,
    time: torch.Tensor | None,
    cond: torch.Tensor | None,
    cfg: torch.Tensor | None,
    noise: torch.Tensor | None,
    keys: torch.Tensor | None,
    squash: bool,
    eps: float,
) -> tuple[torch.Tensor, ...]:
    x0 = F.linear(modulated_norm.forward(h, scale, shift, None, None, eps), weight, bias)
    if squash:
        x0 = (2 * torch.sigmoid(x0.to(accumulate_dtype(x0))) - 1).to(h.dtype)
    state = affine_step.forward(x, x0, table, step, cfg, noise, keys)
    stream = F.linear(state.to(h.dtype), in_weight, in_bias)
    stream = stream if cfg is None else torch.cat([stream, stream])
    if time is None or cond is None:
        return x0, state, stream, h.new_empty(0)
    following = (step.reshape(1) + 1).clamp_max(len(time) - 1)
    y = F.silu(time.index_select(0, following)[0] + cond)
    return x0, state, stream, y.contiguous()
