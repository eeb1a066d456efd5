"""Parameters in the form in which sampling multiplies by them, in memory that stays.

Where that form is another one than a parameter's own it is a copy, which ``load`` refreshes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from bitdance.models import large_pages
from bitdance.models.quantization import AnyLinear, Float8Linear, QuantizedLinear
from bitdance.models.tracing import is_traced
from bitdance_kernels import CpuGraph, default_backend, linear, linear_swiglu, pack_weight

__all__ = ["JoinedLinear", "JoinedParameter", "PackedLinear", "QuantizedProduct", "takes_panels"]


class JoinedParameter:
    """A matrix or vector in the dtype of the products: rows of one or several parameters.

    A single parameter of that dtype is used itself, so changes of it are seen at once; otherwise
    ``tensor`` is a copy.

    Args:
        parameters: the parameters, whose rows are concatenated.
        dtype: dtype of the products.
    """

    def __init__(self, parameters: Sequence[torch.Tensor], dtype: torch.dtype) -> None:
        self._parameters = [parameter.detach() for parameter in parameters]
        first = self._parameters[0]
        self._copied = len(parameters) > 1 or first.dtype != dtype
        self.tensor = first
        if self._copied:
            rows = sum(len(parameter) for parameter in parameters)
            self.tensor = torch.empty(rows, *first.shape[1:], dtype=dtype, device=first.device)

    def load(self) -> None:
        """Refresh the copy, if there is one."""
        if self._copied:
            sizes = [len(parameter) for parameter in self._parameters]
            for part, parameter in zip(self.tensor.split(sizes), self._parameters, strict=True):
                part.copy_(parameter)


class JoinedLinear:
    """x W^T + b of one layer, or of several layers with the same input.

    On the CPU the weight is in panels where the op ``linear`` takes them.

    Args:
        layers: the layers; their outputs are concatenated.
        dtype: dtype of the product.
    """

    def __init__(self, layers: Sequence[nn.Linear], dtype: torch.dtype) -> None:
        self.features = sum(layer.out_features for layer in layers)
        self._parts: list[PackedLinear | JoinedParameter]
        self.weight: torch.Tensor
        self.bias: torch.Tensor | None
        if takes_panels(layers, dtype):
            packed = PackedLinear(layers, dtype, "panels")
            self._parts, self.weight, self.bias = [packed], packed.weight, packed.bias
            return
        weight = JoinedParameter([layer.weight for layer in layers], dtype)
        bias = JoinedParameter([layer.bias for layer in layers], dtype)
        self._parts, self.weight, self.bias = [weight, bias], weight.tensor, bias.tensor

    def load(self) -> None:
        """Refresh the copies of the layers' parameters."""
        for part in self._parts:
            part.load()

    def empty(self, *rows: int) -> torch.Tensor:
        """An uninitialized result of that many rows."""
        return _empty(self.weight, (*rows, self.features), self.weight.dtype)

    def __call__(self, x: torch.Tensor, *, out: torch.Tensor | None = None) -> torch.Tensor:
        """The product [M, N] of `x` [M, K], written into `out` if that is given."""
        return linear(x, self.weight, self.bias, out=out)

    @property
    def has_gate(self) -> bool:
        """Whether ``swiglu`` is one kernel: the halves are panels."""
        return self.weight.dim() == 3 and len(self.weight) % 2 == 0

    def swiglu(self, x: torch.Tensor) -> torch.Tensor:
        """The gated product [M, N / 2] of `x` [M, K], in new memory."""
        return linear_swiglu(x, self.weight, self.bias)


class QuantizedProduct:
    """x W^T + b of a layer whose weight is quantized, which is used itself.

    Args:
        layer: the layer.
        dtype: dtype of the product.
    """

    def __init__(self, layer: QuantizedLinear, dtype: torch.dtype) -> None:
        self._layer = layer
        self._bias = None if layer.bias is None else JoinedParameter([layer.bias], dtype)

    def load(self) -> None:
        """Refresh the copy of the bias."""
        if self._bias is not None:
            self._bias.load()

    def __call__(self, x: torch.Tensor, *, out: torch.Tensor | None = None) -> torch.Tensor:
        """The product [M, N] of `x` [M, K], in new memory."""
        return self._layer.product(x, None if self._bias is None else self._bias.tensor)


class PackedLinear:
    """Weight and bias of one layer, or of several with the same input, the weight packed.

    Float8 weights stay in float8.

    Args:
        layers: the layers; their outputs are concatenated. All have a bias or none has, and all
            have float8 weights or none has.
        dtype: dtype of the product.
        layout: see ``pack_weight``.
        head_dim: see ``pack_weight``.
    """

    def __init__(
        self,
        layers: Sequence[AnyLinear],
        dtype: torch.dtype,
        layout: str = "rows",
        head_dim: int | None = None,
    ) -> None:
        self._layers = list(layers)
        self._layout, self._head_dim = layout, head_dim
        self._bias = None
        if layers[0].bias is not None:
            self._bias = JoinedParameter([layer.bias for layer in layers], dtype)
        features, channels = sum(layer.out_features for layer in layers), layers[0].in_features
        shape: tuple[int, ...] = (features // 16, channels // 16, 32, 8)
        if layout == "panels":
            shape = (features // 16, channels, 16)
        elif isinstance(layers[0], Float8Linear):
            shape, dtype = (features // 16, channels // 16 + 1, 32, 8), torch.uint8
        self.weight = _empty(layers[0].weight.detach(), shape, dtype)

    @property
    def bias(self) -> torch.Tensor | None:
        """The bias of all layers, or None."""
        return None if self._bias is None else self._bias.tensor

    def load(self) -> None:
        """Pack the layers' parameters as they are now."""
        weights = [layer.weight.detach() for layer in self._layers]
        if self._layout == "panels":  # of whole panels of each layer
            panels = self.weight.split([len(weight) // 16 for weight in weights])
            for weight, out in zip(weights, panels, strict=True):
                pack_weight(weight, self._layout, out=out)
        else:
            scales = [layer.scale for layer in self._layers if isinstance(layer, Float8Linear)]
            pack_weight(
                _joined(weights),
                self._layout,
                head_dim=self._head_dim,
                scales=_joined(scales) if scales else None,
                out=self.weight,
            )
        if self._bias is not None:
            self._bias.load()


def _empty(like: torch.Tensor, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
    """Memory on the device of a tensor."""
    if like.is_cpu:
        return large_pages.empty(shape, dtype)
    return like.new_empty(shape, dtype=dtype)


def _joined(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    return torch.cat(list(parts)) if len(parts) > 1 else parts[0]


def takes_panels(layers: Sequence[AnyLinear], dtype: torch.dtype) -> bool:
    """Whether the op ``linear`` multiplies by panels of these layers joined, in C++."""
    suited = all(
        isinstance(layer, nn.Linear) and layer.weight.is_cpu and layer.out_features % 16 == 0
        for layer in layers
    )
    native = CpuGraph.unavailable() is None and default_backend() in ("auto", "cpu")
    return suited and native and dtype == torch.float32 and not is_traced()
