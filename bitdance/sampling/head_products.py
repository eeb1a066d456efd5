"""The matrix products of the head's blocks, by the library.

A block consists of branches, x + gate fc2(activation(fc1(n))) with n the modulated norm of x.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from bitdance.models.diffusion_head import EPS
from bitdance_kernels import adaln_norm, gated_residual_adaln, linear, patch_attention, swiglu

__all__ = ["Branch", "JoinedLinear", "LibraryProducts", "Modulation"]


class _JoinedParameter:
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


class JoinedLinear:
    """x W^T + b of one layer, or of several layers with the same input.

    Args:
        layers: the layers; their outputs are concatenated.
        dtype: dtype of the product.
    """

    def __init__(self, layers: list[nn.Linear], dtype: torch.dtype) -> None:
        self._joined = [
            _JoinedParameter([layer.weight for layer in layers], dtype),
            _JoinedParameter([layer.bias for layer in layers], dtype),
        ]
        self.weight, self.bias = (joined.tensor for joined in self._joined)

    def load(self) -> None:
        """Refresh the copies of the layers' parameters."""
        for joined in self._joined:
            joined.load()

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
    fc1: JoinedLinear
    activation: str
    fc2: JoinedLinear


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
