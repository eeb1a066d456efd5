"""One product of few rows with its norm or gate, in every launch worth timing.

As in an evaluation: a captured chain of launches that overlap, over the weights of six layers,
which the L2 cache holds. Beside it what the library does instead, in the same graph of its own.
"""

from __future__ import annotations

import functools
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.gpu.decide import common, tables
from benchmarks.gpu.worker import Context, Step
from benchmarks.shapes import Make
from bitdance.models.config import PRESETS
from bitdance_kernels import (
    adaln_linear,
    adaln_linear_swiglu,
    adaln_norm,
    gated_residual,
    linear_gated_residual,
    overlapping_launches,
    pack_weight,
    swiglu,
)
from bitdance_kernels._shared import skinny_config
from bitdance_kernels.testing import compare

_ROWS = (2, 8, 32, 64, 128)
_LAYERS = 6
_CHAIN = 60  # launches of a graph
_REPLAYS = 10
_SHARE = 0.3  # of the time of all parts
_EPS = 1e-6


@dataclass(frozen=True)
class Product:
    """A product of the head.

    Attributes:
        name: of its layer.
        channels: C.
        features: rows of its weight.
        normed: whether a modulated norm precedes it; else a gate and the stream follow.
        swiglu: whether SwiGLU follows.
    """

    name: str
    channels: int
    features: int
    normed: bool
    swiglu: bool = False


def products(width: int) -> list[Product]:
    """Those of a block of a head of that width."""
    hidden = int(1.5 * width)
    return [
        Product("qkv", width, 3 * width, normed=True),
        Product("wo", width, width, normed=False),
        Product("w1", width, 2 * hidden, normed=True, swiglu=True),
        Product("w2", hidden, width, normed=False),
    ]


def steps(context: Context) -> Sequence[Step]:
    """A step per number of rows and product."""
    width = 64 if context.dry_run else PRESETS["B-16x"].diff_dim
    return [
        common.unless_wrong(
            context, f"{product.name}, {rows} rows",
            functools.partial(_time, context, product, rows),
        )
        for rows in (_ROWS[:1] if context.dry_run else _ROWS)
        for product in products(width)
    ]  # fmt: skip


class _Layers:
    """Calls of a product with the weights of one layer after the other."""

    def __init__(self, product: Product, rows: int, device: torch.device) -> None:
        self.product, make = product, Make(device)
        dtype, C, width = torch.bfloat16, product.channels, product.features
        self.x = make.randn(rows, C, dtype=dtype)
        self.residual = make.randn(rows, width, dtype=dtype)
        self.norm = (1 + 0.1 * make.randn(C), 0.1 * make.randn(C))
        self.norm = (self.norm[0].to(dtype), self.norm[1].to(dtype))
        layout = "swiglu" if product.swiglu else "rows"
        self.plain, self.packed = [], []
        for _ in range(_LAYERS):
            weight, bias = make.layer(width, C, dtype)
            modulation = 0.2 * make.randn(rows, 3 * max(C, width), dtype=dtype)
            self.plain.append((weight, bias, modulation))
            self.packed.append((pack_weight(weight, layout), bias, modulation))

    def own(self, i: int, backend: str) -> Tensor:
        """The product of layer i as one launch."""
        weight, bias, modulation = self.packed[i % _LAYERS]
        C = self.product.channels
        if not self.product.normed:
            gate = modulation[:, : self.residual.shape[1]]
            return linear_gated_residual(self.x, weight, bias, self.residual, gate, backend=backend)
        function = adaln_linear_swiglu if self.product.swiglu else adaln_linear
        scale, shift = modulation[:, :C], modulation[:, C : 2 * C]
        return function(self.x, scale, shift, weight, bias, *self.norm, eps=_EPS, backend=backend)

    def library(self, i: int, dtype: torch.dtype | None = None) -> Tensor:
        """The same as the library's product and passes over rows."""
        weight, bias, modulation = self.plain[i % _LAYERS]
        x, residual, norm = self.x, self.residual, self.norm
        if dtype is not None:
            weight, bias, modulation, x, residual = (
                t.to(dtype) for t in (weight, bias, modulation, x, residual)
            )
            norm = (norm[0].to(dtype), norm[1].to(dtype))
        C = self.product.channels
        if not self.product.normed:
            return gated_residual(residual, F.linear(x, weight, bias), modulation[:, : len(weight)])
        n = adaln_norm(x, modulation[:, :C], modulation[:, C : 2 * C], *norm, eps=_EPS)
        h = F.linear(n, weight, bias)
        return swiglu(h) if self.product.swiglu else h


def _time(context: Context, product: Product, rows: int) -> None:
    C, width = product.channels, product.features
    layers = _Layers(product, rows, context.device)
    backend = "reference" if context.dry_run else "cuda"
    launches = skinny_config.candidates(rows, C, width)
    launches = launches[:2] if context.dry_run else launches
    count = 2 if context.dry_run else _CHAIN
    with common.no_grad():
        eager, truth = layers.library(0), layers.library(0, torch.float64)
        ways: dict[skinny_config.Launch | None, Callable[[], object]] = {
            None: common.captured(context, lambda: [layers.library(i) for i in range(count)])
        }
        for launch in launches:
            with mock.patch.object(skinny_config, "choose", return_value=launch):
                where = f"{product.name}, {rows} rows, {launch}"
                try:
                    compare("staged", layers.own(0, backend), eager, truth, where)
                except AssertionError as error:
                    context.add("failed", str(error), f"decide: {where}")
                    continue
                ways[launch] = common.captured(context, lambda: _chain(layers, count, backend))
        times = common.microseconds(context, ways, calls=1 if context.dry_run else _REPLAYS)
    for way, us in times.items():
        us = [value / count for value in us]
        common.add(
            context, "stage", product=product.name, rows=rows,
            row_class=skinny_config.row_class(rows), channels=C, features=width,
            launch=None if way is None else list(way), us=statistics.median(us), all_us=us,
        )  # fmt: skip
    tables.save(context)


def _chain(layers: _Layers, count: int, backend: str) -> None:
    with overlapping_launches():
        for i in range(count):
            layers.own(i, backend)
