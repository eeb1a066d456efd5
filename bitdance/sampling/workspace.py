"""Caches and graphs of runs, leased to one call at a time, so that calls share nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Generic, TypeVar

import torch

from bitdance.models.kv_cache import KVCache
from bitdance.models.tracing import is_traced
from bitdance.sampling.lru_cache import LRUCache

__all__ = ["MAX_IDLE", "Pool", "Workspace"]

MAX_IDLE = 4
"""Maximum number of unused objects that a pool keeps."""

T = TypeVar("T")


class Pool(Generic[T]):
    """Objects that are costly to make and serve one call at a time.

    A call takes the object that was returned last, or, while all are in use, a new one. Calls in
    other threads, and calls from a callback of a call, thus have objects of their own. There is no
    lock: taking and returning are single operations on a list.

    Copies and pickles of a pool are empty, since graphs can be neither copied nor saved.

    Args:
        make: makes an object; must be picklable for a pool that is.

    Attributes:
        idle: objects that no call uses.
    """

    def __init__(self, make: Callable[[], T]) -> None:
        self._make = make
        self.idle: list[T] = []

    @contextmanager
    def lease(self) -> Iterator[T]:
        """An object that is the caller's alone until the context ends."""
        if is_traced():  # tensors made while tracing have no values
            yield self._make()
            return
        try:
            item = self.idle.pop()
        except IndexError:
            item = self._make()
        try:
            yield item
        finally:
            if len(self.idle) < MAX_IDLE:
                self.idle.append(item)

    def clear(self) -> None:
        """Drop the objects that no call uses, and their memory."""
        self.idle.clear()

    def __deepcopy__(self, memo: dict[int, Any]) -> Pool[T]:
        return Pool(self._make)

    def __reduce__(self) -> tuple[type[Pool[T]], tuple[Callable[[], T]]]:
        return Pool, (self._make,)


class Workspace(Generic[T]):
    """Cache and captured steps of a run, reused by the next run that leases them.

    Args:
        max_runs: kinds of batches whose memory and graphs are kept.

    Attributes:
        cache: cache of the largest run so far.
        runs: runs of each kind of batch, in that cache.
    """

    def __init__(self, max_runs: int) -> None:
        self.cache: KVCache | None = None
        self.runs: LRUCache[T] = LRUCache(max_runs)

    def reserve(
        self,
        rows: int,
        tokens: int,
        dtype: torch.dtype,
        device: torch.device,
        allocate: Callable[[], KVCache],
    ) -> KVCache:
        """An empty cache of `rows` rows of at least `tokens` tokens.

        Args:
            rows: rows of the run.
            tokens: longest sequence of the run.
            dtype: dtype of keys and values.
            device: device of the cache.
            allocate: makes a cache, for a run that does not fit into the one that is here.
        """
        if self.cache is None or not self.cache.fits(rows, tokens, dtype, device):
            # The old one goes first, with all that refers to it, so that the new one has the room.
            self.cache = None
            self.runs.clear()
            self.cache = allocate()
        cache = self.cache.first(rows)
        cache.reset()
        return cache
