"""Every sample of every op under what PyTorch can put around a call.

``torch.library.opcheck`` (schema, fake kernel, autograd registration, tracing with dynamic shapes),
``torch.compile`` with inductor (static, dynamic shapes, under autocast, between operators that it
fuses), forward mode, ``vjp`` and ``vmap`` of ``torch.func``, inference mode, deterministic
algorithms, anomaly detection, foreign default dtypes and devices. Bits must be those of the plain
call; derivatives must fit each other; what an op cannot do must raise, and name it. CI takes some
samples, nightly all. ``python -m nox`` runs the same with other versions of PyTorch and Python.
Streams and CUDA graphs need a card: ``python -m benchmarks gpu`` runs every op on a stream of its
own and as a graph.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import pytest
import torch
import torch.func
from torch.utils import _pytree as pytree

from bitdance_kernels.testing import Call, Case
from tests.calls import Tensors, dual_level, function_of, like, own, recorded
from tests.cases import all_cases
from tests.defaults import foreign_defaults
from tests.reliability.promise import Promise

__all__ = [
    "CELLS", "PROMISES", "Sample", "alike", "check", "check_compiled", "measure", "samples", "some",
]  # fmt: skip

CPU = torch.device("cpu")
_OPCHECKS = (
    "test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic",
)  # fmt: skip
"""All of ``torch.library.opcheck``."""
Sample = tuple[Case, Call]

PROMISES = (
    Promise(
        "samples under opcheck", "Samples of ops that pass torch.library.opcheck", 700, "samples",
        "nightly",
    ),
    Promise(
        "samples in foreign modes",
        "Samples that have the same bits in inference mode, with deterministic algorithms, anomaly "
        "detection and foreign default dtypes and devices",
        700, "samples", "nightly",
    ),
    Promise(
        "samples under transforms",
        "Samples whose forward mode, vjp and vmap are right, or refused by name",
        700, "samples", "nightly",
    ),
    Promise(
        "compiled calls",
        "Calls compiled by inductor, static, dynamic and under autocast, with the bits of eager "
        "mode",
        100, "calls", "nightly",
    ),
)  # fmt: skip


def samples() -> Iterator[Sample]:
    """Every sample of every op on the CPU."""
    for case in all_cases().values():
        for call in case.samples(CPU):
            yield case, call


def some(every: int, turn: int | None = None) -> list[Sample]:
    """One sample in `every`, other ones for another `turn`, by default BITDANCE_TURN or 0."""
    turn = int(os.environ.get("BITDANCE_TURN", "0")) if turn is None else turn
    return list(samples())[turn % every :: every]


def _name(sample: Sample) -> str:
    return f"{sample[0].name} [{sample[1].name}]"


def _run(case: Case, call: Call) -> list[torch.Tensor]:
    """Results, then the arguments that the op writes."""
    results = pytree.tree_leaves(case.op(*call.args, **call.kwargs))
    return [t for t in results if isinstance(t, torch.Tensor)] + [
        call.args[i] for i in case.mutates
    ]


def _equal(actual: Iterable[torch.Tensor], expected: Iterable[torch.Tensor], where: str) -> None:
    for n, (a, b) in enumerate(zip(actual, expected, strict=True)):
        try:
            torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)
        except AssertionError as error:
            raise AssertionError(f"{where}, result {n}: {error}") from None


def check_registration(case: Case, call: Call) -> None:
    """``opcheck`` of each operator that the call runs.

    It takes NaN for another value than NaN, so an operator that gives it, such as a mean over no
    tokens, is not compared with its traced form.
    """
    for func, args in recorded(case, call, requires_grad=True):
        with torch.no_grad():
            results = pytree.tree_leaves(
                func(*pytree.tree_map_only(torch.Tensor, torch.clone, args))
            )
        checks = list(_OPCHECKS)
        if any(t.is_floating_point() and t.isnan().any() for t in results):
            checks.remove("test_aot_dispatch_dynamic")
        torch.library.opcheck(func, args, test_utils=checks)


@contextlib.contextmanager
def _deterministic() -> Iterator[None]:
    was = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(was)


MODES: dict[str, Callable[[], contextlib.AbstractContextManager[Any]]] = {
    "inference mode": torch.inference_mode,
    "deterministic algorithms": _deterministic,
    "anomaly detection": lambda: torch.autograd.set_detect_anomaly(True),
    "default dtype float64": lambda: foreign_defaults("float64"),
    "default dtype bfloat16, default device meta": lambda: foreign_defaults("bfloat16, meta"),
    "default dtype float16, within meta": lambda: foreign_defaults("float16, within meta"),
}


def check_modes(case: Case, call: Call) -> None:
    """The bits of the plain call in each mode, also of tensors that are made in it."""
    expected = _run(case, own(call))
    for mode, context in MODES.items():
        before = own(call)
        with context():
            found = _run(case, before), _run(case, own(call))
        for results in found:
            _equal(results, expected, mode)


def check_transforms(case: Case, call: Call) -> None:
    """Forward mode against ``vjp`` in float64, tangents of other dtypes, and ``vmap``."""
    if not all(t.numel() for t in call.tensors()):
        return
    if case.kernel_op.differentiable:
        _check_tangents(case, call)
    elif case.leaves(call):
        _check_refusal(case, call)
    _check_vmap(case, call)


def _check_tangents(case: Case, call: Call) -> None:
    function, primals = function_of(case, own(call, torch.float64))
    _, tangents = dual_level(function, primals, primals)
    pulled: Any = torch.func.vjp(function, *primals)
    expected, pull = pulled
    cotangents = like(expected)
    seen = [t.isfinite().all() for t in (*expected, *primals)]
    if all(seen):  # samples with infinities have no derivative to compare
        ways: tuple[Callable[..., Any], ...] = (dual_level, torch.func.jvp)
        for way in ways:
            directions = like(primals)
            values, pushed = way(function, primals, directions)
            torch.testing.assert_close(values, expected)
            left, right = _dot(pushed, cotangents), _dot(directions, pull(cotangents))
            torch.testing.assert_close(
                left, right, rtol=1e-6, atol=1e-6 * _size(pushed, cotangents)
            )
    # In its own dtype a call has tangents too: those of an op would be 0 if they were dropped.
    function, primals = function_of(case, own(call))
    _, found = dual_level(function, primals, primals)
    for a, b in zip(found, tangents, strict=True):
        assert bool(a.any()) == bool(b.any()), "a tangent was dropped"


def _dot(a: Tensors, b: Tensors) -> torch.Tensor:
    products = [(x * y).sum() for x, y in zip(a, b, strict=True)]
    return torch.stack(products).sum()


def _size(a: Tensors, b: Tensors) -> float:
    """The dot product of magnitudes: rounding is of their size."""
    return 1 + sum(float((x * y).abs().sum()) for x, y in zip(a, b, strict=True))


def _check_refusal(case: Case, call: Call) -> None:
    """An op without derivatives names itself, whoever asks for one."""
    function, primals = function_of(case, own(call))

    def total(*tensors: torch.Tensor) -> torch.Tensor:
        return torch.stack([out.float().sum() for out in function(*tensors)]).sum()

    for ask in (
        lambda: dual_level(function, primals, primals),
        lambda: torch.func.vjp(total, *primals),
        lambda: torch.func.jvp(total, primals, primals),
        lambda: total(*(p.clone().requires_grad_() for p in primals)),
    ):
        with pytest.raises(RuntimeError, match=f"{case.name}: has no "):
            ask()


def _check_vmap(case: Case, call: Call) -> None:
    """The loop over its samples, in float64 where results are rounded."""
    call = own(call, None if case.rule == "exact" else torch.float64)
    leaves, spec = pytree.tree_flatten((call.args, dict(call.kwargs)))
    at = [
        i
        for i, leaf in enumerate(leaves)
        if isinstance(leaf, torch.Tensor)
        and leaf.dim() > 1
        and (leaf.is_floating_point() or leaf.dtype == torch.uint8)
    ]
    if not at:
        return

    def run(*tensors: torch.Tensor) -> Tensors:
        given = list(leaves)
        for i, tensor in zip(at, tensors, strict=True):
            given[i] = tensor
        args, kwargs = pytree.tree_unflatten(given, spec)
        found = pytree.tree_leaves((case.op(*args, **kwargs), [args[i] for i in case.mutates]))
        return tuple(t for t in found if isinstance(t, torch.Tensor))

    stacked = [torch.stack((leaves[i], leaves[i].flip(0))) for i in at]
    together = torch.func.vmap(run, randomness="error")(*(t.clone() for t in stacked))
    for n in range(2):
        alone = run(*(t[n].clone() for t in stacked))
        for mapped, expected in zip(together, alone, strict=True):
            torch.testing.assert_close(mapped[n], expected, equal_nan=True)


def check_compiled(
    case: Case, calls: Sequence[Call], *, dynamic: bool = False, autocast: bool = False
) -> int:
    """Calls of one compiled function, each with the bits of eager mode; returns their number.

    Operators before and after the op let inductor choose strides and memory around it.
    """
    kwargs = dict(calls[0].kwargs)
    # Not their numbers: with dynamic shapes a compiled program finds none in a tuple.
    is_written = [i in case.mutates for i in range(len(calls[0].args))]

    def times_one(value: Any) -> Any:
        return pytree.tree_map_only(
            torch.Tensor, lambda t: t * 1 if t.is_floating_point() else t, value
        )

    def run(*args: Any) -> Any:
        given = [
            arg if written else times_one(arg)
            for arg, written in zip(args, is_written, strict=True)
        ]
        return times_one(case.op(*given, **kwargs))

    torch._dynamo.reset()
    compiled = torch.compile(run, fullgraph=True, dynamic=dynamic)
    context = torch.autocast("cpu", torch.bfloat16, enabled=autocast)
    with torch.no_grad(), context:
        for call in calls:
            ours, theirs = own(call), own(call)
            expected = pytree.tree_leaves((run(*theirs.args), theirs.args))
            found = pytree.tree_leaves((compiled(*ours.args), ours.args))
            tensors = [[t for t in each if isinstance(t, torch.Tensor)]
                       for each in (found, expected)]  # fmt: skip
            where = f"compiled, dynamic={dynamic}, autocast={autocast}, {call.name}"
            _equal(tensors[0], tensors[1], where)
    return len(calls)


def alike(case: Case) -> list[Call]:
    """The first sample with elements, and those of other shapes that differ in nothing else."""
    calls = [call for call in case.samples(CPU) if all(t.numel() for t in call.tensors())]
    first = calls[0]

    def kind(call: Call) -> tuple[Any, ...]:
        leaves, spec = pytree.tree_flatten((call.args, dict(call.kwargs)))
        return (str(spec), *((t.dtype, t.dim()) if isinstance(t, torch.Tensor) else t
                             for t in leaves))  # fmt: skip

    return [first, *(call for call in calls[1:] if kind(call) == kind(first))]


CELLS: dict[str, Callable[[Case, Call], None]] = {
    "samples under opcheck": check_registration,
    "samples in foreign modes": check_modes,
    "samples under transforms": check_transforms,
}
"""Checks of a sample, by the name of their promise."""


def check(name: str, sample: Sample) -> None:
    """Run one cell of the matrix.

    Raises:
        AssertionError: with the cell, the op and the sample.
    """
    try:
        torch.manual_seed(0)
        CELLS[name](*sample)
    except Exception as error:
        raise AssertionError(f"{name}, {_name(sample)}: {error}") from error


def measure(scale: float) -> Mapping[str, float]:
    """All cells of all samples, or of one sample in ``1 / scale``."""
    chosen = some(max(1, round(1 / scale)))
    figures: dict[str, float] = {}
    for name in CELLS:
        for sample in chosen:
            check(name, sample)
        figures[name] = len(chosen)
    cases = list(all_cases().values())
    figures["compiled calls"] = sum(
        compile_op(case) for case in cases[: math.ceil(scale * len(cases))]
    )
    return figures


def compile_op(case: Case) -> int:
    """Compile an op in three ways; returns the number of calls.

    Raises:
        AssertionError: names the op and the way.
    """
    calls = alike(case)
    try:
        return (
            check_compiled(case, calls[:1])
            + check_compiled(case, calls[:3], dynamic=True)
            + check_compiled(case, calls[:1], autocast=True)
        )
    except Exception as error:
        raise AssertionError(f"{case.name}: {error}") from error
