"""The order in which a run sees its data: a pure function of seed and batch number."""

from __future__ import annotations

import functools

import numpy as np

__all__ = ["ShuffledBatches"]


class ShuffledBatches:
    """Shuffled batches of an endless run of epochs.

    Batch number i is the same in every process, so a resumed run needs only the number of its step.
    Each epoch is a permutation drawn from (seed, epoch); what is left of it at the end, less than
    one batch for all ranks, is left out.

    Args:
        size: items of the data set.
        batch_size: items a batch, on one rank.
        seed: of the order.
        rank: of this process.
        world_size: processes; each gets other items.

    Raises:
        ValueError: an argument is out of range, or there are fewer items than one batch needs.
    """

    def __init__(
        self, size: int, batch_size: int, *, seed: int = 0, rank: int = 0, world_size: int = 1
    ) -> None:
        if batch_size < 1 or world_size < 1 or not 0 <= rank < world_size:
            raise ValueError(
                "ShuffledBatches: batch_size and world_size must be at least 1 and rank below "
                f"world_size, got {batch_size}, {world_size} and {rank}"
            )
        if size < batch_size * world_size:
            raise ValueError(
                f"ShuffledBatches: size must be at least {batch_size * world_size}, got {size}"
            )
        self._size, self._batch, self._seed = size, batch_size, seed
        self._rank, self._world = rank, world_size
        self.per_epoch = size // (batch_size * world_size)

    def batch(self, index: int) -> np.ndarray:
        """int64 [batch_size], the items of batch number `index` of this rank."""
        epoch, position = divmod(index, self.per_epoch)
        start = (position * self._world + self._rank) * self._batch
        return _order(self._size, self._seed, epoch)[start : start + self._batch]


@functools.lru_cache(maxsize=2)
def _order(size: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(size)
