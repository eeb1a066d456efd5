"""The order of a data set in training, a pure function of seed and batch number."""

from __future__ import annotations

import functools

import numpy as np

from bitdance.io.validation import exact_int

__all__ = ["ShuffledBatches"]


class ShuffledBatches:
    """Shuffled batches of an endless sequence of epochs.

    Batch i is a function of its number, so a resumed run only needs the number of its step. Each
    epoch is a permutation drawn from (seed, epoch).

    Args:
        size: number of items in the data set.
        batch_size: items per batch and rank.
        seed: seed of the order.
        rank: rank of this process.
        world_size: number of processes; each gets different items.
        drop_last: drop the items at the end of an epoch that do not fill a batch on all ranks.
            Otherwise they are one more batch, divided evenly among the ranks: its sizes differ by
            at most one, and may be 0.

    Attributes:
        per_epoch: batches per epoch.

    Raises:
        TypeError: an argument is not an integer.
        ValueError: an argument is out of range, or there are fewer items than one batch needs.

    Example:
        The last batch of each epoch of ten items has the two remaining ones.

        >>> batches = ShuffledBatches(10, 4, seed=0, drop_last=False)
        >>> [len(batches.batch(i)) for i in range(6)], batches.position(5)
        ([4, 4, 2, 4, 4, 2], (1, 2))
    """

    def __init__(
        self, size: int, batch_size: int, *, seed: int = 0, rank: int = 0, world_size: int = 1,
        drop_last: bool = True,
    ) -> None:  # fmt: skip
        integer = functools.partial(exact_int, "ShuffledBatches")
        batch_size = integer("batch_size", batch_size, minimum=1)
        world_size = integer("world_size", world_size, minimum=1)
        rank = integer("rank", rank, minimum=0, maximum=world_size - 1)
        size = integer("size", size, minimum=batch_size * world_size if drop_last else 1)
        seed = integer("seed", seed, minimum=0)
        self._size, self._batch, self._seed = size, batch_size, seed
        self._rank, self._world_size = rank, world_size
        total = batch_size * world_size
        self.per_epoch = size // total if drop_last else -(-size // total)

    def position(self, index: int) -> tuple[int, int]:
        """Epoch of batch number `index`, and its position in that epoch.

        Raises:
            TypeError: the index is not an integer.
            ValueError: it is negative.
        """
        return divmod(exact_int("ShuffledBatches", "index", index, minimum=0), self.per_epoch)

    def batch(self, index: int) -> np.ndarray:
        """Items of batch number `index` on this rank, int64 [batch_size].

        Raises:
            TypeError: the index is not an integer.
            ValueError: it is negative.
        """
        epoch, position = self.position(index)
        order = _order(self._size, self._seed, epoch)
        start = position * self._world_size * self._batch
        # In a full batch the bounds are rank * batch_size and (rank + 1) * batch_size.
        count = min(self._world_size * self._batch, self._size - start)
        first, end = (rank * count // self._world_size for rank in (self._rank, self._rank + 1))
        return order[start + first : start + end].copy()


@functools.lru_cache(maxsize=2)
def _order(size: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(size)
