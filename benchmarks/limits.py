"""Limits of this processor: loops in C that take turns with what is held against them.

A call that must read and write some bytes takes at least as long as a loop that does nothing else
with as many, in memory that is as near; and its multiply-adds as long as that many in registers.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from bitdance_kernels._shared import native

_GRAIN, _LINE = 256, 64
_MEASURED = 2**28
_MOST = 0.8
_MAX_OPERATIONS = 1e8  # less than a millisecond; more are as many times as long


class Limit(NamedTuple):
    """What bounds a call.

    Attributes:
        by: "memory" or "multiply-adds".
        run: the loop.
        scale: how many times as long as the loop the call must take.
    """

    by: str
    run: Callable[[], object]
    scale: float = 1.0

    def seconds(self) -> float:
        """Best processor time of three runs after a first."""
        return self.scale * min(_processor_time(self.run) for _ in range(4))


def unavailable() -> str | None:
    """Why nothing is measured here."""
    return native.cpu.unavailable("limit_memory")


def of(read: int, written: int, flops: float, inputs: Iterable[Tensor] = ()) -> Limit:
    """The longest limit of a call that must read and write so many bytes."""
    limits = [memory(read, written, inputs), *([multiply_adds(flops)] if flops else [])]
    return max(limits, key=Limit.seconds)


def memory(read: int, written: int, inputs: Iterable[Tensor] = ()) -> Limit:
    """By the bytes: through the caches or past them, whichever is faster here.

    If one of the inputs is most of what is read, the loop reads that one, which is then as near to
    the processor as it is for the others who take turns.
    """
    scale, source = 1.0, None
    for tensor in inputs:
        if tensor.is_contiguous() and read >= tensor.nbytes >= max(_MOST * read, _GRAIN):
            scale, read = read / tensor.nbytes, tensor.nbytes // _GRAIN * _GRAIN
            source = tensor
            break
    read, written = (-(-count // _GRAIN) * _GRAIN for count in (read, written))
    if source is None or source.data_ptr() % _LINE:
        source = _bytes("read", read)
    target, words = _bytes("written", written), torch.zeros(1).long()
    ways = [
        Limit("memory", functools.partial(
            native.cpu.limit_memory, source, read, target, written, streaming, words,
        ), scale)
        for streaming in (0, 1)
    ]  # fmt: skip
    return min(ways, key=Limit.seconds)


def multiply_adds(flops: float) -> Limit:
    """By the arithmetic, in float32."""
    total, done = torch.zeros(1), torch.zeros(1, dtype=torch.int64)
    run = functools.partial(native.cpu.limit_multiply_add, 1, 1.0, 1.0, total, done)
    run()
    rounds = max(1, round(min(flops, _MAX_OPERATIONS) / done.item()))
    run = functools.partial(native.cpu.limit_multiply_add, rounds, 1.0, 1.0, total, done)
    run()
    return Limit("multiply-adds", run, flops / done.item())


def measure() -> dict[str, float]:
    """Bandwidths of 256 MB, where a copy counts twice, and the rate of multiply-adds.

    Empty where the C++ module was not built.
    """
    if unavailable() is not None:
        return {}
    sizes = {"read": (_MEASURED, 0), "write": (0, _MEASURED), "copy": (_MEASURED, _MEASURED)}
    rates = {f"{k}_gb_s": sum(size) / 1e9 / memory(*size).seconds() for k, size in sizes.items()}
    return rates | {"fma_gflop_s": 1.0 / multiply_adds(1e9).seconds()}


def _processor_time(run: Callable[[], object]) -> float:
    begin = time.process_time()
    run()
    return time.process_time() - begin


_held: dict[str, Tensor] = {}


def _bytes(name: str, count: int) -> Tensor:
    """Memory that is used again for all sizes up to the largest."""
    if name not in _held or len(_held[name]) < count:
        memory = torch.from_numpy(np.empty(count + _LINE, np.uint8)).zero_()  # has huge pages
        _held[name] = memory[-memory.data_ptr() % _LINE :]
    return _held[name][:count]
