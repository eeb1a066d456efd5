"""Modulations of an evaluation of many rows, one adaLN projection after the other.

All projections of an evaluation as one product write what is read much later, when caches have lost
it, and have put out weights for it. Here a projection is computed when its first block needs it, in
the memory of the one before. Results are the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

import torch
from torch import nn

from bitdance.models.config import HeadConfig
from bitdance.sampling.head_products import Modulation
from bitdance.sampling.weights import JoinedLinear

__all__ = ["ProjectionsInTurn"]

T = TypeVar("T")


class _ByNumber(Generic[T]):
    """What a function gives for a number, as an item."""

    def __init__(self, function: Callable[[int], T]) -> None:
        self._function = function

    def __getitem__(self, number: int) -> T:
        return self._function(number)


class ProjectionsInTurn:
    """The adaLN projections of a head, for branches that are computed in order.

    Args:
        projections: those of the blocks, then that of the final layer.
        config: configuration of the head.
        branches: branches of all blocks.
        rows: M, tokens of a batch.
        dtype: dtype of the products.
    """

    def __init__(
        self,
        projections: Sequence[nn.Linear],
        config: HeadConfig,
        branches: int,
        rows: int,
        dtype: torch.dtype,
    ) -> None:
        self._products = [JoinedLinear([layer], dtype) for layer in projections]
        per_block = branches // config.depth_latent
        blocks = range(config.depth_latent)
        # Of each norm, the projection and the first of its chunks.
        self._places = [(config.adaln_of(i), 3 * j) for i in blocks for j in range(per_block)]
        self._places.append((len(projections) - 1, 0))
        self._rows, self._width = rows, config.ch_latent
        widest = max(product.features for product in self._products)
        self._memory = self._products[0].weight.new_empty(rows * widest)
        self._last_gate = self._memory.new_empty(rows, self._width)
        self._held = -1

    def load(self) -> None:
        """Refresh the copies of the projections' parameters."""
        for product in self._products:
            product.load()

    def of(self, y: torch.Tensor) -> Modulation:
        """Modulations by the activated condition `y` [M, C], valid until the next call.

        A gate must be asked for before the norm that follows it, which may end the others.
        """
        self._y, self._held = y, -1
        return Modulation(_ByNumber(self._norm), _ByNumber(self._gate))

    def _norm(self, i: int) -> tuple[torch.Tensor, torch.Tensor]:
        projection, first = self._places[i]
        scale, shift = self._chunks(projection)[first : first + 2]
        return scale, shift

    def _gate(self, i: int) -> torch.Tensor:
        projection, first = self._places[i]
        gate = self._chunks(projection)[first + 2]
        if self._places[i + 1][0] == projection:
            return gate
        return self._last_gate.copy_(gate)  # beyond the projection that it is used with

    def _chunks(self, projection: int) -> tuple[torch.Tensor, ...]:
        product = self._products[projection]
        out = self._memory[: self._rows * product.features].view(self._rows, -1)
        if self._held != projection:
            product(self._y, out=out)
            self._held = projection
        return out.split(self._width, dim=-1)
