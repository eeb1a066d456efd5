"""``explain``: which backends of an op can run a call, and why the others cannot."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from bitdance_kernels._dispatch.backends import DEFAULT

__all__ = ["explain"]

EXPLAIN = "explain"  # as the default backend: the call raises Explained instead of computing


class Explained(Exception):  # noqa: N818  (caught by `explain`, never seen outside)
    """Carries the answers of an op's backends out of a call."""

    def __init__(
        self, op: str, order: Mapping[str, Sequence[str]], reasons: dict[str, str | None]
    ) -> None:
        self.op = op
        self.order = order
        self.reasons = reasons


def explain(op: Callable[..., Any], *args: Any, **kwargs: Any) -> dict[str, str | None]:
    """Print which backends of an op can run a call, why others cannot, and which ``auto`` takes.

    Nothing is computed, but the arguments are checked as in the real call.

    Args:
        op: a public op of this package, for example ``pack_signs``.
        *args: the call's arguments.
        **kwargs: the call's keyword arguments, without ``backend``.

    Returns:
        For each backend of the op, None if it can run the call, else the reason why not.

    Raises:
        TypeError, ValueError: the arguments are invalid, as in the real call.
    """
    token = DEFAULT.set(EXPLAIN)
    try:
        op(*args, **kwargs)
    except Explained as explained:
        name, order, reasons = explained.op, explained.order, explained.reasons
    else:
        raise TypeError(f"explain: {op!r} is not an op of bitdance_kernels")
    finally:
        DEFAULT.reset(token)
    values = (*args, *kwargs.values())
    device = next((v.device.type for v in values if isinstance(v, torch.Tensor)), "cpu")
    usual = order.get(device, ("reference",))
    chosen = next((backend for backend in usual if reasons[backend] is None), None)
    print(f"{name} on {device}")
    for backend, reason in reasons.items():
        mark = "  <- auto takes this one" if backend == chosen else ""
        print(f"  {backend:<10} {reason or 'yes'}{mark}")
    return reasons
