"""Whether every op and backend is right on this device; see ``bitdance_kernels.testing``."""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from benchmarks import cpu
from benchmarks.gpu import large
from benchmarks.gpu.worker import Context, Step
from bitdance_kernels.testing import Call, Case, check_backend, only_backend, strided

_REPLAYS = {"cuda": 5, "cpu": 2}  # a dry run repeats what it must to be told from one run
_SLEEP = 20_000_000  # cycles, some 10 ms: a launch on another stream would come first

Check = Callable[[Case, Call, str], object]


def steps(context: Context) -> Sequence[Step]:
    """A step per op."""
    return [(case.name, functools.partial(_check, context, case)) for case in context.benches]


def large_steps(context: Context) -> Sequence[Step]:
    """A step per op for tensors past 2^31 elements."""
    cases = [case for case in context.benches if case.name in large.SHAPES]
    return [(case.name, functools.partial(_check_large, context, case)) for case in cases]


def _check(context: Context, case: Case) -> None:
    """One record per backend, sample and kind of check; "wrong" is None or what was wrong."""
    calls = list(case.samples(context.device))
    if context.dry_run:  # the interpreter is slow, and the tests run all samples in it
        calls = _few(case, calls)
    mine, processes = context.share
    for i, call in enumerate(calls):
        if i % processes != mine:
            continue
        if context.left("checks") <= 0:
            why = f"samples {i} to {len(calls) - 1}: the time was used up"
            context.add("not run", why, f"checks: {case.name}")
            return
        for backend, why_not in cpu.runnable(case, call).items():
            if why_not is None:
                for kind, function in KINDS.items():
                    record(context, case, call, backend, kind, function)


def _few(case: Case, calls: Sequence[Call]) -> list[Call]:
    """The first sample that is not empty, and one for each backend that cannot run that."""
    calls = [call for call in calls if all(t.numel() for t in call.tensors())]
    few = calls[:1]
    for backend, why_not in cpu.runnable(case, calls[0]).items():
        if why_not is not None:
            able = (c for c in calls if cpu.runnable(case, c, [backend])[backend] is None)
            few += [call for call in itertools.islice(able, 1) if call not in few]
    return few


def record(
    context: Context, case: Case, call: Call, backend: str, kind: str, function: Check
) -> None:
    """Check, and record what is wrong."""
    wrong = None
    try:
        function(case, call, backend)
    except AssertionError as error:
        wrong = str(error)
    except Exception as error:
        if "CUDA error" in str(error):
            raise  # nothing that follows in this process can be believed
        wrong = f"{type(error).__name__}: {error}"
        if (backend, kind) == ("reference", "graph"):  # a reference may wait for the card
            context.add("not run", wrong, f"checks: {case.name}, reference in a graph")
            return
    what = {"op": case.name, "sample": call.name, "backend": backend, "check": kind}
    context.add("checks", {"step": context.result["doing"], **what, "wrong": wrong})


def wrong(context: Context, counts: Callable[[str], bool]) -> str | None:
    """Which check has failed in a step whose key counts, if one has; figures would mean nothing."""
    for check in context.result["checks"]:
        if counts(check["step"]) and check["wrong"] is not None:
            return f"{check['op']} is wrong: {check['wrong']}"
    failed = [key for key in context.result["failed"] if counts(key)]
    return f"{failed[0]} failed" if failed else None


def _strided(case: Case, call: Call, backend: str) -> None:
    written = {id(call.args[i]) for i in case.mutates}
    check_backend(case, call.map(lambda t: t if id(t) in written else strided(t)), backend)


def _repeated(case: Case, call: Call, backend: str) -> None:
    """The same bits from every run."""
    first = results(case, call, backend)
    for _ in range(_replays(call) - 1):
        assert_same(first, results(case, call, backend), "a repeated run differs")


def _like_before(case: Case, call: Call, backend: str) -> None:
    """Where the backend is chosen and not named, and the second time not even sought."""
    expected = results(case, call, backend)
    with only_backend(backend, [case.kernel_op.name], call.tensors()[0].device.type):
        for _ in range(2):
            actual = results(case, call, "auto")
            assert_same(actual, expected, "a call like one before differs")


