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

from bitdance.models.diffusion_head import EPS, HeadNetwork, PatchBlock, TokenBlock
from bitdance.sampling.head_products import Branch, Modulation, Product, plan
from bitdance_kernels import adaln_norm, denoise_step, predict_step

__all__ = ["Head", "HeadRunner", "PlainHead", "Step"]

MOST_TABLE_ROWS = 64
"""Tokens of a batch up to which the modulations of all evaluations of an AR step are one product.

So few rows wait for weights, which are then read once. More are better off with a product an
evaluation, whose result is still in the cache where it is used.
"""


@dataclass(frozen=True)
class Step:
    """What the sampler does after an evaluation: the arguments of ``denoise_step``.

    Attributes:
        table: coefficients [S + 1, 3].
        index: of the step, on the device.
        cfg: guidance scale, on the device; None for none.
        noise: of the step; or
        keys: what it is drawn with.
    """

    table: torch.Tensor
    index: torch.Tensor
    cfg: torch.Tensor | None
    noise: torch.Tensor | None = None
    keys: torch.Tensor | None = None

    def __call__(self, x: torch.Tensor, x0: torch.Tensor) -> torch.Tensor:
        """The state after `x`, of which the prediction is `x0`."""
        return denoise_step(
            x, x0, self.table, self.index, cfg=self.cfg, noise=self.noise, keys=self.keys
        )


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

    def advance(self, i: int, x: torch.Tensor, step: Step) -> tuple[torch.Tensor, torch.Tensor]:
        """What ``predict`` returns, and the state after the step."""


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
        x = x if x.shape[0] == self.cond.shape[0] else torch.cat([x, x])
        return self.network(x.to(self.cond.dtype), self.times[i].expand(x.shape[0]), self.cond)

    def advance(self, i: int, x: torch.Tensor, step: Step) -> tuple[torch.Tensor, torch.Tensor]:
        """See ``Head``."""
        x0 = self.predict(i, x)
        return x0, step(x, x0)


@dataclass(frozen=True)
class _Ahead:
    """What the end of an evaluation has made for the next.

    Attributes:
        i: which evaluation it is for.
        state: for which state.
        stream: its projection, for all rows.
        y: what its modulations are made of; empty where they are in a table.
    """

    i: int
    state: torch.Tensor
    stream: torch.Tensor
    y: torch.Tensor


class HeadRunner:
    """A head's network with the memory for batches of one size.

    Args:
        network: the head's.
        rows: R, patches in a batch, both halves of a guided one counted.
        patch: P, tokens of a patch; None for states without that dimension.
        times: [S + 1] float32, of the evaluations.
        dtype: of the products and of the stream.
        products: how the blocks do theirs, one of ``head_products.PLANS`` or "auto".
    """

    def __init__(
        self,
        network: HeadNetwork,
        rows: int,
        patch: int | None,
        times: torch.Tensor,
        dtype: torch.dtype,
        products: str = "auto",
    ) -> None:
        config = network.config
        self.network, self.times, self.dtype = network, times, dtype
        self.fits = (rows, patch, len(times))
        self._shape = (rows,) if patch is None else (rows, patch)
        self._squash = config.architecture == "t2i"
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
            of_blocks = [p for b in branches for p in (b.first, b.last)]
            self._loaded = [
                *of_blocks, self.cond_embed, self.input_proj, self.final, self.ada_ln
            ]  # fmt: skip
            self.products = plan(products, M)(branches, rows, patch or 1, config.num_heads)

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
            self._ahead: _Ahead | None = None

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
        self._ahead = None
        self.cond_embed.into(self._cond, cond.flatten(0, -2).to(self.dtype))
        if self.at_once:
            self._modulate(self._time)

    def predict(self, i: int, x: torch.Tensor) -> torch.Tensor:
        """See ``Head``; valid until the next call."""
        n, modulation = self._blocks(i, x)
        if not self.products.through_norm:
            n = adaln_norm(n, *modulation.norms[-1], eps=EPS)
        x0 = self.final.into(self._x0, n).view(*self._shape, len(self.final.bias))
        return 2 * torch.sigmoid(x0) - 1 if self._squash else x0

    def advance(self, i: int, x: torch.Tensor, step: Step) -> tuple[torch.Tensor, torch.Tensor]:
        """See ``Head``; the prediction is valid until the next call."""
        if self.products.through_norm:
            x0 = self.predict(i, x)
            return x0, step(x, x0)
        h, modulation = self._blocks(i, x)
        scale, shift = (t.unflatten(0, self._shape) for t in modulation.norms[-1])
        time, cond = None, None
        if not self.at_once:
            time, cond = self._time.squeeze(1), self._cond.unflatten(0, self._shape)
        x0, following, stream, y = predict_step(
            h.unflatten(0, self._shape), scale, shift, self.final.weight, self.final.bias, x,
            step.table, step.index, self.input_proj.weight, self.input_proj.bias, time, cond,
            cfg=step.cfg, noise=step.noise, keys=step.keys, squash=self._squash, eps=EPS,
        )  # fmt: skip
        if i + 1 < len(self.times):
            self._ahead = _Ahead(i + 1, following, stream, y)
        return x0, following

    def _blocks(self, i: int, x: torch.Tensor) -> tuple[torch.Tensor, Modulation]:
        """Through the blocks, and the modulations of this evaluation."""
        ahead, self._ahead = self._ahead, None
        if ahead is not None and (ahead.i != i or ahead.state is not x):
            ahead = None
        if not self.at_once:
            self._modulate(self._time[i : i + 1], None if ahead is None else ahead.y)
        if ahead is None:
            # Both halves of a guided batch share the state.
            halves = self._shape[0] // max(1, len(x))
            self._state.view(halves, *x.shape).copy_(x)
            h = self.input_proj.into(self._stream, self._state)
        else:
            h = ahead.stream.flatten(0, -2)
        modulation = self._modulations[i if self.at_once else 0]
        return self.products.blocks(h, modulation), modulation

    def _modulate(self, time: torch.Tensor, y: torch.Tensor | None = None) -> None:
        """Fill the table with the products of `y`, made here if it is not yet."""
        if y is None:
            y = F.silu(torch.add(time, self._cond, out=self._y), inplace=True)
        self.ada_ln.into(self._table.flatten(0, 1), y.flatten(0, -2))

    def _views(self, row: torch.Tensor) -> Modulation:
        """Of one evaluation's modulations [M, ...], one projection's after another's."""
        config, blocks = self.network.config, len(self.network.res_blocks)
        width = config.ch_latent
        chunks = row.split(width, dim=-1)
        of_block = 3 if config.architecture == "mlp" else 6
        # Where the chunks of every branch begin: blocks may share a projection.
        of_blocks = (config.adaln_of(i) * of_block for i in range(blocks))
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
