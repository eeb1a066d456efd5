"""denoise_step in plain PyTorch: x' = a x + b x0_cfg + s eps."""

from __future__ import annotations

import torch

from bitdance_kernels import philox
from bitdance_kernels.denoise import guidance


def run(
    x: torch.Tensor,
    x0: torch.Tensor,
    table: torch.Tensor,
    step: torch.Tensor,
    cfg: torch.Tensor | None,
    noise: torch.Tensor | None,
    keys: torch.Tensor | None,
) -> torch.Tensor:
    step = step.reshape(1)
    # Picked on the device: the host never learns which step this is.
    a, b, s = table.index_select(0, step)[0].unbind()
    if noise is None:
        assert keys is not None
        # Counter word 1 is 0 for the initial noise, so step i has i + 1.
        noise = philox.noise(keys, step + 1, x.shape[1:].numel(), dtype=x.dtype).reshape(x.shape)
    guided = guidance.combine(x0, cfg, x.dtype)
    return (a * x + b * guided + s * noise).contiguous()
