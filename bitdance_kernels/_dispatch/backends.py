"""The backends by name: which are there, which is asked for, what each says of a call."""

from __future__ import annotations

import contextlib
import contextvars
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from bitdance_kernels._shared import native

BACKENDS = ("reference", "cpu", "triton", "cuda")


class BackendError(RuntimeError):
    """A backend asked for by name cannot run the call; the message says why."""


@dataclass(frozen=True)
class Backend:
    """What of a backend module serves one op.

    Attributes:
        run: computes.
        unsupported: why not, for some arguments.
        native_functions: names of the compiled module's functions that it calls.
    """

    run: Callable[..., Any]
    unsupported: Callable[..., str | None]
    native_functions: tuple[str, ...]


class Explained(Exception):  # noqa: N818  (unwinds `explain`, is never seen outside)
    """What every backend of an op says of a call."""

    def __init__(
        self, op: str, order: Mapping[str, Sequence[str]], reasons: dict[str, str | None]
    ) -> None:
        self.op = op
        self.order = order
        self.reasons = reasons


EXPLAIN = "explain"


# Read once: the environment is not consulted per call. A wrong name is reported by the first call.
_environment = os.environ.get("BITDANCE_KERNELS_BACKEND", "auto")
DEFAULT = contextvars.ContextVar("bitdance_kernels_backend", default=_environment)


def check_name(name: str, argument: str) -> str:
    """`name`; raises ValueError unless it is a backend's or "auto"."""
    if name != "auto" and name not in BACKENDS:
        source = " from BITDANCE_KERNELS_BACKEND" if name == _environment else ""
        raise ValueError(
            f"{argument} must be one of auto, {', '.join(BACKENDS)}, got {name!r}{source}"
        )
    return name


def _triton_unavailable(functions: Sequence[str]) -> str | None:
    from bitdance_kernels._shared import triton_support

    if torch.cuda.is_available() or triton_support.interpreting():
        return None
    return "no CUDA device (TRITON_INTERPRET=1 runs the kernels on the CPU, for tests)"


def _cpu_unavailable(functions: Sequence[str]) -> str | None:
    return next(filter(None, map(native.cpu.unavailable, functions)), None)


def _cuda_unavailable(functions: Sequence[str]) -> str | None:
    reason = next(filter(None, map(native.cuda.unavailable, functions)), None)
    return reason or (None if torch.cuda.is_available() else "no CUDA device")


# By backend: why it cannot run, with these functions of a compiled module, on this machine,
# whatever the arguments.
MACHINE: dict[str, Callable[[Sequence[str]], str | None]] = {
    "cpu": _cpu_unavailable,
    "triton": _triton_unavailable,
    "cuda": _cuda_unavailable,
}


@contextlib.contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Make `name` the backend of every op call in this context that does not name one itself.

    Args:
        name: "reference", "cpu", "triton", "cuda", or "auto" for the usual choice.

    Raises:
        ValueError: `name` is no backend.
        BackendError: (from an op called inside) the backend cannot run that call. There is no
            fallback from a backend that was asked for by name.
    """
    token = DEFAULT.set(check_name(name, "use_backend: name"))
    try:
        yield
    finally:
        DEFAULT.reset(token)


def default_backend() -> str:
    """The backend of calls that name none: that of ``use_backend``, of the environment, or "auto".

    What was compiled or captured under one backend goes on with it; this tells whether it still is
    what a caller would get.
    """
    return DEFAULT.get()


def explain(op: Callable[..., Any], *args: Any, **kwargs: Any) -> dict[str, str | None]:
    """Print, for one call, what each backend of the op says, and which one ``auto`` takes.

    Nothing is computed, but the arguments are checked as in the real call.

    Args:
        op: a public op of this package, for example ``pack_signs``.
        *args: the call's arguments.
        **kwargs: the call's keyword arguments, without ``backend``.

    Returns:
        For each backend of the op, None if it can run the call, else the reason why not.

    Raises:
        TypeError, ValueError: the arguments are bad, as in the real call.
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
    device = _device_of(args, kwargs)
    usual = order.get(device, ("reference",))
    chosen = next((backend for backend in usual if reasons[backend] is None), None)
    print(f"{name} on {device}")
    for backend, reason in reasons.items():
        mark = "  <- auto takes this one" if backend == chosen else ""
        print(f"  {backend:<10} {reason or 'yes'}{mark}")
    return reasons


def _device_of(args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
    for value in (*args, *kwargs.values()):
        if isinstance(value, torch.Tensor):
            return value.device.type
    return "cpu"
