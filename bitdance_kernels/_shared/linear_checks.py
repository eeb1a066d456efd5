"""Checks of the ops that multiply by a weight."""

from __future__ import annotations

import torch

from bitdance_kernels._shared import checks, packed_weight
from bitdance_kernels._shared.packed_weight import TILE


def check(
    op: str,
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    *,
    swiglu: bool = False,
    panels: bool = False,
) -> None:
    """Raise TypeError or ValueError unless x [..., C] can be multiplied by weight [N, C]."""
    checks.dtype(op, "x", x, checks.FLOATS)
    checks.rank(op, "x", x, 1)
    if x.shape[-1] == 0:
        raise checks.fail(op, "x", "[..., C] with C > 0", f"shape {list(x.shape)}")
    if not packed_weight.is_quantized(weight):
        checks.dtype(op, "weight", weight, (x.dtype,))
    check_layer(op, "x", x, weight, bias, swiglu=swiglu, panels=panels)


def check_layer(
    op: str,
    name: str,
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    *,
    swiglu: bool = False,
    panels: bool = False,
) -> None:
    """Raise TypeError or ValueError unless a layer takes the channels of `x`, the argument `name`.

    The weight is a matrix, or packed by ``pack_weight``, with `panels` also in panels; its dtype
    may be another than that of `x`.
    """
    channels, letters = x.shape[-1], "[2F, C]" if swiglu else "[F, C]"
    if packed_weight.is_packed(weight):
        if channels % TILE != 0:
            expected = "[..., C] with C a multiple of 16 where weight is packed"
            raise checks.fail(op, name, expected, f"shape {list(x.shape)}")
        rows = f"{letters[1:-4]} / 16"
        steps = packed_weight.steps(weight, channels)
        wanted: tuple[int, ...] = (weight.shape[0], steps, 2 * TILE, TILE // 2)
        columns = "C / 16 + 1" if packed_weight.is_float8(weight) else "C / 16"
        checks.shape(op, "weight", weight, wanted, f"[{rows}, {columns}, 32, 8]")
    elif panels and packed_weight.is_panels(weight):
        checks.shape(op, "weight", weight, *packed_weight.panel_shape(weight, channels))
    else:
        checks.rank(op, "weight", weight, 2, 2)
        checks.shape(op, "weight", weight, (weight.shape[0], channels), letters)
    features = packed_weight.features(weight)
    if swiglu and features % 2 != 0:
        raise checks.fail(op, "weight", letters, f"shape {list(weight.shape)}")
    if bias is not None:
        dtype = x.dtype if packed_weight.is_quantized(weight) else weight.dtype
        checks.dtype(op, "bias", bias, (dtype,))
        checks.shape(op, "bias", bias, (features,), letters[:-4] + "]")
    checks.same_device(op, name, x, weight=weight, bias=bias)
