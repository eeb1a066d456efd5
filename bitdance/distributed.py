"""The processes of a command that torchrun starts, or the only process of one that it does not.

Every method that exchanges something is called by all processes alike, in the same order. In a
world of one process they return at once, and PyTorch's process groups are not touched.
"""

from __future__ import annotations

import contextlib
import datetime
import itertools
import os
import re
import time
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d as c10d
from torch.distributed.rendezvous import rendezvous

from bitdance.io.files import one_line
from bitdance.io.validation import brief

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["World", "WorldError"]

T = TypeVar("T")

_TIMEOUT = "BITDANCE_TIMEOUT"
_DEFAULT_TIMEOUT = 600.0  # seconds; longer than rank 0 takes for a picture
_ERROR_KEY, _LEFT_KEY = "bitdance/error", "bitdance/left"
_LINGER = 3.0  # seconds
_LOST = re.compile(
    r"gloo|nccl|connection (closed|reset)|connection.*(refused|lost)|broken pipe|timed? ?out"
    r"|socket|store|rendezvous|clients joined", re.IGNORECASE,
)  # fmt: skip


class WorldError(RuntimeError):
    """Another process failed, ended or does not answer."""


class World:
    """The processes that work on one command.

    A context manager, which closes the world. See `from_env`.

    Attributes:
        rank: number of this process, from 0.
        size: number of processes.
        local_rank: number of this process on its machine.
        device: device of this process.
        group: process group of all of them, for CPU tensors and those of `device`; None in a world
            of one.
    """

    def __init__(
        self,
        rank: int = 0,
        size: int = 1,
        *,
        local_rank: int = 0,
        device: torch.device | str = "cpu",
        group: dist.ProcessGroup | None = None,
    ) -> None:
        self.rank, self.size, self.local_rank = rank, size, local_rank
        self.device, self.group = torch.device(device), group
        self._owned = False
        self._timeout = _DEFAULT_TIMEOUT

    @classmethod
    def from_env(cls, device: torch.device | str = "cpu", *, timeout: float | None = None) -> World:
        """The world that torchrun describes in the environment; of one process without it.

        Where the program has a default process group already, that is used and left open.

        Args:
            device: "cpu" or "cuda"; "cuda" becomes the device of `local_rank`.
            timeout: seconds that a process waits for the others, by default BITDANCE_TIMEOUT of
                the environment, or 600.

        Raises:
            ValueError: the environment is incomplete or contradicts itself.
            WorldError: not all processes came in time.
        """
        seconds = _seconds(timeout)
        if dist.is_available() and dist.is_initialized():
            rank, size = dist.get_rank(), dist.get_world_size()
            local = _number(os.environ, "LOCAL_RANK", 0, default=rank)
        else:
            size = _number(os.environ, "WORLD_SIZE", 1, default=1)
            rank = _number(os.environ, "RANK", 0, size - 1, default=0 if size == 1 else None)
            local = _number(os.environ, "LOCAL_RANK", 0, default=rank)
        device = torch.device(device)
        if size == 1:
            return cls(device=device)
        if device.type == "cuda":
            device = torch.device("cuda", local)
            torch.cuda.set_device(device)
        world = cls(rank, size, local_rank=local, device=device)
        world._timeout = seconds
        with world.watched("start"):
            world._join(seconds)
        return world

    def _join(self, seconds: float) -> None:
        if not dist.is_initialized():
            for name in ("MASTER_ADDR", "MASTER_PORT"):
                if not os.environ.get(name):
                    raise ValueError(f"World.from_env: {name} must be set, as torchrun does")
            # Small things go by gloo, so that they never wait for a GPU.
            backend = "cpu:gloo,cuda:nccl" if self.device.type == "cuda" else "gloo"
            timeout = datetime.timedelta(seconds=seconds)
            store = _new_store(self.rank, self.size, timeout)
            dist.init_process_group(
                backend, store=store, rank=self.rank, world_size=self.size, timeout=timeout
            )  # fmt: skip
            self._owned = True
        self.group = dist.group.WORLD
        self.barrier()

    def aside(self) -> World:
        """The same processes with connections of their own, for the CPU tensors of a thread.

        So that what the thread exchanges does not meet what others exchange. All processes call it.
        """
        if self.size == 1:
            return World()
        group = dist.new_group(backend="gloo", timeout=datetime.timedelta(seconds=self._timeout))
        world = World(self.rank, self.size, local_rank=self.local_rank, group=group)
        world._timeout = self._timeout
        return world

    @property
    def is_main(self) -> bool:
        """Whether this process writes what the processes have in common."""
        return self.rank == 0

    def share(self, count: int) -> range:
        """This process's share of `count` items: contiguous, sizes differ by at most one."""
        return range(self.rank * count // self.size, (self.rank + 1) * count // self.size)

    def barrier(self) -> None:
        """Wait until all processes are here."""
        self.any(False)

    def reduce_sum(self, value: torch.Tensor) -> torch.Tensor:
        """The sum of a tensor over the processes, equal bits on all; `value` is unchanged.

        Raises:
            WorldError: a process ended or does not answer.
        """
        if self.size == 1:
            return value
        result = value.detach().clone()
        with self.watched("reduce_sum"):
            dist.all_reduce(result, group=self.group)
        return result

    def reduce_mean(self, value: torch.Tensor) -> torch.Tensor:
        """The mean of a tensor over the processes; see `reduce_sum`."""
        return value if self.size == 1 else self.reduce_sum(value) / self.size

    def max(self, number: int) -> int:
        """The largest of the processes' numbers."""
        if self.size == 1:
            return number
        value = torch.tensor([number], dtype=torch.int64, device="cpu")
        with self.watched("max"):
            dist.all_reduce(value, dist.ReduceOp.MAX, group=self.group)
        return int(value)

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in any process."""
        return bool(self.max(int(flag)))

    def gather(self, value: T) -> list[T]:
        """The processes' small objects, by rank."""
        if self.size == 1:
            return [value]
        values: list[T] = [value] * self.size
        with self.watched("gather"):
            dist.all_gather_object(values, value, group=self.group)
        return values

    def broadcast(self, value: T, source: int = 0) -> T:
        """The small object of the process `source`."""
        if self.size == 1:
            return value
        values = [value]
        with self.watched("broadcast"):
            dist.broadcast_object_list(values, src=source, group=self.group)
        return values[0]

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """Inside, what fails in one process fails in all: the others raise a WorldError.

        The processes wait for each other at the end. Inside, a process may do what the others do
        not, but not exchange anything that they do not.
        """
        if self.size == 1:
            yield
            return
        error: Exception | None = None
        try:
            yield
        except WorldError:  # it is known that processes are lost
            raise
        except Exception as caught:
            error = caught
        problems = self.gather("" if error is None else one_line(error))
        if error is not None:
            raise error
        for rank, problem in enumerate(problems):
            if problem:
                raise WorldError(f"rank {rank}: {problem}")

    def check_equal(self, what: str, value: object) -> None:
        """Check that all processes have an equal object.

        Raises:
            ValueError: in all processes, naming those that differ from rank 0.
        """
        texts = self.gather(repr(value))
        other = [rank for rank, text in enumerate(texts) if text != texts[0]]
        if other:
            first, second = _difference(texts[0], texts[other[0]])
            raise ValueError(
                f"{what} must be equal in all processes, got {first} in rank 0 and {second} in "
                f"rank {other[0]}"
            )

    @contextlib.contextmanager
    def watched(self, what: str) -> Iterator[None]:
        """Inside, errors of the connections become a WorldError that says which process failed."""
        try:
            yield
        except WorldError:
            raise
        except RuntimeError as error:
            lost = isinstance(error, dist.DistError) or _LOST.search(str(error)) is not None
            if self.size == 1 or not lost:
                raise
            raise WorldError(self._explain(what, error)) from error

    def _explain(self, what: str, error: Exception) -> str:
        told = self._told()
        if told:
            return told
        return (
            f"rank {self.rank} of {self.size}: another process ended or did not answer within "
            f"{self._timeout:g} s ({what}: {one_line(error)})"
        )

    def tell(self, error: BaseException) -> bool:
        """Leave an error for the other processes; False if another process left one before.

        So that all errors that follow from one are not shown as if they were others.
        """
        if self.size == 1:
            return True
        text = one_line(error)
        if not isinstance(error, WorldError):  # which says whose it is
            text = f"rank {self.rank}: {text}"
        try:
            store = c10d._get_default_store()
            author = f"{self.rank} "
            return store.compare_set(_ERROR_KEY, "", author + text).decode().startswith(author)
        except Exception:  # the store ended with its process
            return True

    def _told(self) -> str:
        try:
            store = c10d._get_default_store()
            told = store.get(_ERROR_KEY).decode() if store.check([_ERROR_KEY]) else ""
            return told.partition(" ")[2]
        except Exception:
            return ""

    def close(self) -> None:
        """Leave the process group, if `from_env` made it; more calls do nothing."""
        if self._owned and dist.is_initialized():
            self.group = None  # its threads end with the last reference
            dist.destroy_process_group()
        self._owned = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        store = None
        if error is not None:
            self.tell(error)
            if self._owned and dist.is_initialized():
                store = c10d._get_default_store()
        self.close()
        if store is not None:
            lost = isinstance(error, WorldError)  # nobody needs to hear of it
            _leave(store, wait_for=self.size if self.is_main and not lost else 0)


_stores: dict[tuple[str, str], tuple[c10d.Store, itertools.count[int]]] = {}
"""By address: the connection that all worlds of this process use, and their numbers."""


def _new_store(rank: int, size: int, timeout: datetime.timedelta) -> c10d.Store:
    """The key-value store of a new world, which the processes find each other by.

    A store of its own would have the address of the one before, which may live for a moment: a
    process that is quick would read addresses there that nobody listens to. So all have one.
    """
    address = (os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"])
    if address not in _stores:
        store, _, _ = next(rendezvous("env://", rank, size, timeout=timeout))
        _stores[address] = (store, itertools.count())
    store, numbers = _stores[address]
    store.set_timeout(timeout)
    return c10d.PrefixStore(f"bitdance/{next(numbers)}", store)


def _leave(store: Any, wait_for: int) -> None:
    """Leave a world in which there was an error.

    The store with the error ends with rank 0, where torchrun has none of its own. So rank 0 waits a
    moment for those that have yet to see that the error is told.
    """
    end = time.monotonic() + _LINGER
    with contextlib.suppress(RuntimeError):  # its process has ended
        left = store.add(_LEFT_KEY, 1)
        while left < wait_for and time.monotonic() < end:
            time.sleep(0.01)
            left = store.add(_LEFT_KEY, 0)


def _difference(a: str, b: str) -> tuple[str, str]:
    """The parts of two texts around their first difference."""
    pairs = enumerate(zip(a, b, strict=False))
    same = next((i for i, (x, y) in pairs if x != y), min(len(a), len(b)))
    start = max(a.rfind(" ", 0, same) + 1, same - 40)
    return brief(a[start : start + 60]), brief(b[start : start + 60])


def _seconds(timeout: float | None) -> float:
    name, value = "timeout", timeout
    if value is None:
        name, text = _TIMEOUT, os.environ.get(_TIMEOUT, "").strip()
        try:
            value = float(text) if text else _DEFAULT_TIMEOUT
        except ValueError:
            value = 0.0
    if not 0 < value < 1e7:
        got = brief(os.environ.get(_TIMEOUT) if timeout is None else timeout)
        raise ValueError(f"World.from_env: {name} must be a number of seconds, got {got}")
    return value


def _number(
    values: Mapping[str, str], name: str, least: int, most: int = 2**20, *, default: int | None
) -> int:
    text = values.get(name, "").strip()
    if not text and default is not None:
        return default
    if not text.isdecimal() or not least <= int(text) <= most:
        expected = f"{least} to {most}" if most < 2**20 else f"an integer of at least {least}"
        raise ValueError(f"World.from_env: {name} must be {expected}, got {brief(text)}")
    return int(text)
