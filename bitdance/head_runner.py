"""The diffusion head as sampling runs it: what does not change is computed once.

Of an evaluation of the network little is new: the state, and by it the stream through the blocks.
``HeadRunner`` keeps the rest. The embedded times belong to the schedule; ``cond_embed`` to the AR
step; weights in the dtype of the products to the run. All adaLN projections and the final layer's
are one product, and where rows are few that of all evaluations of an AR step is one. Every buffer
is made once, so that the same memory serves each evaluation and a captured graph stays valid.

``PlainHead`` evaluates the network as published, for comparison.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Protocol, cast

import torch
import torch.nn.functional as F
from torch import nn

from bitdance.diffusion_head import EPS, HeadNetwork, PatchBlock, TokenBlock
from bitdance_kernels import adaln_norm, gated_residual_adaln, patch_attention, swiglu

__all__ = ["Head", "HeadRunner", "LibraryProducts", "PlainHead", "compute_dtype"]

MOST_TABLE_ROWS = 64
"""Tokens of a batch up to which the modulations of all evaluations of an AR step are one product.

So few rows wait for weights, which are then read once. More are better off with a product an
evaluation, whose result is still in the cache where it is used.
"""


class Head(Protocol):
    """What the sampler asks of a head."""

    network: HeadNetwork

    def load(self) -> None:
        """Take the network's parameters as they are now; before every run."""

    def precision(self) -> AbstractContextManager[object]:
        """What ``begin`` and ``predict`` are called in."""

    def begin(self, cond: torch.Tensor) -> None:
        """Take the conditioning [R, (P,) ch_cond] of an AR step."""

    def predict(self, i: int, x: torch.Tensor) -> torch.Tensor:
        """Clean bits [R, (P,) ch_target] of evaluation `i`.

        The state `x` has as many rows, or half as many, which then stand for both halves.
        """


def compute_dtype(module: nn.Module) -> torch.dtype:
    """Dtype of a module's products: that of autocast where it is on, else of the weights."""
    weight = next(module.parameters())
    kind = weight.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype


