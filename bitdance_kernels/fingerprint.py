"""Hashes of tensors, to tell whether their memory has changed."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from bitdance_kernels._dispatch import arguments
from bitdance_kernels._shared import checks, native

__all__ = ["fingerprints"]


def fingerprints(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """A hash of 64 bits of each tensor's memory; any change of a single word changes it.

    Args:
        tensors: tensors on the CPU, of any dtype. One that is not contiguous is copied first.

    Returns:
        int64 [len(tensors)]; the same memory has the same hash on every machine of one byte order.

    Raises:
        ValueError: a tensor is elsewhere.
        RuntimeError: no compiled module.
    """
    for tensor in tensors:
        arguments.tensor("fingerprints", "tensors", tensor)
        if not tensor.is_cpu:
            raise checks.fail("fingerprints", "tensors", "on the CPU", tensor.device)
    hashes = torch.empty(len(tensors), dtype=torch.int64, device="cpu")
    for index, tensor in enumerate(tensors):
        memory = tensor.detach().contiguous()
        native.cpu.fingerprint(memory, memory.nbytes, hashes, index)
    return hashes
