"""Memory of exact size, in which an access beside a tensor is an error.

``GuardPages`` puts each tensor between pages that nothing may touch: an access beside it ends the
process by a signal (see ``isolated``). What lies between a tensor and the pages holds NaN, and is
compared after the call. ``Heap`` leaves all that to AddressSanitizer, which knows the end of every
allocation.
"""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, Protocol

import torch

__all__ = ["FILL", "GuardError", "GuardPages", "Heap", "Memory", "Placed", "bits"]

FILL = 0xFF
"""Byte of unwritten memory: NaN in every floating-point dtype, -1 in every signed integer."""
MAX_OFFSET = 64
_PAGE = mmap.PAGESIZE
_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_libc = ctypes.CDLL(None, use_errno=True)


class GuardError(AssertionError):
    """Memory beside a tensor was written."""


@dataclass(frozen=True)
class Buffer:
    """Memory of a tensor, and what may be touched around it.

    Attributes:
        address: where the tensor begins.
        size: bytes of the tensor.
        first: where the accessible memory begins.
        end: where it ends.
    """

    address: int
    size: int
    first: int
    end: int

    def check(self) -> None:
        """Look at what lies beside the tensor.

        Raises:
            GuardError: it was written.
        """
        behind = self.address + self.size
        for begin, end in ((self.first, self.address), (behind, self.end)):
            found = ctypes.string_at(begin, end - begin)
            if found.count(FILL) != end - begin:
                at = next(i for i, byte in enumerate(found) if byte != FILL)
                where = begin + at - (self.address if begin == self.first else behind)
                side = "before its begin" if begin == self.first else "past its end"
                raise GuardError(
                    f"a tensor of {self.size} bytes was written {abs(where)} bytes {side}"
                )


class Memory(Protocol):
    """Where tensors are placed."""

    def take(self, size: int, random: Random, unit: int, residue: int) -> Buffer:
        """Memory for `size` bytes at a drawn place, at an address of `residue` modulo `unit`."""

    def give(self, buffer: Buffer) -> None:
        """Take a buffer back."""


