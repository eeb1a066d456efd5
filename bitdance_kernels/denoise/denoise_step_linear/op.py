"""denoise_step_linear: the public function and the op's contract."""

from __future__ import annotations

import torch

from bitdance_kernels._dispatch.op import KernelOp
from bitdance_kernels._shared import checks, linear_checks, moments, packed_weight
from bitdance_kernels.denoise._shared import affine_step, guidance

__all__ = ["denoise_step_linear"]


def denoise_step_linear(
    x: torch.Tensor,
    x0: torch.Tensor,
    table: torch.Tensor,
    step: torch.Tensor | int,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    *,
    cfg: torch.Tensor | float | None = None,
    noise: torch.Tensor | None = None,
    keys: torch.Tensor | None = None,
    squash: bool = False,
    backend: str = "auto",
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """``denoise_step`` and the projection that begins the next evaluation of the head.

        x0 = 2 sigmoid(x0) - 1                                       with squash
        x' = denoise_step(x, x0, table, step, cfg, noise or keys)
        h  = x' W^T + b                                              for both halves with cfg

    Args:
        x: the state [R, ..., D], float32 (or float64), any strides.
        x0: the network's prediction, as for ``denoise_step``.
        table: as for ``denoise_step``.
        step: as for ``denoise_step``.
        weight: [F, D] with F a multiple of 16, any floating dtype, or what ``pack_weight`` makes of
            it.
        bias: [F] of the dtype of `weight`, or None for 0.
        cfg: as for ``denoise_step``.
        noise: as for ``denoise_step``.
        keys: as for ``denoise_step``.
        squash: whether predictions go through 2 sigmoid(x0) - 1.
        backend: "auto", "reference" or "cuda".

    Returns:
        (x', h, moments), contiguous: the next state; the stream [R or 2 R, ..., F] of the dtype of
        `weight`, for the conditional rows first; and its moments, float32 (float64 for float64)
        [..., F / 16, 2]: of every 16 adjacent channels of a row the mean, and the sum of squared
        deviations from it.

    Raises:
        TypeError: a tensor has a wrong dtype.
        ValueError: a shape or device does not fit, an int `step` is outside the table, or not
            exactly one of `noise` and `keys` is given.
        IndexError: as for ``denoise_step``.
        RuntimeError: an argument requires grad; sampling has no gradient.
        BackendError: a backend named explicitly cannot run the call.

    Numerics:
        x' as by ``denoise_step``, with squashed predictions rounded to the dtype of `x0`. It enters
        the product in the dtype of `weight`. Sums are float32 (float64 for float64), rounded once.
        Autocast casts `weight` and `bias`.

    Backends:
        reference, which unpacks a packed weight; CUDA C++ for a packed weight, up to 128 tokens of
        up to 128 bits, and `x0` and `weight` in float16 or bfloat16, on cards of capability 9.0 or
        10.x.
    """
    step = affine_step.step_tensor("denoise_step_linear", step, table)
    cfg = guidance.scale_tensor("denoise_step_linear", cfg, x0)
    return _op.call(x, x0, table, step, weight, bias, cfg, noise, keys, squash, backend)


def _check(
    x: torch.Tensor,
    x0: torch.Tensor,
    table: torch.Tensor,
    step: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    cfg: torch.Tensor | None,
    noise: torch.Tensor | None,
    keys: torch.Tensor | None,
    squash: bool,
) -> None:
    op = "denoise_step_linear"
    affine_step.check_call(op, x, x0, table, step, cfg, noise, keys)
    checks.dtype(op, "weight", weight, checks.FLOATS)
    linear_checks.check_layer(op, "x", x, weight, bias)
    shape = torch.Size([packed_weight.features(weight)])
    moments.check_parts(op, "weight", shape, "[F, D] with F a multiple of 16")


def _fake(
    x: torch.Tensor,
    x0: torch.Tensor,
    table: torch.Tensor,
    step: torch.Tensor,
    weight: torch.Tensor,
    *_: object,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    stream = weight.new_empty((*x0.shape[:-1], packed_weight.features(weight)))
    return x.new_empty(x.shape), stream, moments.fake(stream)


_op = KernelOp(
    "denoise_step_linear",
    "(Tensor x, Tensor x0, Tensor table, Tensor step, Tensor weight, Tensor? bias, Tensor? cfg, "
    "Tensor? noise, Tensor? keys, bool squash) -> (Tensor, Tensor, Tensor)",
    package=__package__,
    check=_check,
    fake=_fake,
    order={"cuda": ("cuda", "reference"), "cpu": ("reference",)},
    autocast=("weight", "bias"),
)
