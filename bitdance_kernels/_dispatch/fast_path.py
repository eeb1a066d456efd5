"""Recognises the calls that may skip PyTorch's dispatcher, and calls that equal an earlier one.

Crossing the dispatcher takes 3 us, and 7 us where it asks a formula in Python for a gradient. A
call of plain tensors outside of modes and transforms needs nothing of it. This file reads private
entries of PyTorch to tell such calls; where one is missing, every call crosses the dispatcher, with
the same results.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.autograd import forward_ad

from bitdance_kernels._dispatch.transforms import key_set
from bitdance_kernels._shared import native


def _first_call_again(*call: Any) -> Any:
    global call_again, call_key
    if native.cpu.unavailable("call_again") is None:
        call_again, call_key = native.cpu.call_again, native.cpu.call_key
    else:
        call_again, call_key = (lambda *call: NotImplemented), _no_key
    return call_again(*call)


call_again: Callable[..., Any] = _first_call_again
"""Runs a call like an earlier one: returns its results, or NotImplemented if there was none.

Two calls of an op have the same key only if no check can tell them apart. It is made from the
arguments and the backend; what to do about tensors that require grad where gradients are recorded
(`IGNORED`, `REFUSED`, `NOTED`); an integer whose bit i is set if the op writes argument i; the
context variable of the default backend; and `PLAIN_THREADS`. The last argument is a table of what
runs the arguments, by key. See csrc/bindings/signature.h.
"""


def _no_key(*call: Any) -> None:
    return None


call_key: Callable[..., bytes | None] = _no_key
"""Returns the key: None for a call that must be checked, or that a mode or transform must see."""

IGNORED, REFUSED, NOTED = range(3)

try:
    _thread_keys = torch._C._dispatch_tls_local_include_set
    _tensor_keys = torch._C._dispatch_keys
    _is_function_mode = torch._C._is_torch_function_mode_enabled
    _is_profiling = torch._C._autograd._profiler_enabled
    is_autocast = torch._C._is_any_autocast_enabled

    # Dispatch keys of a thread without modes and transforms, and of dense tensors without a pending
    # negation or conjugation: one set for inference mode, one without it.
    PLAIN_THREADS = {
        key_set(*names).raw_repr()
        for names in (("BackendSelect",), ("BackendSelect", "ADInplaceOrView"))
    }
    _PLAIN_TENSOR = {
        key_set(device, f"Autocast{device}", *rest).raw_repr()
        for device in ("CPU", "CUDA")
        for rest in ((), ("ADInplaceOrView", f"Autograd{device}"))
    }
except AttributeError:
    PLAIN_THREADS = set()

    def needs_dispatcher() -> bool:
        """Whether a mode, a transform, forward-mode AD or the profiler must see every call."""
        return True

    def are_plain(tensors: Sequence[torch.Tensor], *, gradients: bool = False) -> bool:
        """Whether tensors are plain dense memory; they may require grad only with `gradients`."""
        return False

    def is_autocast() -> bool:
        """Whether autocast is enabled for any device."""
        return torch.is_autocast_enabled("cpu") or torch.is_autocast_enabled("cuda")

else:
    _PLAIN_TYPES = {torch.Tensor, torch.nn.Parameter}

    def needs_dispatcher() -> bool:
        """Whether a mode, a transform, forward-mode AD or the profiler must see every call."""
        return (
            _thread_keys().raw_repr() not in PLAIN_THREADS
            or forward_ad._current_level >= 0
            or _is_function_mode()
            or _is_profiling()
        )

    def are_plain(tensors: Sequence[torch.Tensor], *, gradients: bool = False) -> bool:
        """Whether tensors are plain dense memory; they may require grad only with `gradients`."""
        refused = torch.is_grad_enabled() and not gradients
        return all(
            type(tensor) in _PLAIN_TYPES
            and _tensor_keys(tensor).raw_repr() in _PLAIN_TENSOR
            and not (refused and tensor.requires_grad)
            for tensor in tensors
        )
