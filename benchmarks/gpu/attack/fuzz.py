"""Random calls of every op between guard bands, against the reference."""

from __future__ import annotations

import contextlib
import functools
import io
import random
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from benchmarks.gpu.attack.guarded import Guards, backends_in, guarding
from benchmarks.gpu.worker import Context, Step
from benchmarks.shapes import Bench
from bitdance_kernels import BackendError, explain
from bitdance_kernels.testing import Call, Case, Outputs, compare
from tests import draws

ROUNDS, SEEDS = 20, 8
"""Steps of an op, and seeds of a step: what a call that ends its process takes with it."""
_FEW = 4096
"""Elements from which on the rules of errors tell rounding from a fault by themselves."""
_REPEATS = 8


def steps(context: Context) -> list[Step]:
    """A step per round and op; each process has ops of its own, so that none compiles twice."""
    mine, processes = context.share
    benches = [b for b in context.benches if b.name in draws.DRAWS][mine::processes]
    rounds, seeds = (1, 4) if context.dry_run else (ROUNDS, SEEDS)
    return [
        (
            f"fuzz, {bench.name}, seeds from {seeds * i}",
            functools.partial(_attack, context, bench, range(seeds * i, seeds * (i + 1))),
        )
        for i in range(rounds)
        for bench in benches
    ]


def _attack(context: Context, bench: Bench, seeds: Sequence[int]) -> None:
    """A record per seed and backend."""
    for seed in seeds:
        for backend in card_backends(bench, seed, context.device, _largest(context)):
            record(context, bench, backend, seed)


def _largest(context: Context) -> int:
    return draws.FEW if context.dry_run else draws.LARGEST


def card_backends(
    case: Case, seed: int, device: torch.device, largest: int = draws.LARGEST
) -> list[str]:
    """The backends for cards that take the call of a seed; nothing runs."""
    call = draws.call_of(case.name, seed, largest=largest).map(lambda t: t.to(device))
    with contextlib.redirect_stdout(io.StringIO()):
        reasons = explain(case.op, *call.args, **call.kwargs)
    return [name for name in ("triton", "cuda") if reasons.get(name, "none") is None]


def record(context: Context, case: Case, backend: str, seed: int) -> None:
    """Attack with one seed, and record what is wrong.

    Raises:
        RuntimeError: the card answers no more; names op, backend and seed.
    """
    wrong = None
    try:
        check(case, backend, seed, context.device, _largest(context))
        probe(context.device)
    except BackendError:  # it takes the call, but not in this layout
        return
    except AssertionError as error:
        wrong = str(error)
    except Exception as error:
        wrong = f"{type(error).__name__}: {error}"
        try:
            probe(context.device)
        except Exception as broken:
            where = f"{case.name}, {backend}, seed {seed}"
            raise RuntimeError(f"{where}: the card no longer answers: {wrong}") from broken
    what = {"op": case.name, "sample": f"seed {seed}", "backend": backend, "check": "fuzz"}
    context.add("checks", {"step": context.result["doing"], **what, "wrong": wrong})


def probe(device: torch.device) -> None:
    """Ask the device for a sum.

    Raises:
        RuntimeError: it gives none, or another.
    """
    if device.type == "cuda":
        torch.cuda.synchronize()
    total = int(torch.arange(1000, dtype=torch.int64, device=device).sum())
    if total != 499_500:
        raise RuntimeError(f"the numbers below 1000 sum up to {total}")


