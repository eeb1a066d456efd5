"""Whether a call is carried out or written down."""

from __future__ import annotations

import torch


def is_traced() -> bool:
    """Whether a program is being written of this call, to be run later on other values."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing()
