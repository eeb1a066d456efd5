"""Random numbers of training, a function of (seed, step, item, purpose) and of nothing else.

So an item has the same noise on any number of processes, in any part of an accumulated batch, and
on any device. The words are those of the library's Philox generator, whose second key word is that
of the sampler's steps; training counts it down from the top, where no sampler gets.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence

import numpy as np
import torch

from bitdance_kernels import noise, noise_words

__all__ = ["Draws", "Purpose"]

_TOP = 2**32 - 2  # one more is the augmentation's


class Purpose(enum.IntEnum):
    """What numbers are drawn for."""

    FLIPS = 0
    DROP = 1
    TIME = 2
    NOISE = 3
    DECODER = 4


class Draws:
    """The random numbers of some items in one step.

    Args:
        seed: seed of the run, in [0, 2^64).
        step: number of the step, in [0, 2^32).
        items: int64 [n], numbers of the items, in [0, 2^32).
        device: device of the numbers.

    Attributes:
        step: number of the step.

    Example:
        >>> draws = Draws(0, 7, np.array([5, 2]))
        >>> same = Draws(0, 7, np.array([2]))
        >>> torch.equal(draws.normal(Purpose.NOISE, 4)[1:], same.normal(Purpose.NOISE, 4))
        True
    """

    def __init__(
        self, seed: int, step: int, items: Sequence[int] | np.ndarray,
        device: torch.device | str = "cpu",
    ) -> None:  # fmt: skip
        self._seed = seed - 2**64 if seed >= 2**63 else seed
        self.step = step
        self._items = torch.tensor(np.asarray(items, np.int64), dtype=torch.int64, device=device)

    def _keys(self, purpose: Purpose) -> torch.Tensor:
        words = [torch.full_like(self._items, word) for word in (self._seed, _TOP - purpose)]
        return torch.stack([*words, self._items], dim=1)

    def normal(self, purpose: Purpose, *shape: int) -> torch.Tensor:
        """Standard normals, float32 [n, *shape]."""
        keys = self._keys(purpose)
        return noise(keys, self.step, _count(shape), backend="auto").view(-1, *shape)

    def uniform(self, purpose: Purpose, *shape: int) -> torch.Tensor:
        """Numbers in (0, 1), float32 [n, *shape]."""
        words = noise_words(self._keys(purpose), self.step, _count(shape))
        return ((words >> 8).float().add_(0.5) * 2.0**-24).view(-1, *shape)

    def seeds(self, purpose: Purpose) -> torch.Tensor:
        """Seeds of other generators, 64 bits each: int64 [n]."""
        low, high = noise_words(self._keys(purpose), self.step, 2).unbind(1)
        return high << 32 | low


def _count(shape: Sequence[int]) -> int:
    return torch.Size(shape).numel()
