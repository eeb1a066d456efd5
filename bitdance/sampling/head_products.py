"""The products of the head's blocks, and the three ways to do them with what surrounds them.

A block is branches, x + gate last(inner(first(n))) with n the modulated norm of x. ``PLANS`` has
the ways by name: library products with elementwise ops between them; products that take in what
follows; products that take in what comes before as well. All compute the same, in fewer and fewer
launches.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from bitdance.models.diffusion_head import EPS
from bitdance_kernels import (
    adaln_linear,
    adaln_linear_swiglu,
    adaln_norm,
    gated_residual_adaln,
    linear,
    linear_gated_residual,
    linear_swiglu,
    patch_attention,
    swiglu,
)

__all__ = [
    "PLANS",
    "Branch",
    "FusedProducts",
    "LibraryProducts",
    "Modulation",
    "Product",
    "SkinnyProducts",
    "plan",
]


class _Packed:
    """A matrix or vector in the dtype of the products: rows of one or several parameters.

    Where that is a single parameter's own dtype it is the parameter itself, which is followed
    wherever training takes it; otherwise a copy, made anew by every ``load``.
    """

    def __init__(self, parameters: list[torch.Tensor], dtype: torch.dtype) -> None:
        self._parameters = [parameter.detach() for parameter in parameters]
        first = self._parameters[0]
        self._copied = len(parameters) > 1 or first.dtype != dtype
        self.tensor = first
        if self._copied:
            rows = sum(len(parameter) for parameter in parameters)
            self.tensor = torch.empty(rows, *first.shape[1:], dtype=dtype, device=first.device)

    def load(self) -> None:
        if self._copied:
            sizes = [len(parameter) for parameter in self._parameters]
            for part, parameter in zip(self.tensor.split(sizes), self._parameters, strict=True):
                part.copy_(parameter)


class Product:
    """x W^T + b, of one layer or of several that read the same input.

    Args:
        layers: their outputs follow one another.
        dtype: to compute in.
    """

    def __init__(self, layers: list[nn.Linear], dtype: torch.dtype) -> None:
        self._packed = [
            _Packed([layer.weight for layer in layers], dtype),
            _Packed([layer.bias for layer in layers], dtype),
        ]
        self.weight, self.bias = (packed.tensor for packed in self._packed)

    def load(self) -> None:
        """Take the layers' parameters as they are now."""
        for packed in self._packed:
            packed.load()

    def new(self, *rows: int) -> torch.Tensor:
        """Memory for the product of as many rows."""
        return self.weight.new_empty(*rows, len(self.weight))

    def into(self, out: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """Write the product [M, N] of `x` [M, K] into `out` and return it."""
        return linear(x, self.weight, self.bias, out=out)


@dataclass(frozen=True)
class Branch:
    """x + gate last(inner(first(n))), with n the modulated norm of x: a network or an attention.

    Attributes:
        norm: weight and bias of its LayerNorm.
        first: the product that reads n.
        inner: "swiglu", "silu" or "attention".
        last: the product whose result is added.
    """

    norm: tuple[torch.Tensor, torch.Tensor]
    first: Product
    inner: str
    last: Product


@dataclass(frozen=True)
class Modulation:
    """Views of one evaluation's modulations, each [M, C].

    Attributes:
        norms: scale and shift of every branch's norm, then the final layer's.
        gates: of every branch.
    """

    norms: tuple[tuple[torch.Tensor, torch.Tensor], ...]
    gates: tuple[torch.Tensor, ...]


class LibraryProducts:
    """The blocks by library products, with elementwise ops between them.

    The end of a branch and the norm of the next are one pass.

    Args:
        branches: of all blocks.
        rows: patches R.
        patch: tokens of a patch.
        num_heads: of the attention.
    """

    through_norm = True
    """Whether ``blocks`` ends with the final layer's norm, and not with the stream before it."""

    def __init__(self, branches: list[Branch], rows: int, patch: int, num_heads: int) -> None:
        self.branches, self.num_heads = branches, num_heads
        self.norms = [*(branch.norm for branch in branches), (None, None)]
        self.shape = (rows, patch)
        # Branches of a kind take turns, so they share memory.
        products = {n: p for b in branches for n, p in ((b.inner, b.first), ("last", b.last))}
        self.memory = {name: product.new(rows * patch) for name, product in products.items()}

    def blocks(self, x: torch.Tensor, modulation: Modulation) -> torch.Tensor:
        """The stream [M, C] through all blocks, to the final layer's modulated norm [M, C]."""
        n = adaln_norm(x, *modulation.norms[0], *self.norms[0], eps=EPS)
        for i, branch in enumerate(self.branches):
            h = branch.first.into(self.memory[branch.inner], n)
            h = branch.last.into(self.memory["last"], self.inner(branch.inner, h))
            x, n = gated_residual_adaln(
                x, h, modulation.gates[i], *modulation.norms[i + 1], *self.norms[i + 1], eps=EPS
            )
        return n

    def inner(self, kind: str, h: torch.Tensor) -> torch.Tensor:
        """What stands between the two products of a branch."""
        if kind == "swiglu":
            return swiglu(h)
        if kind == "silu":
            return F.silu(h)
        return patch_attention(h.unflatten(0, self.shape), self.num_heads).flatten(0, 1)


class FusedProducts(LibraryProducts):
    """The blocks by products that take in what follows them: for many rows.

    The gate of a SwiGLU network and the gated sum are done where the product is made, so that
    neither result of a branch's products is stored before them.
    """

    through_norm = False

    def blocks(self, x: torch.Tensor, modulation: Modulation) -> torch.Tensor:
        """The stream [M, C] through all blocks, to the stream before the final layer."""
        for i, branch in enumerate(self.branches):
            h = self.first(branch, x, *modulation.norms[i])
            last = branch.last
            x = linear_gated_residual(h, last.weight, last.bias, x, modulation.gates[i])
        return x

    def first(
        self, branch: Branch, x: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor
    ) -> torch.Tensor:
        """What the last product of a branch reads."""
        n = adaln_norm(x, scale, shift, *branch.norm, eps=EPS)
        if branch.inner == "swiglu":
            return linear_swiglu(n, branch.first.weight, branch.first.bias)
        return self.inner(branch.inner, branch.first.into(self.memory[branch.inner], n))


class SkinnyProducts(FusedProducts):
    """The blocks by products that take in what comes before them too: for few rows.

    They wait for their weights, and have the time for the norm of their input.
    """

    def first(
        self, branch: Branch, x: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor
    ) -> torch.Tensor:
        """What the last product of a branch reads."""
        arguments = (x, scale, shift, branch.first.weight, branch.first.bias, *branch.norm)
        if branch.inner == "swiglu":
            return adaln_linear_swiglu(*arguments, eps=EPS)
        return self.inner(branch.inner, adaln_linear(*arguments, eps=EPS))


PLANS = {"library": LibraryProducts, "fused": FusedProducts, "skinny": SkinnyProducts}
"""The ways to divide a head's work between products and what surrounds them, by name."""

FASTEST = ((0, "library"),)
"""Tokens of a batch, and the plan that is fastest from there on; what "auto" takes.

To be measured: no card has compared them yet, and until one has it is the library's. The command
that does is in benchmarks/results/README.md.
"""


def plan(name: str, tokens: int) -> type[LibraryProducts]:
    """The plan of that name, or for "auto" the fastest for so many tokens.

    Raises:
        ValueError: there is no such plan.
    """
    if name == "auto":
        name = [fastest for least, fastest in FASTEST if tokens >= least][-1]
    if name not in PLANS:
        raise ValueError(f"products must be one of auto, {', '.join(PLANS)}, got {name!r}")
    return PLANS[name]
