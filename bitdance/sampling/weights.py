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
        features = sum(layer.out_features for layer in layers)
        steps = layers[0].in_features // 16
        if isinstance(layers[0], Float8Linear):
            steps, dtype = steps + 1, torch.uint8
        shape = (features // 16, steps, 32, 8)
        self.weight = layers[0].weight.detach().new_empty(shape, dtype=dtype)

    @property
    def bias(self) -> torch.Tensor | None:
        """The bias of all layers, or None."""
        return None if self._bias is None else self._bias.tensor

    def load(self) -> None:
        """Pack the layers' parameters as they are now."""
        scales = [layer.scale for layer in self._layers if isinstance(layer, Float8Linear)]
        pack_weight(
            _joined([layer.weight.detach() for layer in self._layers]),
            self._layout,
            head_dim=self._head_dim,
            scales=_joined(scales) if scales else None,
            out=self.weight,
        )
        if self._bias is not None:
            self._bias.load()


def _joined(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    return torch.cat(list(parts)) if len(parts) > 1 else parts[0]
