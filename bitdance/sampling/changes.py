"""Whether a module's tensors have changed, found by reading them once."""

from __future__ import annotations

import functools

import torch
from torch import nn

from bitdance.sampling import graphs

__all__ = ["Changes"]

_WIDTH = 256
"""Elements that one product sums up, of tensors that have more."""


class Changes:
    """Tells whether copies of a module's parameters and buffers are still up to date, on a CPU.

    Writes that PyTorch counts are found by address and version. It counts none through ``.data``;
    so products of the elements with fixed numbers are compared too. Reading takes half as long as
    a copy in another layout does. A change is missed only where it is lost in the rounding of a
    sum of 256 products.

    Args:
        module: the module.
    """

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._marks: list[tuple[int, int]] | None = None
        self._digests: list[torch.Tensor] = []

    def found(self) -> bool:
        """Whether anything may have changed since ``remember``; True before it."""
        tensors = self._tensors()
        if self._marks is None or self._marks != _marks(tensors):
            return True
        return not all(map(torch.equal, map(_digest, tensors), self._digests))

    def remember(self) -> None:
        """Take the tensors as they are now for what is known."""
        tensors = self._tensors()
        self._marks = _marks(tensors)
        self._digests = [] if self._marks is None else [_digest(tensor) for tensor in tensors]

    def _tensors(self) -> list[torch.Tensor]:
        return [*graphs.parameters(self._module), *self._module.buffers()]


def _marks(tensors: list[torch.Tensor]) -> list[tuple[int, int]] | None:
    """Address and version of each tensor; None where they, or values, cost more than copies."""
    known = (torch.Tensor, nn.Parameter)
    if any(not t.is_cpu or t.is_inference() or type(t) not in known for t in tensors):
        return None
    return [(t.data_ptr(), t._version) for t in tensors]


@torch.no_grad()
def _digest(tensor: torch.Tensor) -> torch.Tensor:
    """Few numbers that depend on all elements; a copy of a small tensor."""
    if tensor.numel() <= _WIDTH or not tensor.is_contiguous() or not tensor.is_floating_point():
        return tensor.detach().clone()
    flat = tensor.detach().view(-1)
    rows = flat.numel() // _WIDTH
    matrix, rest = flat[: rows * _WIDTH].view(rows, _WIDTH), flat[rows * _WIDTH :]
    dtype = torch.promote_types(tensor.dtype, torch.float32)
    return torch.cat([matrix.to(dtype).mv(_factors(dtype)), rest])


@functools.cache
def _factors(dtype: torch.dtype) -> torch.Tensor:
    """Numbers no two of which are equal, so that elements that trade places are found."""
    with torch.inference_mode(False):
        return torch.linspace(1, 2, _WIDTH, dtype=dtype, device="cpu")
