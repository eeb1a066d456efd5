"""Parameters in the form in which sampling multiplies by them, in memory that stays.

Where that form is another one than a parameter's own it is a copy, which ``load`` refreshes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from bitdance.models.quantization import AnyLinear, Float8Linear
from bitdance_kernels import linear, linear_fp8, pack_weight

__all__ = ["Float8Product", "JoinedLinear", "JoinedParameter", "PackedLinear"]


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

    Args:
        layers: the layers; their outputs are concatenated.
        dtype: dtype of the product.
    """

    def __init__(self, layers: Sequence[nn.Linear], dtype: torch.dtype) -> None:
        self._joined = [
            JoinedParameter([layer.weight for layer in layers], dtype),
            JoinedParameter([layer.bias for layer in layers], dtype),
        ]
        self.weight, self.bias = (joined.tensor for joined in self._joined)

    def load(self) -> None:
        """Refresh the copies of the layers' parameters."""
        for joined in self._joined:
            joined.load()

    def empty(self, *rows: int) -> torch.Tensor:
        """An uninitialized result of that many rows."""
        return self.weight.new_empty(*rows, len(self.weight))

    def __call__(self, x: torch.Tensor, *, out: torch.Tensor | None) -> torch.Tensor:
        """The product [M, N] of `x` [M, K], written into `out` if that is given."""
        return linear(x, self.weight, self.bias, out=out)


class Float8Product:
    """x W^T + b of a layer whose weight is in float8, which is used itself.

    Args:
        layer: the layer.
        dtype: dtype of the product.
    """

    def __init__(self, layer: Float8Linear, dtype: torch.dtype) -> None:
        self._layer = layer
        self._bias = None if layer.bias is None else JoinedParameter([layer.bias], dtype)

    def load(self) -> None:
        """Refresh the copy of the bias."""
        if self._bias is not None:
            self._bias.load()

    def __call__(self, x: torch.Tensor, *, out: torch.Tensor | None = None) -> torch.Tensor:
        """The product [M, N] of `x` [M, K], in new memory."""
        layer, bias = self._layer, None if self._bias is None else self._bias.tensor
        return linear_fp8(x, layer.weight, layer.scale, bias, quantize_x=layer.quantize_inputs)


class PackedLinear:
    """Weight and bias of one layer, or of several with the same input, the weight packed.

    Args:
        layers: the layers; their outputs are concatenated. All have a bias or none has.
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
        self._weights = [layer.weight.detach() for layer in layers]
        self._layout, self._head_dim = layout, head_dim
        self._bias = None
        if layers[0].bias is not None:
            self._bias = JoinedParameter([layer.bias for layer in layers], dtype)
        features, channels = sum(map(len, self._weights)), self._weights[0].shape[1]
        shape = (features // 16, channels // 16, 32, 8)
        self.weight = self._weights[0].new_empty(shape, dtype=dtype)

    @property
    def bias(self) -> torch.Tensor | None:
        """The bias of all layers, or None."""
        return None if self._bias is None else self._bias.tensor

    def load(self) -> None:
        """Pack the layers' parameters as they are now."""
        first, *others = self._weights
        weight = torch.cat(self._weights) if others else first
        pack_weight(weight, self._layout, head_dim=self._head_dim, out=self.weight)
        if self._bias is not None:
            self._bias.load()
