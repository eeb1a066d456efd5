"""Which documents go into one sequence, a pure function of lengths, seed and epoch."""

from __future__ import annotations

import bisect
import functools
from collections.abc import Sequence

import numpy as np

__all__ = ["DocumentPacker"]


class DocumentPacker:
    """Packs of at most `max_tokens` tokens; every epoch has every document once.

    Lengths are rounded up to five binary digits, and placed longest first, each where it leaves the
    least room. So the rounded lengths of a pack are the same in all epochs, and there are as many
    packs in each; which documents of these lengths it has is drawn from (seed, epoch). Any pack of
    any epoch is found without those before it, so that a resumed run needs the number of its step
    alone.

    Args:
        lengths: tokens of each document.
        max_tokens: budget of a pack.
        seed: seed of the draw.

    Raises:
        ValueError: there are no documents, or one is longer than the budget.

    Example:
        >>> packer = DocumentPacker([3, 7, 5, 4], 10, seed=0)
        >>> len(packer), [packer.pack(0, number).tolist() for number in range(2)]
        (2, [[1, 0], [2, 3]])
    """

    def __init__(self, lengths: Sequence[int] | np.ndarray, max_tokens: int, *, seed: int) -> None:
        self._lengths = np.asarray(lengths, np.int64)
        self._seed = seed
        if not len(self._lengths):
            raise ValueError("DocumentPacker: lengths must be one or more, got none")
        longest = int(self._lengths.argmax())
        if self._lengths[longest] > max_tokens:
            raise ValueError(
                f"DocumentPacker: max_tokens must be at least {self._lengths[longest]}, the tokens "
                f"of document {longest}, got {max_tokens}"
            )
        self._lengths = np.minimum(_rounded(self._lengths), max_tokens)
        packs = _best_fit(np.sort(self._lengths)[::-1].tolist(), max_tokens)
        places = np.argsort(packs, kind="stable")  # in the order of lengths, pack by pack
        self._places = np.split(places, np.cumsum(np.bincount(packs))[:-1])

    def __len__(self) -> int:
        return len(self._places)

    def pack(self, epoch: int, number: int) -> np.ndarray:
        """Documents of pack `number`, int64 [n], longest first."""
        return self._order(epoch)[self._places[number]]

    @functools.lru_cache(maxsize=2)  # noqa: B019 (a run has one packer)
    def _order(self, epoch: int) -> np.ndarray:
        """All documents, longest first, those of one length in random order."""
        drawn = np.random.default_rng([self._seed, epoch, 1]).permutation(len(self._lengths))
        return drawn[np.argsort(-self._lengths[drawn], kind="stable")]


def _rounded(lengths: np.ndarray) -> np.ndarray:
    """Lengths rounded up to five binary digits, so that many are equal."""
    unit = 1 << np.maximum(np.log2(np.maximum(lengths, 1)).astype(np.int64) - 4, 0)
    return -(-lengths // unit) * unit


def _best_fit(lengths: Sequence[int], budget: int) -> np.ndarray:
    """Number of the pack of each length, int64; the lengths never increase."""
    packs = np.empty(len(lengths), np.int64)
    rooms: list[tuple[int, int]] = []  # of packs that have room for the shortest, sorted
    count, shortest = 0, lengths[-1]
    for place, length in enumerate(lengths):
        found = bisect.bisect_left(rooms, (length, -1))
        if found < len(rooms):
            room, pack = rooms.pop(found)
        else:
            room, pack = budget, count
            count += 1
        packs[place] = pack
        if room - length >= shortest:
            bisect.insort(rooms, (room - length, pack))
    return packs
