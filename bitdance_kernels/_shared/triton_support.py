"""Helpers of all Triton backends; importing this module imports Triton."""

from __future__ import annotations

import contextlib
import functools
import os
from typing import Any

import torch
import triton  # (without Triton this import fails, and that is the backend's reason)

from bitdance_kernels._shared import launches, native


def interpreting() -> bool:
    """Whether kernels run in Triton's interpreter, on the CPU, for tests."""
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


def unsupported(*tensors: torch.Tensor) -> str | None:
    """The reason why kernels cannot run on these tensors, for device or dtype; None if they can."""
    for tensor in tensors:
        if tensor.device.type == "cuda":
            if interpreting():
                return "TRITON_INTERPRET=1 is set, which runs kernels on the CPU only"
        elif not (tensor.device.type == "cpu" and interpreting()):
            return (
                f"it needs CUDA tensors (or the CPU with TRITON_INTERPRET=1), got {tensor.device}"
            )
    return dtype_unsupported(*(t.dtype for t in tensors if t.is_floating_point()))


def dtype_unsupported(*dtypes: torch.dtype) -> str | None:
    """The reason why kernels do not handle one of these dtypes; None if they do."""
    for dtype in dtypes:
        if dtype not in (torch.float32, torch.float16, torch.bfloat16):
            return f"it does not handle {dtype}"
        if dtype == torch.bfloat16 and interpreting():
            return "Triton's interpreter computes bfloat16 wrongly"
    return None


def on_device(tensor: torch.Tensor) -> contextlib.AbstractContextManager[Any]:
    """A context in which Triton launches on the device of `tensor`."""
    if tensor.device.type == "cuda":
        return torch.cuda.device(tensor.device)
    return contextlib.nullcontext()


@functools.cache
def capability(device: torch.device) -> int:
    """Compute capability of the card that kernels are launched on, such as 90; 0 without one.

    Ask inside `on_device`: it is the current device's.
    """
    return 0 if interpreting() else int(triton.runtime.driver.active.get_current_target().arch)


def overlapping(device: torch.device) -> dict[str, bool]:
    """Options of a launch whose kernel has a constant OVERLAP.

    In ``overlapping_launches`` it is true on cards that can begin a kernel before the one before it
    has ended; the kernel then waits for that one itself.
    """
    overlap = native.sm90_unsupported(device) is None and launches.programmatic() == 1
    return {"OVERLAP": True, "launch_pdl": True} if overlap else {"OVERLAP": False}
