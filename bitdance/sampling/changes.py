"""Whether a module's tensors have changed, found without reading all of them."""

from __future__ import annotations

import torch
from torch import nn

from bitdance.sampling import graphs

__all__ = ["Changes"]

_SAMPLES = 128


class Changes:
    """Tells whether copies of a module's parameters and buffers are still up to date, on a CPU.

    Writes that PyTorch counts are found by address and version. It counts none through ``.data``;
    so some elements of each tensor, evenly spaced, are compared too, which finds what changes whole
    tensors, as a merge of other weights does.

    Args:
        module: the module.
    """

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._marks: list[tuple[int, int]] | None = None
        self._samples: list[tuple[torch.Tensor, torch.Tensor]] = []

    def found(self) -> bool:
        """Whether anything may have changed since ``remember``; True before it."""
        return (
            self._marks is None
            or self._marks != _marks(self._tensors())
            or not all(torch.equal(now, then) for now, then in self._samples)
        )

    def remember(self) -> None:
        """Take the tensors as they are now for what is known."""
        tensors = self._tensors()
        self._marks = _marks(tensors)
        known = [] if self._marks is None else [_sample(tensor) for tensor in tensors]
        self._samples = [(now, now.clone()) for now in known]

    def _tensors(self) -> list[torch.Tensor]:
        return [*graphs.parameters(self._module), *self._module.buffers()]


def _marks(tensors: list[torch.Tensor]) -> list[tuple[int, int]] | None:
    """Address and version of each tensor; None where they, or values, cost more than copies."""
    known = (torch.Tensor, nn.Parameter)
    if any(not t.is_cpu or t.is_inference() or type(t) not in known for t in tensors):
        return None
    return [(t.data_ptr(), t._version) for t in tensors]


def _sample(tensor: torch.Tensor) -> torch.Tensor:
    """A view of evenly spaced elements of a tensor; all where it is not contiguous."""
    tensor = tensor.detach()
    if not tensor.is_contiguous():
        return tensor
    # Odd, so that it meets all columns of a matrix whose width is a power of two.
    return tensor.view(-1)[:: tensor.numel() // _SAMPLES | 1]
