"""Cases by their numbers: calls of C++ kernels, samples and ragged ones, and all that they give."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from random import Random
from typing import Any

import torch
from torch.utils import _pytree as pytree

from tests.cases import all_cases
from tests.reliability.guarded import bits
from tests.reliability.ragged import DRAWS, Draw, Ragged

__all__ = [
    "Outcome", "compare_outcomes", "draw_case", "name_of", "names", "outcome", "own_written",
    "samples",
]  # fmt: skip

Outcome = Mapping[str, torch.Tensor] | str
"""Results, written arguments and gradients of a call by name; or why it refuses an index."""


@functools.cache
def names() -> tuple[str, ...]:
    """Names of the functions that have cases: all ops with a C++ backend, and those of DRAWS."""
    ops = {name for name, case in all_cases().items() if "cpu" in case.kernel_op.backends}
    return tuple(sorted(ops | set(DRAWS)))


def name_of(number: int) -> str:
    """Name of the function that the case of a number calls."""
    return names()[number % len(names())]


def draw_case(number: int, random: Random) -> tuple[str, Ragged]:
    """Name and call of a case: one in four is a sample of the op, the others are ragged.

    An op that is not among DRAWS has its samples alone.
    """
    name = name_of(number)
    known = samples(name)
    if known and (name not in DRAWS or random.random() < 0.25):
        return random.choice(known)
    return name, DRAWS[name](Draw(random))


@functools.cache
def samples(op: str) -> list[tuple[str, Ragged]]:
    """Names and calls of the samples of an op; none of a function that is no op."""
    case = all_cases().get(op)
    if case is None:
        return []
    found = []
    for call in case.samples(torch.device("cpu")):
        floats = [isinstance(x, torch.Tensor) and x.is_floating_point() for x in call.args]
        leaves: tuple[int, ...] = ()
        if case.kernel_op.differentiable:
            leaves = tuple(i for i, x in enumerate(floats) if x and i not in case.constants)
        ragged = Ragged(case.op, call.args, call.kwargs, case.mutates, leaves)
        found.append((f"{op} [{call.name}]", ragged))
    return found


def own_written(call: Ragged) -> tuple[Any, ...]:
    """The arguments, with copies of those that are written, in the same layout."""
    args = list(call.args)
    for i in call.written:
        args[i] = _copy(args[i])
    return tuple(args)


def _copy(tensor: torch.Tensor) -> torch.Tensor:
    steps = zip(tensor.shape, tensor.stride(), strict=True)
    elements = 1 + sum((size - 1) * stride for size, stride in steps if size > 0)
    memory = torch.zeros(elements, dtype=tensor.dtype, device="cpu")
    return memory.as_strided(tensor.shape, tensor.stride()).copy_(tensor)


def outcome(call: Ragged, gradients: bool, *, own: bool = True, backend: str = "cpu") -> Outcome:
    """Copies of all that a call gives by name; the message if it refuses an index.

    Args:
        call: the call.
        gradients: whether to differentiate it too.
        own: whether it writes copies of the arguments that it writes.
        backend: name of the backend.
    """
    args = own_written(call) if own else call.args
    leaves: list[torch.Tensor] = []
    if gradients:
        args = tuple(
            arg.detach().requires_grad_() if i in call.leaves and arg is not None else arg
            for i, arg in enumerate(args)
        )
        leaves = [args[i] for i in call.leaves if args[i] is not None]
    try:
        results = pytree.tree_leaves(call.function(*args, **call.kwargs, backend=backend))
    except IndexError as error:
        return str(error)
    outputs = {f"output {i}": t for i, t in enumerate(results) if isinstance(t, torch.Tensor)}
    outputs |= {f"argument {i}": args[i] for i in call.written}
    if gradients:
        chosen = [t for t in outputs.values() if t.requires_grad]
        found = torch.autograd.grad(
            chosen, leaves, [_cotangent(t) for t in chosen], allow_unused=True
        )
        outputs |= {f"gradient {i}": g for i, g in enumerate(found) if g is not None}
    return {name: t.detach().clone() for name, t in outputs.items()}


def _cotangent(like: torch.Tensor) -> torch.Tensor:
    values = torch.arange(like.numel(), dtype=torch.int64, device="cpu") * 5 % 17 - 8
    return (values.to(like.dtype) / 8).view(like.shape)


def compare_outcomes(found: Outcome, expected: Outcome, where: str) -> None:
    """Compare all bits of two outcomes of a call.

    Raises:
        AssertionError: they differ; the message begins with `where`.
    """
    if isinstance(found, str) or isinstance(expected, str):
        if found != expected:
            raise AssertionError(f"{where}: {found!r}, expected {expected!r}")
        return
    for name, tensor in expected.items():
        other = found[name]
        if other.dtype != tensor.dtype or other.shape != tensor.shape:
            raise AssertionError(f"{where}: {name} is {other.dtype} {list(other.shape)}")
        wrong = int((bits(other) != bits(tensor)).sum())
        if wrong:
            raise AssertionError(f"{where}: {wrong} of {tensor.numel()} elements of {name} differ")
