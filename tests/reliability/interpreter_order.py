"""Triton kernels in memory of exact size, with their programs in other orders.

Every sample of every op with a Triton backend that the interpreter computes rightly (no bfloat16)
runs in it four times, gradients included: as it is, and with all tensors of every launch between
guard pages while the programs of a grid run in order, in reverse and shuffled. A lane that reads or
writes past a tensor ends the process, masked lanes may point anywhere, and all four runs give the
same bits. Kernels of which programs meet in atomics (bit_counts) add integers, so no order is
exempt. Not covered: programs that run at the same time, and accesses inside of a tensor that belong
to other elements.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from random import Random
from typing import Any
from unittest import mock

import torch
from triton.runtime import interpreter

from bitdance_kernels import BackendError
from bitdance_kernels._shared import triton_support
from bitdance_kernels.testing import poisoned_memory
from tests.cases import all_cases
from tests.interpreter import quicken, refuse_negative_coordinates
from tests.reliability.calls import Outcome, compare_outcomes, outcome, samples
from tests.reliability.guarded import GuardPages, Memory, Placed
from tests.reliability.isolated import Note, run_isolated
from tests.reliability.promise import Promise

__all__ = ["ORDERS", "PROMISES", "check_orders", "guarded_launches", "measure", "permuted"]

PROMISES = (
    Promise(
        "runs of Triton kernels between guard pages",
        "Triton kernels touch nothing beside their tensors and give the same bits in every order "
        "of their programs",
        600,
        "runs",
        "nightly",
    ),
)
ORDERS = {"forward": "end", "reverse": "begin", "shuffled": "end"}
"""Orders of programs, and the side on which all tensors are flush with a page."""

Index = tuple[int, ...]


@contextmanager
def permuted(order: str, random: Random) -> Iterator[None]:
    """A context in which the programs of every grid run in an order of ORDERS."""
    builder = interpreter.interpreter_builder
    set_size, set_index = builder.set_grid_dim, builder.set_grid_idx
    places: dict[Index, Index] = {}

    def set_grid_dim(*grid: int) -> None:
        set_size(*grid)
        indices = list(itertools.product(*map(range, grid)))
        turned = indices[::-1] if order == "reverse" else list(indices)
        if order == "shuffled":
            random.shuffle(turned)
        places.clear()
        places.update(zip(indices, turned, strict=True))

    def set_grid_idx(*index: int) -> None:
        set_index(*places[index])

    changed = {"set_grid_dim": set_grid_dim, "set_grid_idx": set_grid_idx}
    with mock.patch.dict(vars(builder), changed):
        yield


@contextmanager
def guarded_launches(memory: Memory, random: Random) -> Iterator[None]:
    """A context in which every launch of a kernel has its tensors in guarded memory."""
    executor = interpreter.GridExecutor
    to_host = executor._init_args_hst
    launches: list[Placed] = []

    def init_args_hst(self: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        found: list[torch.Tensor] = []

        def note(tensor: torch.Tensor) -> torch.Tensor:
            found.append(tensor)
            return tensor

        _replace((args, kwargs), note)
        placed = Placed(memory, found, random)
        launches.append(placed)
        tensors = iter(placed.tensors)
        args, kwargs = _replace((args, kwargs), lambda _: next(tensors))
        return to_host(self, args, kwargs)

    def restore_args_dev(*_: Any) -> None:
        launches.pop().restore()

    with (
        mock.patch.object(executor, "_init_args_hst", init_args_hst),
        mock.patch.object(executor, "_restore_args_dev", restore_args_dev),
    ):
        yield


def _replace(value: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """A copy of arguments with every tensor changed, also those of descriptors."""
    if isinstance(value, torch.Tensor):
        return change(value)
    if isinstance(value, dict):
        return {name: _replace(each, change) for name, each in value.items()}
    if isinstance(value, interpreter.TensorDescriptor):
        return interpreter.TensorDescriptor(
            change(value.base), value.shape, value.strides, value.block_shape, value.padding,
            value.round_f32_to_tf32,
        )  # fmt: skip
    if isinstance(value, tuple):
        return interpreter._tuple_create(value, [_replace(each, change) for each in value])
    return value


@functools.cache
def _memory(side: str) -> GuardPages:
    return GuardPages(side, offsets=False)


def check_orders(run: Callable[[], Outcome], random: Random, where: str) -> Outcome:
    """Run kernels as they are, then in guarded memory in each order.

    Args:
        run: launches the kernels.
        random: draws orders.
        where: name of the case, for messages.

    Returns:
        What they give.

    Raises:
        AssertionError: an order gives other bits, or memory beside a tensor was written.
    """
    with poisoned_memory():
        expected = run()
        for order, side in ORDERS.items():
            with permuted(order, random), guarded_launches(_memory(side), random):
                found = run()
            compare_outcomes(found, expected, f"{where}, {order}")
    return expected


def run_samples(note: Note, step: int) -> int:
    """Check every `step`-th sample of all ops; the number of runs in guarded memory.

    Raises:
        AssertionError: with the sample.
    """
    if not triton_support.interpreting():
        raise RuntimeError("Triton was imported without TRITON_INTERPRET=1")
    quicken()
    refuse_negative_coordinates()
    runs = 0
    names = [name for name, case in all_cases().items() if "triton" in case.kernel_op.backends]
    everything = [sample for name in names for sample in samples(name)]
    for number in range(0, len(everything), step):
        name, call = everything[number]
        note(f"interpreter_order, sample {number}, {name}")
        run = functools.partial(outcome, call, bool(call.leaves), backend="triton")
        try:
            check_orders(run, Random(number), name)
        except BackendError:
            continue
        runs += len(ORDERS)
    return runs


def measure(scale: float) -> dict[str, float]:
    """Runs in guarded memory: of all samples, or of the part that `scale` says; see ``Measure``."""
    return {PROMISES[0].name: run_isolated(run_samples, max(1, round(1 / scale)))}
