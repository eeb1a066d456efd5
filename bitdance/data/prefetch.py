"""Loading of batches in the background, beside the step that uses the one before."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Generic, TypeVar

__all__ = ["Prefetcher"]

T = TypeVar("T")


class Prefetcher(Generic[T]):
    """Batches by number, each loaded in a thread while the one before is used.

    A context manager: the thread ends with it. One batch waits besides the one in use. An error of
    `load` is raised where its batch is asked for, not before.

    Args:
        load: loads batch number i; called in the thread, for one batch at a time.
        stop: number of the first batch that is never asked for; None if there is none.

    Example:
        >>> with Prefetcher(lambda i: i * i, stop=3) as batches:
        ...     [batches.get(i) for i in range(3)]
        [0, 1, 4]
    """

    def __init__(self, load: Callable[[int], T], *, stop: int | None = None) -> None:
        self._load, self._stop = load, stop
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="bitdance-prefetch")
        self._next: tuple[int, Future[T]] | None = None

    def get(self, index: int) -> T:
        """Batch number `index`; the loading of the following one begins."""
        if self._next is None or self._next[0] != index:
            self._begin(index)
        assert self._next is not None
        loaded = self._next[1]
        self._next = None
        batch = loaded.result()
        if self._stop is None or index + 1 < self._stop:
            self._begin(index + 1)
        return batch

    def _begin(self, index: int) -> None:
        self._next = index, self._thread.submit(self._load, index)

    def __enter__(self) -> Prefetcher[T]:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._thread.shutdown(wait=True, cancel_futures=True)
