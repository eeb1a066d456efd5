"""A small cache of objects that are costly to make, such as captured graphs."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any, Generic, TypeVar

__all__ = ["LRUCache"]

T = TypeVar("T")


class LRUCache(Generic[T]):
    """The most recently used objects, by key, as long as their owner stays the same.

    Copies and pickles of it are empty: graphs can be neither copied nor saved.

    Args:
        max_size: number of objects that are kept.
    """

    def __init__(self, max_size: int) -> None:
        self.max_size = max_size
        self._items: OrderedDict[Hashable, T] = OrderedDict()
        self._owner: Hashable = None

    def get(self, owner: Hashable, key: Hashable, make: Callable[[], T]) -> T:
        """The object of `key`, from ``make()`` if there is none; a new `owner` clears the cache."""
        if owner != self._owner:
            self._items.clear()
            self._owner = owner
        if key not in self._items:
            while len(self._items) >= self.max_size:
                self._items.popitem(last=False)  # before the next is made, which needs the memory
            self._items[key] = make()
        self._items.move_to_end(key)
        return self._items[key]

    def clear(self) -> None:
        """Drop all objects."""
        self._items.clear()

    def values(self) -> list[T]:
        """All objects, the most recently used one last."""
        return list(self._items.values())

    def __len__(self) -> int:
        return len(self._items)

    def __deepcopy__(self, memo: dict[int, Any]) -> LRUCache[T]:
        return LRUCache(self.max_size)

    def __reduce__(self) -> tuple[type[LRUCache[T]], tuple[int]]:
        return LRUCache, (self.max_size,)
