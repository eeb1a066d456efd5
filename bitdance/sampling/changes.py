"""Whether a module's tensors have changed, found by reading them once."""

from __future__ import annotations

import torch
from torch import nn

from bitdance.sampling import graphs
from bitdance_kernels import CpuGraph, fingerprints

__all__ = ["Changes"]


class Changes:
    """Tells whether copies of a module's parameters and buffers are still up to date, on a CPU.

    Writes that PyTorch counts are found by address and version. It counts none through ``.data``;
    so hashes of the values are compared too, which takes a small part of the time of a copy.

    Args:
        module: the module.
    """

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._marks: list[tuple[int, int]] | None = None
        self._hashes = torch.empty(0, dtype=torch.int64, device="cpu")

    def found(self) -> bool:
        """Whether anything may have changed since ``remember``; True before it."""
        tensors = self._tensors()
        if self._marks is None or self._marks != _marks(tensors):
            return True
        return not torch.equal(fingerprints(tensors), self._hashes)

    def remember(self) -> None:
        """Take the tensors as they are now for what is known."""
        tensors = self._tensors()
        self._marks = _marks(tensors)
        if self._marks is not None:
            self._hashes = fingerprints(tensors)

    def _tensors(self) -> list[torch.Tensor]:
        return [*graphs.parameters(self._module), *self._module.buffers()]


def _marks(tensors: list[torch.Tensor]) -> list[tuple[int, int]] | None:
    """Address and version of each tensor; None where they, or values, cost more than copies."""
    known = (torch.Tensor, nn.Parameter)
    if any(not t.is_cpu or t.is_inference() or type(t) not in known for t in tensors):
        return None
    if CpuGraph.unavailable() is not None:  # nothing in C++, hashes neither
        return None
    return [(t.data_ptr(), t._version) for t in tensors]
