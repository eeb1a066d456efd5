"""The head's blocks and the sampler's step, by library products.

A block consists of branches, x + gate fc2(activation(fc1(n))) with n the modulated norm of x.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import nn

from bitdance.models.diffusion_head import EPS, HeadNetwork, PatchBlock, TokenBlock
from bitdance.models.quantization import AnyLinear
from bitdance.sampling.weights import JoinedLinear, QuantizedProduct
from bitdance_kernels import adaln_norm, denoise_step, gated_residual_adaln, patch_attention, swiglu

__all__ = ["Branch", "HeadProducts", "LibraryProducts", "Modulation", "Step", "branches"]


@dataclass(frozen=True)
class Step:
    """Arguments of ``denoise_step`` after an evaluation.

    Attributes:
        table: coefficients [S + 1, 3].
        index: number of the step, on the device.
        cfg: guidance scale, on the device; None for none.
        noise: noise of the step, or None to draw it with `keys`.
        keys: Philox keys, int64 [R, 3].
    """

    table: torch.Tensor
    index: torch.Tensor
    cfg: torch.Tensor | None
    noise: torch.Tensor | None = None
    keys: torch.Tensor | None = None

    def __call__(self, x: torch.Tensor, x0: torch.Tensor) -> torch.Tensor:
        """The state that follows `x`, whose prediction is `x0`."""
        return denoise_step(
            x, x0, self.table, self.index, cfg=self.cfg, noise=self.noise, keys=self.keys
        )


@dataclass(frozen=True)
class Branch:
    """Layers of x + gate fc2(activation(fc1(norm(x)))): an MLP or an attention.

    Attributes:
        norm: the LayerNorm, which is modulated.
        fc1: product of the norm.
        activation: "swiglu", "silu" or "attention".
        fc2: product whose result is added.
    """

    norm: nn.LayerNorm
    fc1: AnyLinear
    activation: str
    fc2: AnyLinear

    @property
    def affine(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Weight and bias of the norm."""
        return self.norm.weight.detach(), self.norm.bias.detach()


def branches(network: HeadNetwork) -> list[Branch]:
    """Branches of all blocks of a network, in order."""
    return [branch for block in network.res_blocks for branch in _of_block(block)]


def _of_block(block: nn.Module) -> list[Branch]:
    if isinstance(block, TokenBlock):
        return [Branch(block.norm, block.w1, "swiglu", block.w2)]
    assert isinstance(block, PatchBlock)
    attention = Branch(block.norm1, block.attn.wqkv, "attention", block.attn.wo)
    if block.use_swiglu:
        return [attention, Branch(block.norm2, block.w1, "swiglu", block.w2)]
    fc1, _, fc2 = cast(Iterable[AnyLinear], block.mlp)
    return [attention, Branch(block.norm2, fc1, "silu", fc2)]


T_co = TypeVar("T_co", covariant=True)


class Numbered(Protocol[T_co]):
    """Items by their numbers."""

    def __getitem__(self, number: int, /) -> T_co:
        """The item."""


@dataclass(frozen=True)
class Modulation:
    """Modulations of one evaluation, each a view [M, C].

    Attributes:
        norms: scale and shift of the norm of each branch, then of the final layer.
        gates: gate of each branch.
    """

    norms: Numbered[tuple[torch.Tensor, torch.Tensor]]
    gates: Numbered[torch.Tensor]


class HeadProducts(Protocol):
    """An evaluation of the head, given its modulations, and the step after it."""

    def load(self) -> None:
        """Refresh what depends on the network's parameters."""

    def predict(self, x: torch.Tensor, modulation: Modulation) -> torch.Tensor:
        """Clean bits [R, (P,) ch_target] of the state `x`; valid until the next call."""

    def advance(
        self, x: torch.Tensor, modulation: Modulation, step: Step, *, last: bool
    ) -> torch.Tensor:
        """The state that follows `x`; after `last` no evaluation follows in this AR step."""

    def prediction(self) -> torch.Tensor:
        """What ``predict`` would have returned in the last ``advance``."""


