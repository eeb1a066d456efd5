"""Every allocation of a call fails once: the error is typed, nothing stays behind."""

from __future__ import annotations

import functools
import gc
import weakref
from collections.abc import Sequence

import torch
from torch import Tensor

from benchmarks import cpu
from benchmarks.gpu import checks
from benchmarks.gpu.attack.fuzz import outputs
from benchmarks.gpu.attack.guarded import Fresh, backends_in
from benchmarks.gpu.attack.ops import backends_of, elements, raw, steps_of
from benchmarks.gpu.worker import Context, Step
from bitdance_kernels.testing import Call, Case

_MOST = 100  # allocations of a call: more are a loop


def steps(context: Context) -> list[Step]:
    """A step per op."""
    return steps_of(context, "allocations", _exhaust)


def _exhaust(context: Context, case: Case) -> None:
    """A record per backend for cards, with the smallest sample that it takes."""
    for backend in backends_of(case):
        call = smallest(case, backend, context.device)
        if call is not None:
            checks.record(context, case, call, backend, "allocations fail", exhaust)


def smallest(case: Case, backend: str, device: torch.device) -> Call | None:
    """The smallest sample without empty tensors that a backend takes, made on the CPU."""
    samples = case.samples(torch.device("cpu"))  # so that few kernels of PyTorch run
    full = filter(elements, samples)
    for call in sorted(full, key=elements):
        call = call.map(lambda t: t.to(device))
        if cpu.runnable(case, call, [backend])[backend] is None:
            return call
    return None


def exhaust(case: Case, call: Call, backend: str) -> None:
    """Let the first allocation of a backend fail, then the second, and so on to the last.

    Raises:
        AssertionError: the error of one is no ``torch.OutOfMemoryError``, an argument has changed,
            memory stayed behind, or the next call gives other bits.
    """
    expected = _bits(case, call, backend)
    for k in range(_MOST):
        own = call.map(lambda t: t.detach().clone())
        made: list[weakref.ref[Tensor]] = []

        def take(
            operator: str, tensor: Tensor, k: int = k, made: list[weakref.ref[Tensor]] = made
        ) -> Tensor:
            if len(made) == k:
                raise torch.OutOfMemoryError(f"allocation {k} of {operator} fails")
            made.append(weakref.ref(tensor))
            return tensor

        before = _allocated(call)
        with backends_in(case, functools.partial(Fresh, take)):
            error = _error_of(case, own, backend)
        if error is None:
            if k == 0:
                raise AssertionError("nothing was allocated, so nothing was proven")
            return
        if not issubclass(error, torch.OutOfMemoryError):
            raise AssertionError(f"allocation {k} fails: {error.__name__}, not OutOfMemoryError")
        if any(not torch.equal(raw(a), raw(b)) for a, b in _unwritten(case, own, call)):
            raise AssertionError(f"allocation {k} fails: an argument has changed")
        gc.collect()
        left, more = sum(r() is not None for r in made), _allocated(call) - before
        if left or more > 0:
            raise AssertionError(f"allocation {k} fails: {left} tensors, {more} bytes stay behind")
        if not _equal(_bits(case, call, backend), expected):
            raise AssertionError(f"allocation {k} fails: the next call gives other bits")
    raise AssertionError(f"it allocates more than {_MOST} times")


def _error_of(case: Case, call: Call, backend: str) -> type[BaseException] | None:
    """The class of what a call raises; the error itself would hold the tensors of its frames."""
    try:
        outputs(case, call, backend, 0)
    except Exception as error:
        return type(error)
    return None


def _unwritten(case: Case, a: Call, b: Call) -> list[tuple[Tensor, Tensor]]:
    written = {id(a.args[i]) for i in case.mutates}
    pairs = zip(a.tensors(), b.tensors(), strict=True)
    return [(x, y) for x, y in pairs if id(x) not in written]


def _bits(case: Case, call: Call, backend: str) -> Sequence[Tensor]:
    own = call.map(lambda t: t.detach().clone())
    return [raw(t) for t in outputs(case, own, backend, 0).values()]


def _equal(a: Sequence[Tensor], b: Sequence[Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def _allocated(call: Call) -> int:
    """Bytes of the card that tensors have; 0 on the CPU."""
    if not any(t.is_cuda for t in call.tensors()):
        return 0
    torch.cuda.synchronize()
    return int(torch.cuda.memory_allocated())
