"""Foreign defaults: a default dtype and device set by other code."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest
import torch

KINDS = ("bfloat16, within meta", "float64")
FOREIGN = pytest.mark.parametrize("kind", KINDS)


@contextlib.contextmanager
def foreign_defaults(kind: str) -> Iterator[None]:
    """A context with another default dtype, and a default device or an active ``torch.device``."""
    dtype, _, device = kind.partition(", ")
    before = torch.get_default_dtype()
    torch.set_default_dtype(getattr(torch, dtype))
    try:
        if device == "meta":
            torch.set_default_device("meta")
        with torch.device("meta") if device == "within meta" else contextlib.nullcontext():
            yield
    finally:
        torch.set_default_device(None)
        torch.set_default_dtype(before)
