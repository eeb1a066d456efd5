"""Memory of the tensors that operators make, counted while they run."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

__all__ = ["LiveMemory"]


class LiveMemory(TorchDispatchMode):
    """Inside, counts the bytes of tensors that were made there and still exist.

    On the meta device, too, where tensors have sizes and no memory: a model runs there to find out
    what it needs elsewhere. What kernels and libraries use inside of an operator is not seen.

    Attributes:
        peak: largest number of bytes so far.
        live: number of bytes now.
    """

    def __init__(self) -> None:
        super().__init__()
        self.peak = self.live = 0
        # Addresses of storages; those that are freed are forgotten, since others come in their
        # place.
        self._known: dict[int, weakref.ref[Any]] = {}

    @classmethod
    def counts_alone(cls, modes: Sequence[TorchDispatchMode]) -> bool:
        """Whether modes are of this class, which record nothing."""
        return all(isinstance(mode, cls) for mode in modes)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        for id, storage in _storages((args, kwargs)):
            if id not in self._known:  # it was there before
                self._remember(id, storage, 0)
        results = func(*args, **kwargs)
        for id, storage in _storages(results):
            if id not in self._known:
                self._remember(id, storage, storage.nbytes())
        return results

    def _remember(self, id: int, storage: torch.UntypedStorage, size: int) -> None:
        def freed(_: Any) -> None:
            self.live -= size
            del self._known[id]

        self._known[id] = weakref.ref(storage, freed)
        self.live += size
        self.peak = max(self.peak, self.live)


def _storages(tree: Any) -> Iterator[tuple[int, torch.UntypedStorage]]:
    for leaf in tree_leaves(tree):
        if isinstance(leaf, torch.Tensor) and leaf.layout == torch.strided:
            storage = leaf.untyped_storage()
            yield storage._cdata, storage
