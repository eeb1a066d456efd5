"""The diffusion head as sampling runs it: invariants are computed once.

Only the noisy state changes between denoising steps. ``HeadRunner`` computes embedded times once
per schedule, ``cond_embed`` once per AR step, and casts weights once per run. All adaLN projections
and that of the final layer are one product; for few rows it covers all evaluations of an AR step.
Buffers are allocated once, so that captured graphs stay valid.

``PlainHead`` evaluates the network as published, for comparison.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Protocol, cast

import torch
import torch.nn.functional as F
from torch import nn

from bitdance.models.diffusion_head import HeadNetwork
from bitdance.models.layers import is_autocast_enabled
from bitdance.models.quantization import quantization_of
from bitdance.sampling import packed_products
from bitdance.sampling.changes import Changes
from bitdance.sampling.config import choose_plan, max_table_rows
from bitdance.sampling.head_products import HeadProducts, LibraryProducts, Modulation, Step
from bitdance.sampling.patch_products import PatchProducts
from bitdance.sampling.weights import JoinedLinear
from bitdance_kernels import overlapping_launches

__all__ = ["Head", "HeadRunner", "PlainHead"]


class Head(Protocol):
    """What the sampler needs of a head."""

    network: HeadNetwork

    def load(self) -> None:
        """Refresh what depends on the network's parameters; called before every run."""

    def precision(self) -> AbstractContextManager[object]:
        """Context in which ``begin`` and ``predict`` are called."""

    def begin(self, cond: torch.Tensor) -> None:
        """Set the conditioning [R, (P,) ch_cond] of an AR step."""

    def chain(self) -> AbstractContextManager[object]:
        """Context of the evaluations of an AR step, after ``begin``."""

    def predict(self, i: int, x: torch.Tensor) -> torch.Tensor:
        """Clean bits [R, (P,) ch_target] of evaluation `i`; valid until the next call.

        The state `x` has as many rows, or half as many, which both halves share.
        """

    def advance(self, i: int, x: torch.Tensor, step: Step) -> torch.Tensor:
        """The state that follows `x` by evaluation `i` and the step after it."""

    def prediction(self) -> torch.Tensor:
        """What ``predict`` would have returned in the last ``advance``; valid until the next."""

    def advance_all(
        self,
        x: torch.Tensor,
        table: torch.Tensor,
        cfg: torch.Tensor | None,
        noise: Sequence[torch.Tensor] | None,
        keys: torch.Tensor | None,
    ) -> torch.Tensor | None:
        """The state that follows `x` by all evaluations and steps, after ``begin``.

        Args:
            x: the state, of as many rows as ``predict`` takes.
            table: coefficients of the steps, [S + 1, 3].
            cfg: guidance scale, on the device; None for none.
            noise: noise of the first S steps, or None to draw it with `keys`.
            keys: Philox keys, int64 [R, 3].

        Returns:
            The state, or None where evaluations are one by one.
        """

    def check(self) -> None:
        """Raise RuntimeError if something went wrong on the device; waits for it if it must."""


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
        self._cond = cond

    def chain(self) -> AbstractContextManager[object]:
        """See ``Head``."""
        return nullcontext()

    def predict(self, i: int, x: torch.Tensor) -> torch.Tensor:
        """See ``Head``."""
        cond = self._cond
        x = x if x.shape[0] == cond.shape[0] else torch.cat([x, x])
        return self.network(x.to(cond.dtype), self.times[i].expand(x.shape[0]), cond)

    def advance(self, i: int, x: torch.Tensor, step: Step) -> torch.Tensor:
        """See ``Head``."""
        self._prediction = self.predict(i, x)
        return step(x, self._prediction)

    def prediction(self) -> torch.Tensor:
        """See ``Head``."""
        return self._prediction

    def advance_all(self, *_: object) -> torch.Tensor | None:
        """See ``Head``."""
        return None

    def check(self) -> None:
        """See ``Head``."""


