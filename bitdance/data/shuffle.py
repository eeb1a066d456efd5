"""The order in which a run sees its data: a pure function of seed and batch number."""

from __future__ import annotations

import functools

import numpy as np

from bitdance.io.validation import exact_int

__all__ = ["ShuffledBatches"]


class ShuffledBatches:
    """Shuffled batches of an endless run of epochs.

    Batch number i is the same in every process, so a resumed run needs only the number of its step.
    Each epoch is a permutation drawn from (seed, epoch).

    Args:
        size: items of the data set.
        batch_size: items a batch, on one rank.
        seed: of the order.
        rank: of this process.
        world_size: processes; each gets other items.
        drop_last: leave out what is left of an epoch at its end, less than one batch for all ranks.
            Else an epoch has one batch more, of what is left, shared out evenly: it is shorter, by
            one item at most from rank to rank, and empty where fewer items are left than ranks.

    Attributes:
        per_epoch: batches an epoch.

    Raises:
        TypeError: an argument is no integer.
        ValueError: an argument is out of range, or there are fewer items than one batch needs.

    Example:
        The last batch of each epoch of ten items has the two that are left.

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
        self._rank, self._world = rank, world_size
        together = batch_size * world_size
        self.per_epoch = size // together if drop_last else -(-size // together)

    def position(self, index: int) -> tuple[int, int]:
        """Epoch of batch number `index`, and its number there.

        Raises:
            TypeError: the index is no integer.
            ValueError: it is negative.
        """
        return divmod(exact_int("ShuffledBatches", "index", index, minimum=0), self.per_epoch)

    def batch(self, index: int) -> np.ndarray:
        """int64 [batch_size], the items of batch number `index` of this rank.

        Raises:
            TypeError: the index is no integer.
            ValueError: it is negative.
        """
        epoch, position = self.position(index)
        order = _order(self._size, self._seed, epoch)
        start = position * self._world * self._batch
        # Of a whole batch the bounds are rank * batch_size and the next one.
        count = min(self._world * self._batch, self._size - start)
        first, end = (rank * count // self._world for rank in (self._rank, self._rank + 1))
        return order[start + first : start + end].copy()


@functools.lru_cache(maxsize=2)
def _order(size: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(size)
