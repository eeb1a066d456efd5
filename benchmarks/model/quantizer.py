"""A tokenizer's quantization with all its losses, against vector-quantize-pytorch."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from benchmarks import peers
from benchmarks.model import Comparison
from bitdance_kernels import lfq_entropy, lfq_quantize_commitment

_SIZES = ((1024, 8), (8192, 8), (64, 16))


def comparisons() -> Iterator[Comparison]:
    """Codes, commitment and entropies, with gradients, for tokens of one group."""
    for tokens, bits in _SIZES:
        yield quantization(tokens, bits)


def quantization(tokens: int, bits: int) -> Comparison:
    """The ways to quantize so many tokens of so many bits."""
    x = 0.05 * torch.randn(tokens, bits)
    layer: list[Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]] = []

    def ours(x: Tensor) -> tuple[Tensor, Tensor]:
        quantized, _, commitment = lfq_quantize_commitment(x)
        per_sample, codebook = lfq_entropy(x, bits)
        return quantized, per_sample - codebook + commitment

    def theirs(x: Tensor) -> tuple[Tensor, Tensor]:
        if not layer:
            layer.append(peers.lfq_layer(bits))
        quantized, _, loss = layer[0](x)
        return quantized, loss

    def step(way: Callable[[Tensor], tuple[Tensor, Tensor]]) -> Tensor:
        with torch.enable_grad():
            given = x.detach().requires_grad_()
            quantized, loss = way(given)
            (grad,) = torch.autograd.grad(quantized.sum() + loss, given)
        return grad

    ways = {"bitdance": lambda: step(ours), "vector-quantize-pytorch": lambda: step(theirs)}
    return Comparison("LFQ layer", f"{tokens} tokens, {bits} bits, with gradients", ways)
