"""finalize_bits in plain PyTorch."""

from __future__ import annotations

import torch

from bitdance_kernels.denoise import guidance


def run(x0: torch.Tensor, cfg: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    wide = torch.promote_types(x0.dtype, torch.float32)
    bits = guidance.combine(x0, cfg, wide) > 0
    # Filled into fresh memory: the results are contiguous whatever the strides of x0.
    signs = x0.new_full(bits.shape, -1).masked_fill_(bits, 1)
    weights = torch.tensor([1, 2, 4, 8, 16, 32, 64, 128], dtype=torch.uint8, device=x0.device)
    packed = (bits.unflatten(-1, (-1, 8)) * weights).sum(dim=-1, dtype=torch.uint8)
    return signs, packed.contiguous()
