"""Calls of every op: each sample on each backend, with gradients, and each call that is refused."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable, Iterator, Sequence

import torch
from torch.utils import _pytree as pytree

from bitdance_kernels import explain
from bitdance_kernels.testing import Call, Case, Invalid
from tests.cases import all_cases

BACKENDS = ("cpu", "reference")


def every_call(ops: Sequence[str] = ()) -> list[Callable[[], object]]:
    """Functions that make one call each, in a fixed order.

    Args:
        ops: names of ops, all by default.
    """
    cases = all_cases()
    return [call for name in ops or cases for call in _calls(cases[name])]


def _calls(case: Case) -> Iterator[Callable[[], object]]:
    for call in case.samples(torch.device("cpu")):
        with contextlib.redirect_stdout(None):
            reasons = explain(case.op, *call.args, **call.kwargs)
        for backend in BACKENDS:
            if reasons.get(backend, "no such backend") is None:
                yield _plain(case, call, backend)
                if case.kernel_op.differentiable and all(t.numel() for t in call.tensors()):
                    yield _with_gradients(case, call, backend)
    module = case.kernel_op.package.rpartition(".")[2]
    for invalid in importlib.import_module(f"tests.ops.test_{module}").INVALID[case.name]:
        yield _refused(case, invalid)


def _plain(case: Case, call: Call, backend: str) -> Callable[[], object]:
    return lambda: case.op(*call.args, **call.kwargs, backend=backend)


def _with_gradients(case: Case, call: Call, backend: str) -> Callable[[], object]:
    own = call.map(lambda t: t.detach().clone())
    leaves = case.leaves(own)
    for leaf in leaves:
        leaf.requires_grad_()

    def run() -> object:
        results = pytree.tree_leaves(case.op(*own.args, **own.kwargs, backend=backend))
        total = sum(t.float().sum() for t in results if t.requires_grad)
        return torch.autograd.grad(total, leaves, allow_unused=True)

    return run


def _refused(case: Case, invalid: Invalid) -> Callable[[], object]:
    def run() -> None:
        with contextlib.suppress(invalid.error):
            case.op(*invalid.call.args, **invalid.call.kwargs)
            raise AssertionError(f"{case.name} accepts {invalid.call.name}")

    return run