class GuardPages:
    """Buffers flush with a page that nobody may touch, or up to 63 bytes away from it.

    Mappings are reused by later buffers of as many pages and never unmapped.

    Args:
        side: "begin" or "end", which of a buffer is beside the page; None for a drawn one.
        offsets: whether every other buffer lies away from the page; the others are flush with it,
            or as near as their alignment lets them.
    """

    def __init__(self, side: str | None = None, *, offsets: bool = True) -> None:
        self._side, self._offsets = side, offsets
        self._free: dict[int, list[int]] = {}
        self._mappings: list[mmap.mmap] = []

    def take(self, size: int, random: Random, unit: int, residue: int) -> Buffer:
        """See ``Memory``.

        Raises:
            OSError: there is no memory.
        """
        offset = random.randrange(MAX_OFFSET) if self._offsets and random.random() < 0.5 else 0
        pages = max(1, -(-(size + offset + unit - 1) // _PAGE))
        free = self._free.setdefault(pages, [])
        first = free.pop() if free else self._map(pages)
        end = first + pages * _PAGE
        if (self._side or random.choice(("begin", "end"))) == "end":
            address = end - size - offset
            address -= (address - residue) % unit
        else:
            address = first + offset
            address += (residue - address) % unit
        ctypes.memset(first, FILL, pages * _PAGE)
        return Buffer(address, size, first, end)

    def give(self, buffer: Buffer) -> None:
        """See ``Memory``."""
        self._free[(buffer.end - buffer.first) // _PAGE].append(buffer.first)

    def _map(self, pages: int) -> int:
        """Begin of new accessible pages, with one on each side that is not."""
        mapping = mmap.mmap(-1, (pages + 2) * _PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self._mappings.append(mapping)
        address = ctypes.addressof(ctypes.c_char.from_buffer(mapping))
        for guard in (address, address + (pages + 1) * _PAGE):
            if _libc.mprotect(ctypes.c_void_p(guard), ctypes.c_size_t(_PAGE), 0) != 0:
                raise OSError(ctypes.get_errno(), "mprotect")
        return address + _PAGE


class Heap:
    """Allocations of their own that end with the tensor, up to 63 bytes from their begin."""

    def __init__(self) -> None:
        _libc.malloc.restype = ctypes.c_void_p

    def take(self, size: int, random: Random, unit: int, residue: int) -> Buffer:
        """See ``Memory``.

        Raises:
            MemoryError: there is no memory.
        """
        offset = random.choice((0, random.randrange(MAX_OFFSET)))
        offset += (residue - offset) % unit  # malloc aligns to more than any unit
        first = _libc.malloc(ctypes.c_size_t(offset + size))
        if first is None:
            raise MemoryError(f"no {offset + size} bytes")
        ctypes.memset(first, FILL, offset + size)
        return Buffer(first + offset, size, first, first + offset + size)

    def give(self, buffer: Buffer) -> None:
        """See ``Memory``."""
        _libc.free(ctypes.c_void_p(buffer.first))


@dataclass(frozen=True)
class _Group:
    """Tensors that share elements, in one buffer."""

    buffer: Buffer
    source: int  # address that the buffer stands for
    members: tuple[tuple[torch.Tensor, torch.Tensor], ...]  # as they were, as they are placed


class Placed:
    """Tensors with the values of others, each alone in guarded memory of exactly its size.

    What lies between the rows of a strided tensor is NaN. Tensors that share elements are placed
    together, as they were.

    Args:
        memory: where to place them.
        tensors: strided tensors on the CPU; those without elements stay where they are.
        random: draws the places.
        unit: addresses keep their residue modulo this many bytes; None for the size of an element.

    Attributes:
        tensors: the placed tensors, in order.
    """

    def __init__(
        self,
        memory: Memory,
        tensors: Sequence[torch.Tensor],
        random: Random,
        unit: int | None = None,
    ) -> None:
        self._memory, self._random, self._unit = memory, random, unit
        placed: dict[int, torch.Tensor] = {}
        self._groups: list[_Group] = []
        plain = [(i, t.detach()) for i, t in enumerate(tensors) if t.numel() > 0]
        for group in _grouped(plain):
            members = self._place([tensor for _, tensor in group])
            placed |= {i: new for (i, _), (_, new) in zip(group, members, strict=True)}
        self.tensors = [placed.get(i, tensor) for i, tensor in enumerate(tensors)]

    def restore(self) -> None:
        """Copy what has changed to the tensors that these stand for, and give the memory back.

        Raises:
            GuardError: something beside a tensor was written.
        """
        groups, self._groups = self._groups, []
        for group in groups:
            group.buffer.check()
            if len(group.members) > 1 or _is_dense(group.members[0][0]):
                buffer = group.buffer
                found = ctypes.string_at(buffer.address, buffer.size)
                if found != ctypes.string_at(group.source, buffer.size):
                    ctypes.memmove(group.source, buffer.address, buffer.size)
            else:
                self._restore_strided(group)
            self._memory.give(group.buffer)

    def _place(self, tensors: list[torch.Tensor]) -> tuple[tuple[torch.Tensor, torch.Tensor], ...]:
        begins, ends = zip(*map(_span, tensors), strict=True)
        first, end = min(begins), max(ends)
        unit = self._unit or max(tensor.element_size() for tensor in tensors)
        buffer = self._memory.take(end - first, self._random, unit, first % unit)
        members = tuple(
            (tensor, _view(tensor, buffer.address + begin - first, stop - begin))
            for tensor, begin, stop in zip(tensors, begins, ends, strict=True)
        )
        if len(tensors) > 1 or _is_dense(tensors[0]):
            ctypes.memmove(buffer.address, first, buffer.size)
        else:
            _once(members[0][1]).copy_(_once(tensors[0]))
        self._groups.append(_Group(buffer, first, members))
        return members

    def _restore_strided(self, group: _Group) -> None:
        ((tensor, placed),) = group.members
        buffer = group.buffer
        expected = torch.full((buffer.size,), FILL, dtype=torch.uint8, device="cpu")
        _once(_view(tensor, expected.data_ptr(), buffer.size)).copy_(_once(placed))
        if bytes(expected.numpy()) != ctypes.string_at(buffer.address, buffer.size):
            raise GuardError(
                f"memory between the rows of a tensor {list(tensor.shape)} was written"
            )
        if not torch.equal(bits(_once(tensor)), bits(_once(placed))):
            _once(tensor).copy_(_once(placed))


def bits(tensor: torch.Tensor) -> torch.Tensor:
    """The elements of `tensor` as integers of their size, to compare every NaN by its bits."""
    return tensor.detach().view(_INTEGERS[tensor.element_size()])


def _span(tensor: torch.Tensor) -> tuple[int, int]:
    """Addresses of the first element and of the end of the last one."""
    steps = zip(tensor.shape, tensor.stride(), strict=True)
    elements = 1 + sum((size - 1) * stride for size, stride in steps)
    begin = tensor.data_ptr()
    return begin, begin + elements * tensor.element_size()


def _is_dense(tensor: torch.Tensor) -> bool:
    begin, end = _span(tensor)
    return end - begin == tensor.numel() * tensor.element_size()


def _view(like: torch.Tensor, address: int, size: int) -> torch.Tensor:
    """A tensor of the shape, strides and dtype of another, over memory of `size` bytes."""
    memory: Any = (ctypes.c_uint8 * size).from_address(address)
    flat = torch.frombuffer(memory, dtype=like.dtype)
    return flat.as_strided(like.shape, like.stride())


def _once(tensor: torch.Tensor) -> torch.Tensor:
    """Every element once: the first along dimensions in which they repeat."""
    for dimension, stride in enumerate(tensor.stride()):
        if stride == 0 and tensor.shape[dimension] > 1:
            tensor = tensor.narrow(dimension, 0, 1)
    return tensor


def _grouped(tensors: list[tuple[int, torch.Tensor]]) -> list[list[tuple[int, torch.Tensor]]]:
    """Those that share elements, directly or by others, together."""
    spans = {index: _span(tensor) for index, tensor in tensors}
    groups: list[list[tuple[int, torch.Tensor]]] = []
    for index, tensor in tensors:
        merged, others = [(index, tensor)], []
        first, past = spans[index]
        for group in groups:
            near = [t for i, t in group if spans[i][0] < past and first < spans[i][1]]
            if any(_share(tensor, other) for other in near):
                merged += group
            else:
                others.append(group)
        groups = [*others, merged]
    return groups


def _share(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether two tensors whose memory overlaps have an element in common."""
    (first, past), (other, end) = _span(a), _span(b)
    begin = min(first, other)
    marks = [torch.zeros(max(past, end) - begin, dtype=torch.uint8, device="cpu") for _ in "ab"]
    for tensor, mark in zip((a, b), marks, strict=True):
        item = tensor.element_size()
        shape, strides = (*tensor.shape, item), (*(item * s for s in tensor.stride()), 1)
        mark.as_strided(shape, strides, tensor.data_ptr() - begin).fill_(1)
    return bool((marks[0] & marks[1]).any())