class HeadRunner:
    """The network of a head with buffers for batches of one size.

    Args:
        network: the head's network.
        rows: R, patches in a batch, both halves of a guided one counted.
        patch: P, tokens of a patch; None for states without that dimension.
        times: times of the evaluations, float32 [S + 1].
        dtype: dtype of the products and of the stream.
        plan: see ``choose_plan``.
    """

    def __init__(
        self,
        network: HeadNetwork,
        rows: int,
        patch: int | None,
        times: torch.Tensor,
        dtype: torch.dtype,
        plan: str = "auto",
    ) -> None:
        config, device = network.config, times.device
        self.network, self.times, self.dtype = network, times, dtype
        self._changes = Changes(network)
        shape = (rows,) if patch is None else (rows, patch)
        M, evaluations = rows * (patch or 1), len(times)
        self.plan = choose_plan(
            "head", M, packed_products.widths(network), dtype, device,
            architecture=config.architecture, patch=patch or 1,
            quantization=quantization_of(network), plan=plan,
        )  # fmt: skip
        # Made in inference mode, memory could not be written outside of it.
        with torch.inference_mode(False), torch.no_grad():
            self.products: HeadProducts
            if self.plan == "persistent":
                self.products = PatchProducts(network, shape, dtype)
            elif self.plan == "packed":
                self.products = packed_products.PackedProducts(network, shape, dtype)
            else:
                self.products = LibraryProducts(network, shape, dtype)
            self.cond_embed = JoinedLinear([network.cond_embed], dtype)
            # Those beyond one a block are of no use.
            projections = list(cast(Iterable[nn.Linear], network.ada_ln_blocks))
            used = projections[: config.depth_latent]
            used.append(network.final_layer.ada_ln_modulation)
            width = config.ch_latent
            empty = partial(times.new_empty, dtype=dtype)
            self._time = empty(evaluations, 1, width)
            self._cond = self.cond_embed.empty(M)
            self.one_table = self.plan == "persistent" or max_table_rows(device) >= M
            kept = evaluations if self.one_table else 1
            self._y = empty(kept, M, width)
            self.ada_ln = JoinedLinear(used, dtype)
            self._table = self.ada_ln.empty(kept, M)
            self._modulations = [self._views(row) for row in self._table]

    def load(self) -> None:
        """See ``Head``."""
        # Other plans begin a run with more than copies.
        if self.plan != "library" or self._changes.found():
            for part in (self.products, self.cond_embed, self.ada_ln):
                part.load()
            self._time.copy_(self.network.time_embed(self.times)[:, None])
            self._changes.remember()

    def precision(self) -> AbstractContextManager[object]:
        """See ``Head``; autocast is off, since everything has the dtype of the products."""
        kind = self.times.device.type
        return torch.autocast(kind, enabled=False) if is_autocast_enabled(kind) else nullcontext()

    def begin(self, cond: torch.Tensor) -> None:
        """See ``Head``."""
        self.cond_embed(cond.flatten(0, -2).to(self.dtype), out=self._cond)
        if self.one_table:
            self._modulate(self._time)

    def chain(self) -> AbstractContextManager[object]:
        """See ``Head``: kernels may overlap while no modulation is written."""
        return self._overlapping() if self.one_table else nullcontext()

    def predict(self, i: int, x: torch.Tensor) -> torch.Tensor:
        """See ``Head``."""
        return self.products.predict(x, self._modulation(i))

    def advance(self, i: int, x: torch.Tensor, step: Step) -> torch.Tensor:
        """See ``Head``."""
        modulation, last = self._modulation(i), i + 1 == len(self.times)
        with nullcontext() if self.one_table else self._overlapping():
            return self.products.advance(x, modulation, step, last=last)

    def prediction(self) -> torch.Tensor:
        """See ``Head``."""
        return self.products.prediction()

    def advance_all(
        self,
        x: torch.Tensor,
        table: torch.Tensor,
        cfg: torch.Tensor | None,
        noise: Sequence[torch.Tensor] | None,
        keys: torch.Tensor | None,
    ) -> torch.Tensor | None:
        """See ``Head``."""
        if not isinstance(self.products, PatchProducts):
            return None
        return self.products.advance_all(x, self._table, table, cfg, noise, keys)

    def check(self) -> None:
        """See ``Head``."""
        if isinstance(self.products, PatchProducts):
            self.products.check()

    def _overlapping(self) -> AbstractContextManager[object]:
        return nullcontext() if self.plan == "library" else overlapping_launches()

    def _modulation(self, i: int) -> Modulation:
        """Modulations of evaluation `i`, which are computed here if they are not in a table."""
        if not self.one_table:
            self._modulate(self._time[i : i + 1])
        return self._modulations[i if self.one_table else 0]

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
