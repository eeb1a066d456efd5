"""The matrix products and convolutions of a run, recorded and then run alone.

On a CPU they are nearly all the work of a whole image, so their time is what the rest of it is held
against. It bounds nothing: a faster product takes less, and for few rows there is one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from bitdance_kernels._dispatch.op import REGISTRY

_aten = torch.ops.aten
_MATRIX = (_aten.mm, _aten.addmm, _aten.bmm, _aten.baddbmm)
_PRODUCTS = {p.default for p in (*_MATRIX, _aten.convolution)} | {p.out for p in _MATRIX}
# In inference mode these come as they are, elsewhere as the products that they decompose into.
_DECOMPOSED = {_aten.conv2d.default, _aten.linear.default, _aten.matmul.default}
# Their references do more products than the kernels must, so theirs are left out.
_WITHIN_KERNELS = ("attention",)


class Product(NamedTuple):
    """One product: the function and its arguments."""

    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


class _Recorder(TorchDispatchMode):
    def __init__(self, weights: Sequence[Tensor]) -> None:
        super().__init__()
        self.products: list[Product] = []
        self._weights = {t.untyped_storage().data_ptr() for t in weights}
        self._stand_ins: dict[Any, Tensor] = {}

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
        # The out= form is the default and a copy.
        alone = _aten.convolution.default if func is _aten.convolution.out else func
        if alone in _PRODUCTS:
            given = kwargs if alone is func else {}
            stored = pytree.tree_map_only(Tensor, self._keep, (args, given))
            self.products.append(Product(alone, *stored))
        return func(*args, **kwargs)

    def _keep(self, tensor: Tensor) -> Tensor:
        """A weight itself; for an activation a tensor like it, one for all of the same layout."""
        if tensor.untyped_storage().data_ptr() in self._weights:
            return tensor
        key = (tensor.shape, tensor.stride(), tensor.dtype)
        if key not in self._stand_ins:
            with torch.inference_mode(False), torch.no_grad():  # for replays to write into
                like = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype)
                self._stand_ins[key] = like.copy_(tensor)
        return self._stand_ins[key]


def record(function: Callable[[], Any], weights: Sequence[Tensor]) -> list[Product]:
    """The products that `function` does, in their order.

    `weights` are replayed as they are. Any other tensor, such as an activation or a packed copy of
    weights, is replaced by one that stands for all of its layout. It is nearer to the processor
    than the real ones, so the time of the products alone is rather too short than too long.

    Those within this library's ops are seen through the ops' references, but for attention.
    """
    recorder = _Recorder(weights)
    with torch.no_grad(), recorder:
        function()
    return recorder.products


def replay(products: Sequence[Product]) -> None:
    """Do them again and nothing else."""
    with torch.no_grad():
        for product in products:
            product.function(*product.args, **product.kwargs)


def flops(products: Sequence[Product]) -> float:
    """Floating-point operations of all."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        replay(products)
    return counter.get_total_flops()