class LibraryProducts:
    """An evaluation as library products with elementwise ops between them; see ``HeadProducts``.

    The end of a branch and the norm of the next one are one pass.

    Args:
        network: the head's network.
        shape: (R, P), or (R,) for states without the second dimension.
        dtype: dtype of the products and of the stream.
    """

    def __init__(self, network: HeadNetwork, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        config, found = network.config, branches(network)
        self._shape, self._num_heads = shape, config.num_heads
        self._squash = config.architecture == "t2i"
        M = torch.Size(shape).numel()
        self._norms = [*(branch.affine for branch in found), (None, None)]
        self._activations = [branch.activation for branch in found]
        self._first = [_product(branch.fc1, dtype) for branch in found]
        self._second = [_product(branch.fc2, dtype) for branch in found]
        self._input = JoinedLinear([network.input_proj], dtype)
        self._final = JoinedLinear([network.final_layer.linear], dtype)
        # Branches of a kind run one after another, so they share a buffer.
        kinds = zip(self._activations, self._first, strict=True)
        self._h = {kind: _buffer(product, M) for kind, product in kinds}
        self._branch = _buffer(self._second[0], M)
        self._state = self._input.weight.new_empty(M, config.ch_target)
        self._stream, self._x0 = self._input.empty(M), self._final.empty(M)

    def load(self) -> None:
        """See ``HeadProducts``."""
        for product in (*self._first, *self._second, self._input, self._final):
            product.load()

    def predict(self, x: torch.Tensor, modulation: Modulation) -> torch.Tensor:
        """See ``HeadProducts``."""
        # Both halves of a guided batch share the state.
        halves = max(1, self._shape[0] // max(1, len(x)))
        h = self._stream
        if x.is_cpu and x.dtype == h.dtype:  # a product for each takes less than a copy
            for half in h.chunk(halves):
                self._input(x.flatten(0, -2), out=half)
        else:
            self._state.view(halves, *x.shape).copy_(x)
            self._input(self._state, out=h)
        self._final(self._blocks(h, modulation), out=self._x0)
        return self.prediction()

    def advance(
        self, x: torch.Tensor, modulation: Modulation, step: Step, *, last: bool
    ) -> torch.Tensor:
        """See ``HeadProducts``."""
        return step(x, self.predict(x, modulation))

    def prediction(self) -> torch.Tensor:
        """See ``HeadProducts``."""
        x0 = self._x0.view(*self._shape, self._x0.shape[-1])
        return 2 * torch.sigmoid(x0) - 1 if self._squash else x0

    def _blocks(self, x: torch.Tensor, modulation: Modulation) -> torch.Tensor:
        """The stream [M, C] through all blocks, to the final layer's modulated norm [M, C]."""
        n = adaln_norm(x, *modulation.norms[0], *self._norms[0], eps=EPS)
        for i, kind in enumerate(self._activations):
            h = self._second[i](self._activated(i, kind, n), out=self._branch)
            x, n = gated_residual_adaln(
                x, h, modulation.gates[i], *modulation.norms[i + 1], *self._norms[i + 1], eps=EPS
            )
        return n

    def _activated(self, i: int, kind: str, n: torch.Tensor) -> torch.Tensor:
        """What the second product of branch `i` takes, given the norm."""
        first = self._first[i]
        if kind == "swiglu" and isinstance(first, JoinedLinear) and first.has_gate:
            return first.swiglu(n)
        h = first(n, out=self._h[kind])
        if kind == "swiglu":
            return swiglu(h)
        if kind == "silu":
            return F.silu(h)
        return patch_attention(h.unflatten(0, self._shape), self._num_heads).flatten(0, 1)


def _product(layer: AnyLinear, dtype: torch.dtype) -> JoinedLinear | QuantizedProduct:
    if isinstance(layer, nn.Linear):
        return JoinedLinear([layer], dtype)
    return QuantizedProduct(layer, dtype)


def _buffer(product: JoinedLinear | QuantizedProduct, rows: int) -> torch.Tensor | None:
    """Memory for results, where a product writes into given memory."""
    return product.empty(rows) if isinstance(product, JoinedLinear) else None