class PlainHead:
    """The network called as published: everything anew in every evaluation.

    Args:
        network: the head's.
        times: [S + 1], of the evaluations.
    """

    def __init__(self, network: HeadNetwork, times: torch.Tensor) -> None:
        self.network, self.times = network, times

    def load(self) -> None:
        """See ``Head``: they are read anew all the time."""

    def precision(self) -> AbstractContextManager[object]:
        """See ``Head``: whatever the caller is in."""
        return nullcontext()

    def begin(self, cond: torch.Tensor) -> None:
        """See ``Head``."""
        self.cond = cond

    def predict(self, i: int, x: torch.Tensor) -> torch.Tensor:
        """See ``Head``."""
        x = x if len(x) == len(self.cond) else torch.cat([x, x])
        return self.network(x.to(self.cond.dtype), self.times[i].expand(len(x)), self.cond)


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
        self._transposed = self.weight.t()

    def load(self) -> None:
        """Take the layers' parameters as they are now."""
        for packed in self._packed:
            packed.load()

    def new(self, *rows: int) -> torch.Tensor:
        """Memory for the product of as many rows."""
        return self.weight.new_empty(*rows, len(self.weight))

    def into(self, out: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """Write the product [M, N] of `x` [M, K] into `out` and return it."""
        return torch.addmm(self.bias, x, self._transposed, out=out)


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

    The end of a branch and the norm of the next are one pass. This is one plan of how products and
    elementwise work are divided; another is a class with the same methods.

    Args:
        branches: of all blocks.
        rows: patches R.
        patch: tokens of a patch.
        num_heads: of the attention.
    """

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


class HeadRunner:
    """A head's network with the memory for batches of one size.

    Args:
        network: the head's.
        rows: R, patches in a batch, both halves of a guided one counted.
        patch: P, tokens of a patch; None for states without that dimension.
        times: [S + 1] float32, of the evaluations.
        dtype: of the products and of the stream.
    """

    def __init__(
        self,
        network: HeadNetwork,
        rows: int,
        patch: int | None,
        times: torch.Tensor,
        dtype: torch.dtype,
    ) -> None:
        config = network.config
        self.network, self.times, self.dtype = network, times, dtype
        self.fits = (rows, patch, len(times))
        self._shape = (rows,) if patch is None else (rows, patch)
        M, evaluations = rows * (patch or 1), len(times)
        # Made in inference mode, memory could not be written outside of it.
        with torch.inference_mode(False), torch.no_grad():
            branches = [b for block in network.res_blocks for b in _branches(block, dtype)]
            self.cond_embed = Product([network.cond_embed], dtype)
            self.input_proj = Product([network.input_proj], dtype)
            self.final = Product([network.final_layer.linear], dtype)
            self.ada_ln = Product(
                [*network.ada_ln_blocks, network.final_layer.ada_ln_modulation], dtype
            )
            products = [p for b in branches for p in (b.first, b.last)]
            self._loaded = [
                *products, self.cond_embed, self.input_proj, self.final, self.ada_ln
            ]  # fmt: skip
            self.products = LibraryProducts(branches, rows, patch or 1, config.num_heads)

            width = config.ch_latent
            new = times.new_empty
            self._time = new(evaluations, 1, width, dtype=dtype)
            self._state = new(M, config.ch_target, dtype=dtype)
            self._cond = self.cond_embed.new(M)
            self._stream = self.input_proj.new(M)
            self._x0 = self.final.new(M)
            self.at_once = M <= MOST_TABLE_ROWS
            kept = evaluations if self.at_once else 1
            self._y = new(kept, M, width, dtype=dtype)
            self._table = self.ada_ln.new(kept, M)
            self._modulations = [self._views(row) for row in self._table]

    def load(self) -> None:
        """Take the network's parameters as they are now. Cheaper than to know if they changed."""
        for product in self._loaded:
            product.load()
        self._time.copy_(self.network.time_embed(self.times)[:, None])

    def precision(self) -> AbstractContextManager[object]:
        """See ``Head``: all is in the dtype of the products, so autocast has nothing to do."""
        kind = self.times.device.type
        return (
            torch.autocast(kind, enabled=False)
            if torch.is_autocast_enabled(kind)
            else nullcontext()
        )

    def begin(self, cond: torch.Tensor) -> None:
        """See ``Head``."""
        self.cond_embed.into(self._cond, cond.flatten(0, -2).to(self.dtype))
        if self.at_once:
            self._modulate(self._time)

    def predict(self, i: int, x: torch.Tensor) -> torch.Tensor:
        """See ``Head``; valid until the next call."""
        # Both halves of a guided batch share the state.
        halves = self._shape[0] // max(1, len(x))
        self._state.view(halves, *x.shape).copy_(x)
        if not self.at_once:
            self._modulate(self._time[i : i + 1])
        h = self.input_proj.into(self._stream, self._state)
        n = self.products.blocks(h, self._modulations[i if self.at_once else 0])
        x0 = self.final.into(self._x0, n).view(*self._shape, len(self.final.bias))
        return 2 * torch.sigmoid(x0) - 1 if self.network.config.architecture == "t2i" else x0

    def _modulate(self, time: torch.Tensor) -> None:
        y = F.silu(torch.add(time, self._cond, out=self._y), inplace=True)
        self.ada_ln.into(self._table.flatten(0, 1), y.flatten(0, 1))

    def _views(self, row: torch.Tensor) -> Modulation:
        """Of one evaluation's modulations [M, ...], one projection's after another's."""
        config, blocks = self.network.config, len(self.network.res_blocks)
        width = config.ch_latent
        chunks = row.split(width, dim=-1)
        of_block = 3 if config.architecture == "mlp" else 6
        # Where the chunks of every branch begin: blocks may share a projection.
        of_blocks = (i * config.depth_adanln // blocks * of_block for i in range(blocks))
        starts = [start + branch for start in of_blocks for branch in range(0, of_block, 3)]
        norms = [(chunks[start], chunks[start + 1]) for start in starts]
        gates = [chunks[start + 2] for start in starts]
        return Modulation((*norms, (chunks[-2], chunks[-1])), tuple(gates))


def _branches(block: nn.Module, dtype: torch.dtype) -> list[Branch]:
    """The branches of a block of the network, in order."""

    def branch(norm: nn.LayerNorm, first: nn.Linear, inner: str, last: nn.Linear) -> Branch:
        affine = (norm.weight.detach(), norm.bias.detach())
        return Branch(affine, Product([first], dtype), inner, Product([last], dtype))

    if isinstance(block, TokenBlock):
        return [branch(block.norm, block.w1, "swiglu", block.w2)]
    assert isinstance(block, PatchBlock)
    attention = branch(block.norm1, block.attn.wqkv, "attention", block.attn.wo)
    if block.use_swiglu:
        return [attention, branch(block.norm2, block.w1, "swiglu", block.w2)]
    first, _, last = cast(Iterable[nn.Linear], block.mlp)
    return [attention, branch(block.norm2, first, "silu", last)]
