"""What the attacks on all ops share."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch

from benchmarks.gpu.worker import Context, Step
from bitdance_kernels.testing import Call, Case

__all__ = ["backends_of", "elements", "raw", "steps_of"]


def steps_of(context: Context, title: str, attack: Callable[[Context, Case], None]) -> list[Step]:
    """A step for each op of this process that has a backend for cards."""
    mine, processes = context.share
    return [
        (f"{title}, {bench.name}", functools.partial(attack, context, bench))
        for bench in context.benches[mine::processes]
        if backends_of(bench)
    ]


def backends_of(case: Case) -> list[str]:
    """The backends of an op that run on cards."""
    return [name for name in case.kernel_op.backends if name in ("triton", "cuda")]


def elements(call: Call) -> int:
    """Elements of all tensors; 0 if one of them is empty."""
    counts = [t.numel() for t in call.tensors()]
    return sum(counts) if all(counts) else 0


def raw(tensor: torch.Tensor) -> torch.Tensor:
    """The bytes of a tensor."""
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)
