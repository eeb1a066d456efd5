"""flip_bits and flip_signs in plain PyTorch."""

from __future__ import annotations

import torch

from bitdance_kernels.binary._shared import bits
from bitdance_kernels.philox import philox4x32

# Fourth counter word. Sampling noise has the small sample id there, so a flip never uses the words
# of a normal under the same seed.
DOMAIN = 0xB175F11D
_MASK = 0xFFFFFFFF


def run(
    packed: torch.Tensor,
    rate: float,
    key: torch.Tensor,
    r1: torch.Tensor | None,
    r2: torch.Tensor | None,
) -> torch.Tensor:
    shape = (*packed.shape[:-1], packed.shape[-1] * 8)
    return packed ^ bits.pack(_flips(shape, rate, key, r1, r2))


def run_signs(
    x: torch.Tensor,
    rate: float,
    key: torch.Tensor,
    r1: torch.Tensor | None,
    r2: torch.Tensor | None,
) -> torch.Tensor:
    return torch.where(_flips(x.shape, rate, key, r1, r2), -x, x).contiguous()


def _flips(
    shape: tuple[int, ...],
    rate: float,
    key: torch.Tensor,
    r1: torch.Tensor | None,
    r2: torch.Tensor | None,
) -> torch.Tensor:
    """Bool mask `shape` [..., C] of the bits that flip."""
    if r1 is not None and r2 is not None:
        return r1 < rate * r2
    count = torch.Size(shape).numel() // 8
    byte = torch.arange(count, dtype=torch.int64, device=key.device)
    seed, offset = key.unbind()
    domain = torch.full_like(byte, DOMAIN)
    counter = torch.stack(
        [byte & _MASK, byte >> 32, (offset & _MASK).expand(count), domain], dim=-1
    )
    words = philox4x32(counter, torch.stack([seed & _MASK, (seed >> 32) & _MASK]))  # [count, 4]
    halves = torch.stack([words & 0xFFFF, words >> 16], dim=-1).flatten(1)  # [count, 8]
    return (halves < round(rate * 2**15)).reshape(shape)
