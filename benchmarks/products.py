"""Floating-point operations of the matrix products and convolutions of a run.

On a CPU they are nearly all the work of a whole image.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from bitdance_kernels._dispatch.op import REGISTRY

_aten = torch.ops.aten
_PRODUCTS = {_aten.mm, _aten.addmm, _aten.bmm, _aten.baddbmm, _aten.convolution}
# In inference mode these come as they are, elsewhere as the products that they decompose into.
_DECOMPOSED = {_aten.conv2d.default, _aten.linear.default, _aten.matmul.default}
# Their references do more products than the kernels must, so theirs are left out.
_WITHIN_KERNELS = ("attention",)


class _Counter(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.flops = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        namespace, _, name = func._schema.name.partition("::")
        if namespace == "bitdance" and not any(word in name for word in _WITHIN_KERNELS):
            reference = REGISTRY[name].backend("reference")
            if not isinstance(reference, str):
                with self:  # so that a product within a fused op is seen
                    return reference.run(*args[:-1])
        if func in _DECOMPOSED:
            with self:
                return func.decompose(*args, **kwargs)
        result = func(*args, **kwargs)
        if func.overloadpacket in _PRODUCTS:
            self.flops += flop_registry[func.overloadpacket](*args, out_val=result)
        return result


def flops(function: Callable[[], Any]) -> int:
    """Operations of the products that `function` does; a multiply-add is two.

    Those within this library's ops are seen through the ops' references, but for attention.
    """
    counter = _Counter()
    with torch.no_grad(), counter:
        function()
    return counter.flops
