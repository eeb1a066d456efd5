"""Layers of a model whose weights are in float8 or int8 instead of the dtype of the parameters."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from bitdance.io.scaled_weights import rescale
from bitdance.io.validation import brief
from bitdance_kernels import (
    dequantize_rows,
    linear,
    linear_fp8,
    pack_weight,
    quantize_rows,
    unpack_weight,
)

__all__ = [
    "QUANTIZATIONS",
    "AnyLinear",
    "Float8Linear",
    "Int8Linear",
    "QuantizedLinear",
    "check_blocks",
    "check_quantization",
    "is_quantized",
    "linear_layers",
    "quantization_of",
    "quantize_blocks",
    "quantized_from_file",
]

QUANTIZATIONS = ("fp8", "fp8_weight_only", "int8_weight_only")
"""Names of what layers can be quantized to: float8 weights and inputs, or weights alone."""

_MULTIPLE = 16


class Float8Linear(nn.Module):
    """A linear layer with a float8 weight (e4m3) and a scale for each of its outputs.

    It is for inference; casting it to another dtype changes its bias alone.

    Args:
        layer: the layer, which is not changed.
        quantize_inputs: whether inputs are rounded to float8 too, with a scale for each row.
        stored: a weight that is in float8 already, in place of the layer's: bits, uint8
            [out_features, in_features], and scales of its rows, float32 [out_features].

    Attributes:
        weight: bits of float8_e4m3fn, uint8 [out_features, in_features].
        bias: the bias, or None.
        quantize_inputs: as the argument.
    """

    weight: torch.Tensor
    _scale_bits: torch.Tensor

    def __init__(
        self,
        layer: nn.Linear,
        *,
        quantize_inputs: bool,
        stored: tuple[torch.Tensor, torch.Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.quantize_inputs, self.bias = quantize_inputs, layer.bias
        weight, scale = quantize_rows(layer.weight.detach()) if stored is None else stored
        self.register_buffer("weight", weight)
        self.register_buffer("_scale_bits", scale.view(torch.int32))  # no dtype that casts change

    @property
    def scale(self) -> torch.Tensor:
        """Scales of the weight's rows, float32 [out_features]."""
        return self._scale_bits.view(torch.float32)

    def dequantized(self, dtype: torch.dtype) -> torch.Tensor:
        """The weight [out_features, in_features] that the layer multiplies by."""
        return dequantize_rows(self.weight, self.scale, dtype)

    def product(self, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """``forward`` with another bias."""
        return linear_fp8(x, self.weight, self.scale, bias, quantize_x=self.quantize_inputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., in_features] to [..., out_features]."""
        return self.product(x, self.bias)

    def extra_repr(self) -> str:
        """Sizes, for ``print``."""
        return f"{self.in_features}, {self.out_features}, quantize_inputs={self.quantize_inputs}"


class Int8Linear(nn.Module):
    """A linear layer with an int8 weight and a scale for each of its outputs.

    It is for inference; casting it to another dtype changes its bias alone.

    Args:
        layer: the layer, which is not changed.
        stored: a weight that is in int8 already, in place of the layer's: values, int8
            [out_features, in_features], and scales of its rows, float32 [out_features].

    Attributes:
        weight: panels of values with their scales, int8 [out_features / 16, in_features + 4, 16].
        bias: the bias, or None.

    Raises:
        ValueError: an element of the weight is not finite.
    """

    weight: torch.Tensor

    def __init__(
        self, layer: nn.Linear, *, stored: tuple[torch.Tensor, torch.Tensor] | None = None
    ) -> None:
        super().__init__()
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.bias = layer.bias
        if stored is None:
            stored = quantize_rows(layer.weight.detach(), torch.int8)
        values, scales = stored
        self.register_buffer("weight", pack_weight(values, "panels", scales=scales))

    def dequantized(self, dtype: torch.dtype) -> torch.Tensor:
        """The weight [out_features, in_features] that the layer multiplies by."""
        return unpack_weight(self.weight, "panels").to(dtype)

    def product(self, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """``forward`` with another bias."""
        return linear(x, self.weight, bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., in_features] to [..., out_features]."""
        return self.product(x, self.bias)

    def extra_repr(self) -> str:
        """Sizes, for ``print``."""
        return f"{self.in_features}, {self.out_features}"


QuantizedLinear = Float8Linear | Int8Linear
AnyLinear = nn.Linear | QuantizedLinear


def quantize_blocks(function: str, parts: Sequence[nn.Module], quantization: str) -> None:
    """Replace every linear layer of a model's parts, one after the other.

    Args:
        function: name of the caller, for errors.
        parts: blocks of a transformer and of a head, perhaps on the meta device.
        quantization: one of ``QUANTIZATIONS``.

    Raises:
        ValueError: as ``check_blocks``, or a weight that int8 is to hold is not finite; nothing is
            replaced.
    """
    check_blocks(function, parts, quantization)
    layers = linear_layers(parts)
    if quantization == "int8_weight_only":
        for _, _, layer in layers:
            _check_finite(function, layer.weight)
    while layers:  # none stays in the list, so that its memory is free before the next
        module, name, layer = layers.pop()
        setattr(module, name, _quantized(layer, quantization))


def check_blocks(function: str, parts: Sequence[nn.Module], quantization: str) -> None:
    """Check that the layers of a model's parts can be quantized; no weight is read.

    Args:
        function: name of the caller, for errors.
        parts: blocks of a transformer and of a head, perhaps on the meta device.
        quantization: one of ``QUANTIZATIONS``.

    Raises:
        ValueError: there is no such quantization, a layer's width is no multiple of 16, or layers
            are quantized already.
    """
    check_quantization(function, quantization)
    if any(map(is_quantized, parts)):
        raise ValueError(f"{function}: model must not be quantized, got one that is")
    sizes = [size for _, _, layer in linear_layers(parts) for size in layer.weight.shape]
    odd = [size for size in sizes if size % _MULTIPLE]
    if odd:
        raise ValueError(
            f"{function}: quantization must be None for a model with widths that are no multiples "
            f"of {_MULTIPLE}, such as {odd[0]}, got {quantization!r}"
        )


def linear_layers(parts: Sequence[nn.Module]) -> list[tuple[nn.Module, str, nn.Linear]]:
    """The layers that quantization replaces: each with its parent and its name there."""
    return [
        (module, name, child)
        for part in parts
        for module in part.modules()
        for name, child in module.named_children()
        if isinstance(child, nn.Linear)
    ]


def quantized_from_file(
    layer: nn.Linear, weight: torch.Tensor, scale: torch.Tensor | None, quantization: str
) -> QuantizedLinear:
    """A quantized layer with a weight as a file has it.

    A weight in float8 (e4m3) keeps its bits and its scale where it is to be in float8. Any other is
    cast to the dtype of the layer, then rounded.

    Args:
        layer: the layer, perhaps on the meta device; its bias is kept.
        weight: [out_features, in_features] of any floating dtype.
        scale: factor of the weight or of each of its rows, of ``split_scales``, or None.
        quantization: one of ``QUANTIZATIONS``.

    Raises:
        ValueError: a weight that int8 is to hold is not finite in the dtype of the layer.
    """
    if weight.dtype == torch.float8_e4m3fn and quantization != "int8_weight_only":
        factor = torch.ones(1, dtype=torch.float32, device=weight.device)
        factor = factor if scale is None else scale.float().flatten()
        stored = weight.view(torch.uint8).clone(), factor.expand(len(weight)).contiguous()
        return Float8Linear(layer, quantize_inputs=quantization == "fp8", stored=stored)
    cast = rescale(weight, scale, layer.weight.dtype)
    if quantization == "int8_weight_only":
        _check_finite("from_pretrained", cast)
    # A layer of its own: the given one goes on without the memory.
    whole = nn.Linear(1, 1, bias=False, dtype=cast.dtype, device="meta")
    whole.in_features, whole.out_features = layer.in_features, layer.out_features
    whole.weight, whole.bias = nn.Parameter(cast, requires_grad=False), layer.bias
    return _quantized(whole, quantization)


def _check_finite(function: str, weight: torch.Tensor) -> None:
    if not weight.is_meta and not weight.isfinite().all():
        raise ValueError(
            f"{function}: weights must be finite for 'int8_weight_only', got NaN or infinity"
        )


def _quantized(layer: nn.Linear, quantization: str) -> QuantizedLinear:
    stored = None
    if layer.weight.is_meta:  # which has no values to be rounded
        kind = torch.int8 if quantization == "int8_weight_only" else torch.uint8
        values = torch.empty(layer.weight.shape, dtype=kind, device="meta")
        stored = values, torch.empty(len(values), dtype=torch.float32, device="meta")
    if quantization == "int8_weight_only":
        return Int8Linear(layer, stored=stored)
    return Float8Linear(layer, quantize_inputs=quantization == "fp8", stored=stored)


def check_quantization(function: str, quantization: str) -> None:
    """Raise ValueError unless `quantization` is one of ``QUANTIZATIONS``."""
    if quantization not in QUANTIZATIONS:
        names = ", ".join(QUANTIZATIONS)
        raise ValueError(
            f"{function}: quantization must be one of {names}, got {brief(quantization)}"
        )


def is_quantized(module: nn.Module) -> bool:
    """Whether a layer in it is quantized."""
    return quantization_of(module) is not None


def quantization_of(module: nn.Module) -> str | None:
    """Which of ``QUANTIZATIONS`` the layers in a module have; None if none is quantized."""
    for layer in module.modules():
        if isinstance(layer, Int8Linear):
            return "int8_weight_only"
        if isinstance(layer, Float8Linear):
            return "fp8" if layer.quantize_inputs else "fp8_weight_only"
    return None
