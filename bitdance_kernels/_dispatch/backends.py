"""Backends by name: which exist, which one is the default, which ones this machine can run."""

from __future__ import annotations

import contextlib
import contextvars
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from bitdance_kernels._shared import native

__all__ = ["BackendError", "default_backend", "use_backend"]

BACKENDS = ("reference", "cpu", "triton", "cuda")


class BackendError(RuntimeError):
    """A backend named explicitly cannot run the call; the message says why."""


@dataclass(frozen=True)
class Backend:
    """The functions of a backend module that serve one op.

    Attributes:
        run: computes the op.
        unsupported: the reason why it cannot run on the given arguments, or None.
        native_functions: names of the compiled module's functions that it calls.
        fills_results: whether all that `run` does is to make results and let one function of the
            module for the CPU fill them; a call like one before does that without Python.
    """

    run: Callable[..., Any]
    unsupported: Callable[..., str | None]
    native_functions: tuple[str, ...]
    fills_results: bool = False


# Read once, not per call. The first call reports an invalid name.
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


# For each backend, the reason why this machine cannot run it, given the functions of the compiled
# module that it calls; None if it can.
MACHINE: dict[str, Callable[[Sequence[str]], str | None]] = {
    "cpu": _cpu_unavailable,
    "triton": _triton_unavailable,
    "cuda": _cuda_unavailable,
}


@contextlib.contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Make `name` the backend of every op call in this context that names no backend.

    Args:
        name: "reference", "cpu", "triton", "cuda", or "auto" for the usual choice.

    Raises:
        ValueError: `name` is no backend.
        BackendError: from an op called inside, if the backend cannot run that call. A backend
            named explicitly never falls back to another.
    """
    token = DEFAULT.set(check_name(name, "use_backend: name"))
    try:
        yield
    finally:
        DEFAULT.reset(token)


def default_backend() -> str:
    """Backend of calls that name none: from ``use_backend``, the environment, or "auto".

    A compiled or captured program keeps the backend that it was made with; compare with this value
    to see whether a new call would take the same.
    """
    return DEFAULT.get()
