"""C++ kernels in memory of exact size.

Every C++ kernel is called through the public ops with samples of the suite and with random ragged
shapes, in all dtypes and layouts that it takes. All arrays that reach it (arguments, caches,
results and workspaces, whoever has allocated them) are copied into buffers of exactly their size
between pages that nothing may touch, flush with one of them or up to 63 bytes away. An access
beside them ends the process; what lies between buffer and page, or between the rows of a strided
tensor, holds NaN and must stay as it is. The default dtype is another one in each call, and so are
instruction set and number of threads. Results and gradients have the bits that the same call has in
ordinary memory. Not covered: instruction sets that the processor lacks, and reads inside of an
array that belong to another of its elements.

``python -m tests.reliability.guard_pages FIRST [COUNT] [--heap]`` repeats cases by their numbers;
with ``--heap`` the buffers are allocations of exact size, for AddressSanitizer.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from random import Random
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch.utils import _pytree as pytree

from bitdance_kernels import BackendError
from bitdance_kernels._dispatch.op import REGISTRY
from bitdance_kernels._shared import native
from bitdance_kernels.testing import cpu_isa, cpu_isas, cpu_threads
from tests.reliability.calls import (
    Outcome,
    compare_outcomes,
    draw_case,
    name_of,
    names,
    outcome,
    own_written,
)
from tests.reliability.guarded import GuardPages, Heap, Memory, Placed
from tests.reliability.isolated import Note, run_isolated
from tests.reliability.promise import Promise
from tests.reliability.ragged import Ragged

__all__ = ["PROMISES", "guarded_kernels", "measure", "run_case"]

PROMISES = (
    Promise(
        "calls of C++ kernels between guard pages",
        "C++ kernels touch nothing beside their arrays, and give the bits of ordinary memory",
        20_000,
        "calls",
        "nightly",
    ),
)
DEFAULTS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
_PER_PROCESS = 5000
_CALLS_TO_A_PLAN = 3  # the last of so many equal calls goes to C++ without Python
# Functions of the module that take no arrays, or objects of Python.
_NO_KERNELS = {
    "Recording", "call_again", "call_key", "evenly_spaced", "few_queries", "isa", "isa_detected",
    "limit_memory", "limit_multiply_add", "planned", "readable", "set_isa_limit", "signature",
    "start_recording", "stop_recording", "take_recording",
}  # fmt: skip


def kernels() -> dict[str, Callable[..., Any]]:
    """The functions of the compiled module that take arrays, by name."""
    native.cpu.isa()  # loads it
    found = {name: f for name, f in vars(native.cpu._module).items() if callable(f)}
    return {
        name: f for name, f in found.items() if not name.startswith("_") and name not in _NO_KERNELS
    }


@contextmanager
def guarded_kernels(memory: Memory, random: Random) -> Iterator[set[str]]:
    """A context in which every C++ kernel gets its arrays in guarded memory.

    Args:
        memory: where the arrays are placed.
        random: draws the places.

    Returns:
        The names of the kernels that are called in the context.
    """
    called: set[str] = set()

    def guard(name: str, kernel: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any) -> Any:
            called.add(name)
            at = [i for i, arg in enumerate(args) if isinstance(arg, (torch.Tensor, np.ndarray))]
            placed = Placed(memory, [torch.as_tensor(args[i]) for i in at], random)
            given = list(args)
            for i, tensor in zip(at, placed.tensors, strict=True):
                given[i] = tensor
            try:
                return kernel(*given)
            finally:
                placed.restore()

        return run

    wrapped = {name: guard(name, kernel) for name, kernel in kernels().items()}
    with _through_python(), mock.patch.dict(vars(native.cpu), wrapped):
        yield called


def run_case(number: int, memory: Memory) -> set[str] | None:
    """Run the case of a number in ordinary and in guarded memory.

    Returns:
        The names of the kernels that were called; None if C++ does not take the drawn call.

    Raises:
        AssertionError: the results differ, or memory beside an array was written.
    """
    random = Random(number)
    name, call = draw_case(number, random)
    default, isa = random.choice(DEFAULTS), random.choice(cpu_isas())
    gradients, again = bool(call.leaves) and random.random() < 0.5, random.random() < 0.3
    where = f"{name}, default {default}, {isa}{', gradients' * gradients}"
    with cpu_isa(isa), cpu_threads(random.randint(1, 3)):
        try:
            expected = outcome(call, gradients)
        except BackendError:
            return None
        with guarded_kernels(memory, random) as called:
            found = _guarded_outcome(call, gradients, default, memory, random)
        compare_outcomes(found, expected, where)
        if again:  # like one before, without Python: results and workspaces are ordinary
            found = _guarded_outcome(
                call, gradients, default, memory, random, times=_CALLS_TO_A_PLAN
            )
            compare_outcomes(found, expected, f"{where}, again")
    return called


def _guarded_outcome(
    call: Ragged,
    gradients: bool,
    default: torch.dtype,
    memory: Memory,
    random: Random,
    *,
    times: int = 1,
) -> Outcome:
    """The outcome of a call with its arguments in guarded memory, made so many times."""
    leaves, spec = pytree.tree_flatten((own_written(call), dict(call.kwargs)))
    at = [i for i, leaf in enumerate(leaves) if isinstance(leaf, torch.Tensor)]
    placed = Placed(memory, [leaves[i] for i in at], random)
    for i, tensor in zip(at, placed.tensors, strict=True):
        leaves[i] = tensor
    args, kwargs = pytree.tree_unflatten(leaves, spec)
    guarded = Ragged(call.function, args, kwargs, call.written, call.leaves)
    before = torch.get_default_dtype()
    torch.set_default_dtype(default)
    try:
        for _ in range(times - 1):
            outcome(guarded, gradients, own=False)
        return outcome(guarded, gradients, own=False)
    finally:
        torch.set_default_dtype(before)
        placed.restore()


@contextmanager
def _through_python() -> Iterator[None]:
    """A context in which no call goes to its kernel without Python, as one like before would."""
    before = [(op, op._chosen) for op in REGISTRY.values()]
    for op, _ in before:
        op._chosen = {}
    try:
        yield
    finally:
        for op, chosen in before:
            op._chosen = chosen


def run_cases(note: Note, first: int, count: int, heap: bool = False) -> tuple[int, set[str]]:
    """Run cases by number; the number of calls, and the names of functions and kernels called.

    Raises:
        AssertionError: with the case.
    """
    memory: Memory = Heap() if heap else GuardPages()
    calls, reached = 0, set[str]()
    for number in range(first, first + count):
        note(f"python -m tests.reliability.guard_pages {number} ({name_of(number)})")
        called = run_case(number, memory)
        if called is not None:
            calls += 1
            reached |= {name_of(number), *called}
    return calls, reached


def measure(scale: float) -> dict[str, float]:
    """Calls that passed, at least ``20_000 * scale``; see ``Measure``.

    Raises:
        AssertionError: a call fails, or a function or kernel is never called.
    """
    goal, done, first, reached = PROMISES[0].goal * scale, 0, 0, set[str]()
    while done < goal:
        count = min(_PER_PROCESS, int(1.1 * (goal - done)) + len(names()))
        calls, names_reached = run_isolated(run_cases, first, count)
        done, first, reached = done + calls, first + count, reached | names_reached
    if missing := {*names(), *kernels()} - reached:
        raise AssertionError(f"guard_pages: no call of {sorted(missing)}")
    return {PROMISES[0].name: done}


def main() -> None:
    """Repeat cases in this process; each is named before it runs."""
    parser = argparse.ArgumentParser(description="Repeat cases by their numbers.")
    parser.add_argument("first", type=int)
    parser.add_argument("count", type=int, nargs="?", default=1)
    parser.add_argument("--heap", action="store_true")
    options = parser.parse_args()
    calls, _ = run_cases(
        lambda text: print(text, flush=True), options.first, options.count, options.heap
    )
    print(f"{calls} calls passed")


if __name__ == "__main__":
    main()
