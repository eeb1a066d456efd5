"""Parts of a model that are on a device in turns, and in the memory of the host otherwise."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch

__all__ = ["ModelOffload", "Turn"]


class Turn:
    """Weights that are on a device while they are in use, and on the host alone otherwise.

    Those on the host are kept: they are copied to the device when the first user comes, and the
    copies are dropped when the last one leaves, so that nothing is copied back.

    Args:
        tensors: parameters and buffers, on the host.
        device: device where they are used.
        on_leave: called when the copies are dropped, to drop all else that refers to them.
    """

    def __init__(
        self, tensors: Sequence[torch.Tensor], device: torch.device, on_leave: Callable[[], None]
    ) -> None:
        self._tensors = list(tensors)
        self._device, self._on_leave = device, on_leave
        self._users = 0
        self._homes: list[torch.Tensor] = []

    def enter(self) -> None:
        """Bring the weights to the device, unless somebody uses them there."""
        self._users += 1
        if self._users > 1:
            return
        self._homes = [tensor.data for tensor in self._tensors]
        for tensor, home in zip(self._tensors, self._homes, strict=True):
            # A copy on a CPU too, so that what holds there holds on a card.
            tensor.data = home.to(self._device, copy=True)

    def leave(self) -> None:
        """Drop the copies on the device, unless somebody else uses them."""
        self._users -= 1
        if self._users:
            return
        for tensor, home in zip(self._tensors, self._homes, strict=True):
            tensor.data = home
        self._homes = []
        self._on_leave()


class ModelOffload:
    """Turns of a model's parts. Calls wait for each other, so that there is one turn at a time.

    A turn inside of another one, of the same thread, adds its weights to those on the device.

    Args:
        turns: weights and ``on_leave`` by the name of a turn, see ``Turn``.
        device: device where they are used.

    Attributes:
        device: as the argument.
    """

    def __init__(
        self,
        turns: Mapping[str, tuple[Sequence[torch.Tensor], Callable[[], None]]],
        device: torch.device,
    ) -> None:
        self.device = device
        self._turns = {name: Turn(held, device, leave) for name, (held, leave) in turns.items()}
        self._lock = threading.RLock()

    @contextmanager
    def turn(self, name: str) -> Iterator[None]:
        """Inside, the weights of that turn are on the device."""
        with self._lock:
            turn = self._turns[name]
            turn.enter()
            try:
                yield
            finally:
                turn.leave()
