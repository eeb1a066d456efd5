"""The matrix products of the head's blocks, by three plans.

A block consists of branches, x + gate fc2(activation(fc1(n))) with n the modulated norm of x.
``PLANS`` has the plans by name: "library" runs library products with elementwise ops between them,
"fused" products that include what follows them, "skinny" also what precedes them. All compute the
same, in fewer and fewer launches.
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
    "PackedLinear",
    "SkinnyProducts",
    "plan",
]


class _PackedParameter:
    """A matrix or vector in the dtype of the products: rows of one or several parameters.

    A single parameter of that dtype is used itself, so changes of it are seen at once; otherwise
    ``tensor`` is a copy, which ``load`` refreshes.
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


class PackedLinear:
    """x W^T + b of one layer, or of several layers with the same input.

    Args:
        layers: the layers; their outputs are concatenated.
        dtype: dtype of the product.
    """

    def __init__(self, layers: list[nn.Linear], dtype: torch.dtype) -> None:
        self._packed = [
            _PackedParameter([layer.weight for layer in layers], dtype),
            _PackedParameter([layer.bias for layer in layers], dtype),
        ]
        self.weight, self.bias = (packed.tensor for packed in self._packed)

    def load(self) -> None:
        """Refresh the copies of the layers' parameters."""
        for packed in self._packed:
            packed.load()

    def empty(self, *rows: int) -> torch.Tensor:
        """An uninitialized result of that many rows."""
        return self.weight.new_empty(*rows, len(self.weight))

    def __call__(self, x: torch.Tensor, *, out: torch.Tensor) -> torch.Tensor:
        """The product [M, N] of `x` [M, K], written into `out`."""
        return linear(x, self.weight, self.bias, out=out)


@dataclass(frozen=True)
class Branch:
    """x + gate fc2(activation(fc1(n))), with n the modulated norm of x: an MLP or an attention.

    Attributes:
        norm: weight and bias of the LayerNorm.
        fc1: product of n.
        activation: "swiglu", "silu" or "attention".
        fc2: product whose result is added.
    """

    norm: tuple[torch.Tensor, torch.Tensor]
    fc1: PackedLinear
    activation: str
    fc2: PackedLinear


@dataclass(frozen=True)
class Modulation:
    """Modulations of one evaluation, each a view [M, C].

    Attributes:
        norms: scale and shift of the norm of each branch, then of the final layer.
        gates: gate of each branch.
    """

    norms: tuple[tuple[torch.Tensor, torch.Tensor], ...]
    gates: tuple[torch.Tensor, ...]


class LibraryProducts:
    """Blocks as library products with elementwise ops between them.

    The end of a branch and the norm of the next one are one pass.

    Args:
        branches: branches of all blocks, in order.
        rows: R, number of patches.
        patch: P, tokens of a patch.
        num_heads: heads of the attention.
    """

    applies_final_norm = True
    """Whether ``blocks`` returns the result of the final layer's norm, or else the input of it."""

    def __init__(self, branches: list[Branch], rows: int, patch: int, num_heads: int) -> None:
        self.branches, self.num_heads = branches, num_heads
        self.norms = [*(branch.norm for branch in branches), (None, None)]
        self.shape = (rows, patch)
        # Branches of a kind run one after another, so they share a buffer.
        products = {n: p for b in branches for n, p in ((b.activation, b.fc1), ("fc2", b.fc2))}
        self.buffers = {name: product.empty(rows * patch) for name, product in products.items()}

    def blocks(self, x: torch.Tensor, modulation: Modulation) -> torch.Tensor:
        """The stream [M, C] through all blocks, to the final layer's modulated norm [M, C]."""
        n = adaln_norm(x, *modulation.norms[0], *self.norms[0], eps=EPS)
        for i, branch in enumerate(self.branches):
            h = branch.fc1(n, out=self.buffers[branch.activation])
            h = branch.fc2(self.activate(branch.activation, h), out=self.buffers["fc2"])
            x, n = gated_residual_adaln(
                x, h, modulation.gates[i], *modulation.norms[i + 1], *self.norms[i + 1], eps=EPS
            )
        return n

    def activate(self, kind: str, h: torch.Tensor) -> torch.Tensor:
        """What is between the two products of a branch."""
        if kind == "swiglu":
            return swiglu(h)
        if kind == "silu":
            return F.silu(h)
        return patch_attention(h.unflatten(0, self.shape), self.num_heads).flatten(0, 1)


class FusedProducts(LibraryProducts):
    """Blocks as products that include what follows them, for many rows.

    SwiGLU and the gated sum are applied before a product is stored.
    """

    applies_final_norm = False

    def blocks(self, x: torch.Tensor, modulation: Modulation) -> torch.Tensor:
        """The stream [M, C] through all blocks, to the stream before the final layer."""
        for i, branch in enumerate(self.branches):
            h = self.first_half(branch, x, *modulation.norms[i])
            fc2 = branch.fc2
            x = linear_gated_residual(h, fc2.weight, fc2.bias, x, modulation.gates[i])
        return x

    def first_half(
        self, branch: Branch, x: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor
    ) -> torch.Tensor:
        """Input of the second product of a branch."""
        n = adaln_norm(x, scale, shift, *branch.norm, eps=EPS)
        if branch.activation == "swiglu":
            return linear_swiglu(n, branch.fc1.weight, branch.fc1.bias)
        return self.activate(branch.activation, branch.fc1(n, out=self.buffers[branch.activation]))


class SkinnyProducts(FusedProducts):
    """Blocks as products that also include what precedes them, for few rows.

    While its weights arrive, a product has the time to normalize its input.
    """

    def first_half(
        self, branch: Branch, x: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor
    ) -> torch.Tensor:
        """Input of the second product of a branch."""
        arguments = (x, scale, shift, branch.fc1.weight, branch.fc1.bias, *branch.norm)
        if branch.activation == "swiglu":
            return adaln_linear_swiglu(*arguments, eps=EPS)
        return self.activate(branch.activation, adaln_linear(*arguments, eps=EPS))


PLANS = {"library": LibraryProducts, "fused": FusedProducts, "skinny": SkinnyProducts}
"""The plans by name."""

FASTEST = ((0, "library"),)
"""(min_tokens, plan): the plan of "auto" for batches of at least that many tokens.

No card has compared whole plans: ``python -m benchmarks model head_plans`` does. Product by product
an H100 prefers the library's, but for those of "fused" at 32 rows (benchmarks/results/gpu.json).
"""


def plan(name: str, tokens: int) -> type[LibraryProducts]:
    """The plan of that name; for "auto" the fastest one for that many tokens.

    Raises:
        ValueError: there is no such plan.
    """
    if name == "auto":
        name = [plan for min_tokens, plan in FASTEST if tokens >= min_tokens][-1]
    if name not in PLANS:
        raise ValueError(f"products must be one of auto, {', '.join(PLANS)}, got {name!r}")
    return PLANS[name]
