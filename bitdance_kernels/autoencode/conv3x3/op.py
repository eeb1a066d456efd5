"""conv3x3: the public function and the op's contract."""

from __future__ import annotations

import torch

from bitdance_kernels._dispatch.op import KernelOp
from bitdance_kernels._shared import checks, packed_weight
from bitdance_kernels.autoencode.conv3x3._shapes import MAX_FACTOR, empty_result, features_of

__all__ = ["conv3x3"]


def conv3x3(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
    *,
    upscale_factor: int = 1,
    backend: str = "auto",
) -> torch.Tensor:
    """A convolution of 3 x 3 pixels with a border of zeros; of maps that are too small for others.

        y = conv2d(x, weight, bias, padding=1) + residual

    The library packs a weight in every call, or starts slowly. Between the small maps of a decoder
    of few images that takes longer than the convolution.

    Args:
        x: [B, C, H, W], floating point, any strides.
        weight: [F, C, 3, 3] of the dtype of `x`; or, with F a multiple of 16, its panels
            ``pack_weight(weight.permute(0, 2, 3, 1).flatten(1), "panels")``: [F / 16, 9 C, 16].
        bias: [F] of the dtype of `x`, or None for 0.
        residual: [B, F, H, W] of the dtype of `x`, any strides, or None for 0. Only with
            `upscale_factor` 1.
        upscale_factor: s, by which the result is wider and higher: y[c, s i + di, s j + dj] is what
            the convolution gives for feature (s di + dj) F / s^2 + c of pixel (i, j). The channel
            varies fastest, unlike in ``torch.pixel_shuffle``.
        backend: "auto", "reference" or "cpu".

    Returns:
        [B, F / s^2, s H, s W] of the dtype of `x`, channels-last.

    Raises:
        TypeError: a tensor has another dtype.
        ValueError: shapes or devices do not fit.
        RuntimeError: an argument requires grad. For training there is ``F.conv2d``.
        BackendError: a backend named explicitly cannot run the call.

    Numerics:
        C++ sums in float32, for a pixel in the same order in every batch, map and number of
        threads.

    Backends:
        reference, which is PyTorch's convolution and unpacks panels; C++ on the CPU for panels in
        float32 whose features are a multiple of 16 s^2.

    Example:
        >>> import torch
        >>> conv3x3(torch.ones(1, 1, 2, 3), torch.ones(1, 1, 3, 3))
        tensor([[[[4., 6., 4.],
                  [4., 6., 4.]]]])
    """
    return _op.call(x, weight, bias, residual, upscale_factor, backend)


def _check(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    residual: torch.Tensor | None,
    upscale_factor: int,
) -> None:
    op = "conv3x3"
    checks.dtype(op, "x", x, checks.FLOATS)
    checks.rank(op, "x", x, 4, 4)
    B, C, H, W = x.shape
    if 0 in (C, H, W):
        raise checks.fail(op, "x", "[B, C, H, W] with C, H, W > 0", f"shape {list(x.shape)}")
    checks.dtype(op, "weight", weight, (x.dtype,))
    if packed_weight.is_panels(weight):
        shape: tuple[int, ...] = (weight.shape[0], 9 * C, packed_weight.TILE)
        checks.shape(op, "weight", weight, shape, "[F / 16, 9 C, 16]")
    else:
        checks.rank(op, "weight", weight, 4, 4)
        checks.shape(op, "weight", weight, (len(weight), C, 3, 3), "[F, C, 3, 3]")
    features = features_of(weight)
    if features == 0:
        raise checks.fail(op, "weight", "[F, C, 3, 3] with F > 0", f"shape {list(weight.shape)}")
    if upscale_factor < 1 or upscale_factor > MAX_FACTOR or features % upscale_factor**2 != 0:
        expected = f"from 1 to {MAX_FACTOR}, and its square a divisor of F = {features}"
        raise checks.fail(op, "upscale_factor", expected, upscale_factor)
    if bias is not None:
        checks.dtype(op, "bias", bias, (x.dtype,))
        checks.shape(op, "bias", bias, (features,), "[F]")
    if residual is not None:
        if upscale_factor != 1:
            raise checks.fail(op, "residual", "None with an upscale_factor", "a tensor")
        checks.dtype(op, "residual", residual, (x.dtype,))
        checks.shape(op, "residual", residual, (B, features, H, W), "[B, F, H, W]")
    checks.same_device(op, "x", x, weight=weight, bias=bias, residual=residual)


def _fake(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    residual: torch.Tensor | None,
    upscale_factor: int,
) -> torch.Tensor:
    return empty_result(x, features_of(weight), upscale_factor)


_op = KernelOp(
    "conv3x3",
    "(Tensor x, Tensor weight, Tensor? bias, Tensor? residual, int upscale_factor) -> Tensor",
    package=__package__,
    check=_check,
    fake=_fake,
    order={"cuda": ("reference",), "cpu": ("cpu", "reference")},
    autocast=("x", "weight", "bias", "residual"),
)
