"""Whether a call is run or traced."""

from __future__ import annotations

import torch


def is_traced() -> bool:
    """Whether this call is being traced into a program that later runs on other values."""
    tracing: bool = torch.jit.is_tracing()  # type: ignore[attr-defined]
    return tracing or torch.compiler.is_compiling()
