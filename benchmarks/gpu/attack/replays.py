"""The same bits from every run, beside a second stream that saturates the card."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator

import torch

from benchmarks import cpu
from benchmarks.gpu import checks
from benchmarks.gpu.attack.fuzz import outputs
from benchmarks.gpu.attack.ops import backends_of, elements, raw, steps_of
from benchmarks.gpu.worker import Context, Step
from bitdance_kernels.testing import Call, Case, Outputs, poisoned_memory

REPLAYS = 250
_CALLS = 2
_SIDE = 8192  # of the square products of the second stream, over a millisecond each


def steps(context: Context) -> list[Step]:
    """A step per op."""
    return steps_of(context, "replays", _replay)


def _replay(context: Context, case: Case) -> None:
    """A record per backend for cards, for each of the largest samples that it takes."""
    count = 2 if context.dry_run else REPLAYS

    def check(case: Case, call: Call, backend: str) -> None:
        replay(case, call, backend, count)

    samples = list(case.samples(context.device))
    samples = sorted(samples, key=elements, reverse=not context.dry_run)
    for backend in backends_of(case):
        full = filter(elements, samples)
        taken = (c for c in full if cpu.runnable(case, c, [backend])[backend] is None)
        for call in itertools.islice(taken, 1 if context.dry_run else _CALLS):
            checks.record(context, case, call, backend, f"{count} replays", check)


def replay(case: Case, call: Call, backend: str, count: int) -> None:
    """Run a call and its gradients many times on poisoned memory.

    Raises:
        AssertionError: a run gave other bits than the first one, which had the card for itself.
    """

    def run() -> Outputs:
        own = call.map(lambda t: t.detach().clone())
        with poisoned_memory():
            return outputs(case, own, backend, 0)

    first = {name: raw(t).clone() for name, t in run().items()}
    others = {
        name: torch.zeros((), dtype=torch.int64, device=t.device) for name, t in first.items()
    }
    with _saturated(call.tensors()[0].device) as feed:
        for _ in range(count):
            feed()
            for name, tensor in run().items():
                others[name] += (raw(tensor) != first[name]).any()
    wrong = [f"{name} in {int(n)}" for name, n in others.items() if int(n)]
    if wrong:
        raise AssertionError(f"of {count} replays differ {', '.join(wrong)}")


@contextlib.contextmanager
def _saturated(device: torch.device) -> Iterator[Callable[[], None]]:
    """A context with a function that keeps a second stream full of products; none on the CPU."""
    if device.type != "cuda":
        yield lambda: None
        return
    a, b = torch.randn(2, _SIDE, _SIDE, dtype=torch.bfloat16, device=device)
    product = torch.empty_like(a)
    torch.cuda.synchronize(device)
    side, half = torch.cuda.Stream(device), torch.cuda.Event()

    def feed() -> None:
        if half.query():  # at first too: then nothing was recorded
            with torch.cuda.stream(side):
                for i in range(8):
                    torch.mm(a, b, out=product)
                    if i == 3:
                        half.record(side)

    yield feed
    torch.cuda.synchronize(device)
