"""lfq_entropy: the entropy loss of the tokenizers, against the formula that stores N x 2^d."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from bitdance_kernels import lfq_entropy
from bitdance_kernels.testing import Call, Case, Timing


def samples(device: torch.device) -> Iterator[Call]:
    generator = torch.Generator().manual_seed(0)
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        for shape, bits in [((40, 16), 8), ((3, 7, 12), 4), ((5, 6), 1), ((2, 10), 5)]:
            x = 0.02 * torch.randn(shape, generator=generator)
            yield Call(f"{list(shape)} by {bits}, {dtype}", (x.to(device, dtype), bits))
    x = 0.02 * torch.randn(9, 12, generator=generator).to(device)
    yield Call("per group, other settings", (x, 3), {"per_group": True, "temperature": 0.05})
    yield Call("one token", (x[0], 12), {"eps": 1e-3})
    yield Call("no token", (x[:0], 4))


def _timing(tokens: int, bits: int) -> Timing:
    name = f"{tokens} tokens, {bits} bits, with backward"
    low = (bits + 1) // 2

    def make(device: torch.device) -> Call:
        return Call(name, (0.05 * torch.randn(tokens, bits, device=device), bits))

    # Three products with the distribution: one forward, two backward.
    products = 3 * 2 * tokens * 2**low * 2 ** (bits - low)
    return Timing(name, make, bytes=12 * tokens * bits, flops=products, backward=True)


def all_codes(
    x: torch.Tensor, group_bits: int, temperature: float = 0.01, eps: float = 1e-5, **_: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    index = torch.arange(2**group_bits, device=x.device)
    shifts = torch.arange(group_bits, device=x.device)
    codes = ((index[:, None] >> shifts) & 1).to(x.dtype) * 2 - 1
    logits = 2 * x.unflatten(-1, (-1, group_bits)) @ codes.T / temperature
    log_p = logits.log_softmax(-1)
    p = log_p.exp()
    mean = p.flatten(0, -2).mean(0)
    return -(p * log_p).sum(-1).mean(), -(mean * (mean + eps).log()).sum()


CASES = (
    Case(
        op=lfq_entropy,
        rule="staged",
        samples=samples,
        timings=(_timing(16384, 8), _timing(4096, 12), _timing(1024, 16)),
        baselines={"N x 2^d": all_codes},
    ),
)