def _graph(case: Case, call: Call, backend: str) -> None:
    """Replay on changed inputs, with outputs poisoned and the allocator stirred in between."""
    fixed = call.map(lambda t: t.detach().clone())
    written = [fixed.args[i] for i in case.mutates]
    start = [t.clone() for t in written]
    replay, captured = _capture(case, fixed, backend)
    for _ in range(_replays(call)):
        _change(fixed)
        for tensor, content in zip(written, start, strict=True):
            tensor.copy_(content)
        expected = results(case, fixed, backend)
        for tensor in captured:
            if not any(tensor is w for w in written):
                tensor.fill_(float("nan") if tensor.is_floating_point() else 85)
        stirred = [torch.empty(1 << (10 + i % 12), device=tensor.device) for i in range(64)]
        del stirred
        replay()
        assert_same(captured, expected, "a graph replay differs")


def _side_stream(case: Case, call: Call, backend: str) -> None:
    """On a side stream whose inputs arrive late: a launch on any other stream reads zeros."""
    expected = results(case, call, backend)
    late = call.map(torch.zeros_like)
    with _stream(call):
        for target, source in zip(late.tensors(), call.tensors(), strict=True):
            target.copy_(source)
        actual = results(case, late, backend, in_place=True)
    assert_same(actual, expected, "on a side stream it differs")


KINDS: dict[str, Check] = {
    "reference": check_backend,  # in NaN-poisoned memory, gradients too
    "strided": _strided,
    "repeated": _repeated,
    "like before": _like_before,
    "graph": _graph,
    "stream": _side_stream,
}


def _check_large(context: Context, case: Case) -> None:
    """Every element of results past 2^31 elements, against the same rows on their own."""
    built = large.build(case, context.device, 2**12 if context.dry_run else 2**31)
    if isinstance(built, str):
        context.add("not run", built, f"large: {case.name}")
        return

    def check(case: Case, _: Call, backend: str) -> None:
        large.check(case, built, backend)

    for backend, why_not in cpu.runnable(case, built.block).items():
        if why_not is None and (backend != "reference" or context.dry_run):
            record(context, case, built.block, backend, "past 2^31", check)


def _replays(call: Call) -> int:
    return _REPLAYS[call.tensors()[0].device.type]


def _change(call: Call) -> None:
    for tensor in call.tensors():
        if tensor.is_floating_point():
            tensor.neg_()
        elif tensor.dtype == torch.uint8:
            tensor.bitwise_not_()


def results(case: Case, call: Call, backend: str, *, in_place: bool = False) -> list[Tensor]:
    """Outputs and tensors written in place: copies of the call's, or its own."""
    own = (a if in_place or i not in case.mutates else a.clone() for i, a in enumerate(call.args))
    args = list(own)
    with torch.no_grad():
        outputs = case.op(*args, **call.kwargs, backend=backend)
    leaves = [t for t in pytree.tree_leaves(outputs) if isinstance(t, Tensor)]
    return leaves + [args[i] for i in case.mutates]


def assert_same(a: Sequence[Tensor], b: Sequence[Tensor], message: str) -> None:
    """Equal bits, NaN equal to NaN.

    Raises:
        AssertionError: with `message` and how many elements differ.
    """
    for x, y in zip(a, b, strict=True):
        same = (x == y) | ((x != x) & (y != y))
        if not bool(same.all()):
            raise AssertionError(f"{message} in {int((~same).sum())} of {x.numel()} elements")


def _capture(case: Case, call: Call, backend: str) -> tuple[Callable[[], None], list[Tensor]]:
    """A replay of the call, and the tensors that it writes; on the CPU the call again."""
    if not any(t.is_cuda for t in call.tensors()):
        written = results(case, call, backend, in_place=True)

        def again() -> None:
            new = results(case, call, backend, in_place=True)
            for tensor, content in zip(written, new, strict=True):
                tensor.copy_(content)

        return again, written
    results(case, call, backend)  # compiles and loads outside the capture
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = results(case, call, backend, in_place=True)

    def replay() -> None:
        graph.replay()
        torch.cuda.synchronize()

    return replay, captured


@contextlib.contextmanager
def _stream(call: Call) -> Iterator[None]:
    if not any(t.is_cuda for t in call.tensors()):
        yield
        return
    side = torch.cuda.Stream()
    torch.cuda.synchronize()
    with torch.cuda.stream(side):
        torch.cuda._sleep(_SLEEP)
        yield
    torch.cuda.synchronize()
