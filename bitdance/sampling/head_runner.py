"""The diffusion head as sampling runs it: invariants are computed once.

Only the noisy state changes between denoising steps. ``HeadRunner`` computes embedded times once
per schedule, ``cond_embed`` once per AR step, and casts weights once per run. All adaLN projections
and that of the final layer are one product; for few rows it covers all evaluations of an AR step.
Buffers are allocated once, so that captured graphs stay valid.

``PlainHead`` evaluates the network as published, for comparison.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Protocol, cast

import torch
import torch.nn.functional as F
from torch import nn

from bitdance.models.diffusion_head import HeadNetwork, PatchBlock, TokenBlock
from bitdance.sampling.head_products import Branch, JoinedLinear, LibraryProducts, Modulation
from bitdance_kernels import denoise_step

__all__ = ["Head", "HeadRunner", "PlainHead", "Step"]

MAX_TABLE_ROWS = 64
"""Tokens of a batch up to which the modulations of all evaluations of an AR step are one product.

For few rows the time goes into reading weights, which are then read once. For more rows one product
per evaluation is better, since its result is still in the cache when it is used.
"""


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


class Head(Protocol):
    """What the sampler needs of a head."""

    network: HeadNetwork

    def load(self) -> None:
        """Refresh what depends on the network's parameters; called before every run."""

    def precision(self) -> AbstractContextManager[object]:
        """Context in which ``begin`` and ``predict`` are called."""

    def begin(self, cond: torch.Tensor) -> None:
        """Set the conditioning [R, (P,) ch_cond] of an AR step."""

    def predict(self, i: int, x: torch.Tensor) -> torch.Tensor:
        """Clean bits [R, (P,) ch_target] of evaluation `i`.

        The state `x` has as many rows, or half as many, which both halves share.
        """

    def advance(self, i: int, x: torch.Tensor, step: Step) -> tuple[torch.Tensor, torch.Tensor]:
        """The result of ``predict``, and the state after the step."""


class PlainHead:
    """The network as published, which computes everything in every evaluation.

    Args:
        network: the head's network.
        times: times of the evaluations, [S + 1].
    """

    def __init__(self, network: HeadNetwork, times: torch.Tensor) -> None:
        self.network, self.times = network, times

    def load(self) -> None:
        """See ``Head``; nothing is kept."""

    def precision(self) -> AbstractContextManager[object]:
        """See ``Head``; that of the caller."""
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


