"""Products of few rows in CUDA C++: csrc/cuda/common/skinny_product."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from bitdance_kernels._shared import launches, native, packed_weight, skinny_config
from bitdance_kernels._shared.rows import as_rows

NATIVE_FUNCTIONS = ("skinny_product",)

# Codes of csrc/cuda/common/skinny_product_config.h.
NO_NORM, LAYER_NORM, RMS_NORM = 0, 1, 2
PLAIN, SWIGLU, GATED = 0, 1, 2


def unsupported(
    x: torch.Tensor,
    weight: torch.Tensor,
    *others: torch.Tensor | None,
    norms: Sequence[torch.Tensor | None] = (),
    function: str = "skinny_product",
) -> str | None:
    """The reason why the kernel cannot take these tensors; None if it can.

    Args:
        x: the rows.
        weight: the matrix.
        others: tensors that must have the dtype of `x`.
        norms: weight and bias of the norm.
        function: C function.
    """
    reason = native.cuda_unsupported(function, x) or native.sm90_unsupported(x.device)
    if reason is not None:
        return reason
    if x.dtype not in (torch.float16, torch.bfloat16):
        return f"it does not handle {x.dtype}"
    if not packed_weight.is_packed(weight):
        return "it takes weights that pack_weight has packed for tensor cores"
    rows = x.shape[:-1].numel()
    if rows > skinny_config.MAX_ROWS:
        return f"it is for at most {skinny_config.MAX_ROWS} rows, got {rows}"
    for other in others:
        if other is not None and other.dtype != x.dtype:
            return f"it takes all tensors in the dtype of x, {x.dtype}, got {other.dtype}"
    return native.dtype_unsupported(*(norm.dtype for norm in norms if norm is not None))


def product(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    y: torch.Tensor,
    *,
    norm: int = NO_NORM,
    scale: torch.Tensor | None = None,
    shift: torch.Tensor | None = None,
    norm_weight: torch.Tensor | None = None,
    norm_bias: torch.Tensor | None = None,
    moments: torch.Tensor | None = None,
    eps: float = 0.0,
    epilogue: int = PLAIN,
    residual: torch.Tensor | None = None,
    gate: torch.Tensor | None = None,
    y_moments: torch.Tensor | None = None,
) -> None:
    """Launch the kernel; `y` and `y_moments` are contiguous and written."""
    rows, channels = x.shape[:-1].numel(), x.shape[-1]
    features = packed_weight.features(weight)
    # What the kernel reads before the one before it has ended.
    early = (weight, bias, scale, shift, norm_weight, norm_bias)
    weight, bias = weight.contiguous(), contiguous(bias)
    norm_weight, norm_bias = contiguous(norm_weight), contiguous(norm_bias)
    scale, shift = (None if t is None else spaced(t) for t in (scale, shift))
    ready = (weight, bias, scale, shift, norm_weight, norm_bias)
    native.cuda.skinny_product(
        spaced(x),
        contiguous(moments),
        weight,
        packed_weight.is_float8(weight),
        bias,
        norm,
        scale,
        shift,
        norm_weight,
        norm_bias,
        eps,
        epilogue,
        None if residual is None else as_rows(residual)[0],
        None if gate is None else as_rows(gate)[0],
        y,
        y_moments,
        rows,
        channels,
        features,
        *skinny_config.choose(rows, channels, features, x.device),
        overlaps(early, ready),
        *native.stream(x.device),
    )


def overlaps(early: Sequence[torch.Tensor | None], ready: Sequence[torch.Tensor | None]) -> int:
    """1 if the launch that follows may begin before the one before it has ended.

    Args:
        early: arguments that the kernel reads before that.
        ready: what it is given in their place: a copy is written by the kernel before.
    """
    programmatic = launches.programmatic()
    return programmatic * all(a is b for a, b in zip(early, ready, strict=True))


def spaced(x: torch.Tensor) -> torch.Tensor:
    """`x` [..., C] as evenly spaced rows that are aligned to 16 bytes."""
    return as_rows(native.aligned_rows(x))[0]


def contiguous(x: torch.Tensor | None) -> torch.Tensor | None:
    """`x`, copied unless it is contiguous; None for None."""
    return None if x is None else x.contiguous()
