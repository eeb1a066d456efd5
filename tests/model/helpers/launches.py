"""What a call launches, counted without a card."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["Launches"]


class Launches(TorchDispatchMode):
    """Names of all that would be a kernel: ops that return or write memory, views left out.

    What the reference of one of our ops is made of does not count: its kernel is one launch.
    """

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.is_view or func in (
            torch.ops.aten.empty.memory_format,
            torch.ops.aten.detach.default,
        ):
            return func(*args, **(kwargs or {}))
        self.names.append(func._schema.name)
        return func(*args, **(kwargs or {}))
