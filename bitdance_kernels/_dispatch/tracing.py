"""Whether a call is carried out or written down."""

from __future__ import annotations

import torch


def is_traced() -> bool:
    """Whether a program is being written of this call, to be run later on other values."""
    tracing: bool = torch.jit.is_tracing()  # type: ignore[attr-defined]
    return tracing or torch.compiler.is_compiling()
