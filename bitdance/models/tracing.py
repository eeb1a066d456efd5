"""Whether a call is being recorded as a program: compiled, exported or traced."""

from __future__ import annotations

import torch
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

from bitdance.models.live_memory import LiveMemory
from bitdance_kernels import CpuGraph

__all__ = ["is_traced"]


def is_traced() -> bool:
    """Whether the call is recorded as a program that later runs on other values.

    By torch.compile, torch.export, torch.onnx.export, torch.jit.trace or ``make_fx``. Recorded code
    must be a function of its arguments: it uses no buffer that a model keeps, replays no graph and
    reads no values on the host.
    """
    if torch.compiler.is_compiling() or torch.jit.is_tracing():  # type: ignore[attr-defined]
        return True
    modes = _get_current_dispatch_mode_stack()
    return bool(modes) and not CpuGraph.capturing() and not LiveMemory.counts_alone(modes)