def check(
    case: Case, backend: str, seed: int, device: torch.device, largest: int = draws.LARGEST
) -> None:
    """One random call, its results and its gradients.

    Everything that the backend reads and writes lies between guard bands: arguments in random
    layouts at random offsets, with NaN in their gaps, and every result, workspace and copy,
    poisoned unless PyTorch filled it.

    Args:
        case: of the op.
        backend: "triton" or "cuda"; it takes the call.
        seed: of the call and of its layouts.
        device: where to run.
        largest: bound of the sizes.

    Raises:
        BackendError: the backend does not take the layout.
        AssertionError: memory was written that must not be, or a result breaks the rules of
            ``bitdance_kernels.testing``.
    """
    where = f"{case.name} {backend} seed {seed}"

    def guarded(repeat: int) -> tuple[Outputs, Call]:
        call = draws.call_of(case.name, seed, repeat, largest)
        return _guarded(case, call, backend, seed, device, where)

    actual, placed = guarded(0)
    found = [_compared(case, placed, actual, seed)]
    for name in found[0]:
        rule = "staged" if name.startswith("gradient") else case.rule
        try:
            compare(rule, *found[0][name], f"{where}: {name}")
        except AssertionError as error:
            few = found[0][name][0].numel() < _FEW
            if not (few and "over the bound" in str(error)):
                raise
            # Of few elements the errors of PyTorch may be small by chance, so more values decide.
            # A fault stays: no repeat takes an error away.
            while len(found) <= _REPEATS:
                actual, placed = guarded(len(found))
                found.append(_compared(case, placed, actual, seed))
            pooled, eager, truth = (
                torch.cat([f[name][i].flatten() for f in found]) for i in range(3)
            )
            compare(rule, pooled, eager, truth, f"{where}: {name}, of {len(found)} repeats")


def _guarded(
    case: Case, call: Call, backend: str, seed: int, device: torch.device, where: str
) -> tuple[Outputs, Call]:
    """Results between guard bands, as copies, and the arguments as they were."""
    guards = Guards(device)
    placed = guards.place(case, call, random.Random(f"{case.name} {seed} layouts"))
    before = placed.map(lambda t: t.detach().clone())
    with backends_in(case, lambda: guarding(guards)):
        actual = outputs(case, placed, backend, seed)
    wrong = guards.problems()
    if wrong:
        raise AssertionError(f"{where}: {'; '.join(wrong)}")
    return {name: t.clone() for name, t in actual.items()}, before


def _compared(
    case: Case, call: Call, actual: Outputs, seed: int
) -> dict[str, tuple[Tensor, Tensor, Tensor]]:
    """For each result what the backend, the reference, and the reference in float64 give."""

    def own(widen: bool) -> Call:
        def copy(t: Tensor) -> Tensor:
            return t.double() if widen and t.is_floating_point() else t.clone()

        return call.map(copy)

    eager = outputs(case, own(False), "reference", seed)
    truth = eager if case.rule == "exact" else outputs(case, own(True), "reference", seed)
    if list(actual) != list(eager):
        raise AssertionError(f"{case.name}: results {list(actual)}, not {list(eager)}")
    return {name: (actual[name], eager[name], truth[name]) for name in actual}


def outputs(case: Case, call: Call, backend: str, seed: int) -> Outputs:
    """Results of a call by name: outputs, arguments that it writes (no copies), gradients."""
    leaves = case.leaves(call) if case.kernel_op.differentiable else []
    for leaf in leaves:
        leaf.requires_grad_()
    try:
        results = pytree.tree_leaves(case.op(*call.args, **call.kwargs, backend=backend))
        named = {f"output {i}": t for i, t in enumerate(results) if isinstance(t, Tensor)}
        recorded = [t for t in named.values() if t.requires_grad]
        gradients: Sequence[Tensor | None] = ()
        if recorded:
            source = torch.Generator(device="cpu").manual_seed(seed)
            cotangents = [_sixteenths(t, source) for t in recorded]
            gradients = torch.autograd.grad(recorded, leaves, cotangents, allow_unused=True)
    finally:
        for leaf in leaves:
            leaf.requires_grad_(False)
    named |= {f"argument {i} after the call": call.args[i] for i in case.mutates}
    named |= {f"gradient {i}": g for i, g in enumerate(gradients) if g is not None}
    return {name: t.detach() for name, t in named.items()}


def _sixteenths(like: Tensor, source: torch.Generator) -> Tensor:
    """Numbers that every dtype represents."""
    drawn = torch.randint(-32, 33, like.shape, generator=source, dtype=torch.int64, device="cpu")
    return drawn.to(like) / 16