class HeadRunner:
    """The network of a head with buffers for batches of one size.

    Args:
        network: the head's network.
        rows: R, patches in a batch, both halves of a guided one counted.
        patch: P, tokens of a patch; None for states without that dimension.
        times: times of the evaluations, float32 [S + 1].
        dtype: dtype of the products and of the stream.
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
        self._shape = (rows,) if patch is None else (rows, patch)
        self._squash = config.architecture == "t2i"
        M, evaluations = rows * (patch or 1), len(times)
        # Made in inference mode, memory could not be written outside of it.
        with torch.inference_mode(False), torch.no_grad():
            branches = [b for block in network.res_blocks for b in _branches(block, dtype)]
            self.cond_embed = JoinedLinear([network.cond_embed], dtype)
            self.input_proj = JoinedLinear([network.input_proj], dtype)
            self.final = JoinedLinear([network.final_layer.linear], dtype)
            self.ada_ln = JoinedLinear(
                [*network.ada_ln_blocks, network.final_layer.ada_ln_modulation], dtype
            )
            self._linears = [p for b in branches for p in (b.fc1, b.fc2)]
            self._linears += [self.cond_embed, self.input_proj, self.final, self.ada_ln]
            self.products = LibraryProducts(branches, rows, patch or 1, config.num_heads)

            width = config.ch_latent
            empty = partial(times.new_empty, dtype=dtype)
            self._time = empty(evaluations, 1, width)
            self._state = empty(M, config.ch_target)
            self._cond = self.cond_embed.empty(M)
            self._stream = self.input_proj.empty(M)
            self._x0 = self.final.empty(M)
            self.one_table = M <= MAX_TABLE_ROWS
            kept = evaluations if self.one_table else 1
            self._y = empty(kept, M, width)
            self._table = self.ada_ln.empty(kept, M)
            self._modulations = [self._views(row) for row in self._table]

    def load(self) -> None:
        """See ``Head``; always done, which is cheaper than finding out whether it is needed."""
        for product in self._linears:
            product.load()
        self._time.copy_(self.network.time_embed(self.times)[:, None])

    def precision(self) -> AbstractContextManager[object]:
        """See ``Head``; autocast is off, since everything has the dtype of the products."""
        kind = self.times.device.type
        return (
            torch.autocast(kind, enabled=False)
            if torch.is_autocast_enabled(kind)
            else nullcontext()
        )

    def begin(self, cond: torch.Tensor) -> None:
        """See ``Head``."""
        self.cond_embed(cond.flatten(0, -2).to(self.dtype), out=self._cond)
        if self.one_table:
            self._modulate(self._time)

    def predict(self, i: int, x: torch.Tensor) -> torch.Tensor:
        """See ``Head``; valid until the next call."""
        if not self.one_table:
            self._modulate(self._time[i : i + 1])
        # Both halves of a guided batch share the state.
        halves = self._shape[0] // max(1, len(x))
        self._state.view(halves, *x.shape).copy_(x)
        h = self.input_proj(self._state, out=self._stream)
        n = self.products.blocks(h, self._modulations[i if self.one_table else 0])
        x0 = self.final(n, out=self._x0).view(*self._shape, len(self.final.bias))
        return 2 * torch.sigmoid(x0) - 1 if self._squash else x0

    def advance(self, i: int, x: torch.Tensor, step: Step) -> tuple[torch.Tensor, torch.Tensor]:
        """See ``Head``; the prediction is valid until the next call."""
        x0 = self.predict(i, x)
        return x0, step(x, x0)

    def _modulate(self, time: torch.Tensor) -> None:
        """Fill the table with the modulations of embedded times."""
        y = F.silu(torch.add(time, self._cond, out=self._y), inplace=True)
        self.ada_ln(y.flatten(0, -2), out=self._table.flatten(0, 1))

    def _views(self, row: torch.Tensor) -> Modulation:
        """Views of one evaluation's modulations [M, ...], whose projections are concatenated."""
        config, blocks = self.network.config, len(self.network.res_blocks)
        width = config.ch_latent
        chunks = row.split(width, dim=-1)
        chunks_per_block = 3 if config.architecture == "mlp" else 6
        # Where the chunks of every branch begin: blocks may share a projection.
        of_blocks = (config.adaln_of(i) * chunks_per_block for i in range(blocks))
        starts = [start + branch for start in of_blocks for branch in range(0, chunks_per_block, 3)]
        norms = [(chunks[start], chunks[start + 1]) for start in starts]
        gates = [chunks[start + 2] for start in starts]
        return Modulation((*norms, (chunks[-2], chunks[-1])), tuple(gates))


def _branches(block: nn.Module, dtype: torch.dtype) -> list[Branch]:
    """Branches of a block of the network, in order."""

    def branch(norm: nn.LayerNorm, fc1: nn.Linear, activation: str, fc2: nn.Linear) -> Branch:
        affine = (norm.weight.detach(), norm.bias.detach())
        return Branch(affine, JoinedLinear([fc1], dtype), activation, JoinedLinear([fc2], dtype))

    if isinstance(block, TokenBlock):
        return [branch(block.norm, block.w1, "swiglu", block.w2)]
    assert isinstance(block, PatchBlock)
    attention = branch(block.norm1, block.attn.wqkv, "attention", block.attn.wo)
    if block.use_swiglu:
        return [attention, branch(block.norm2, block.w1, "swiglu", block.w2)]
    fc1, _, fc2 = cast(Iterable[nn.Linear], block.mlp)
    return [attention, branch(block.norm2, fc1, "silu", fc2)]
