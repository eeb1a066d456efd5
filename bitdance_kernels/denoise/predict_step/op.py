"""predict_step: the public function and the op's contract."""

from __future__ import annotations

from typing import Any

import torch

from bitdance_kernels._dispatch.op import KernelOp
from bitdance_kernels._shared import checks
from bitdance_kernels.denoise._shared import affine_step, guidance, modulated_norm

__all__ = ["predict_step"]


def predict_step(
    h: torch.Tensor,
    scale: torch.Tensor,
    shift: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    x: torch.Tensor,
    table: torch.Tensor,
    step: torch.Tensor | int,
    in_weight: torch.Tensor,
    in_bias: torch.Tensor,
    time: torch.Tensor | None = None,
    cond: torch.Tensor | None = None,
    *,
    cfg: torch.Tensor | float | None = None,
    noise: torch.Tensor | None = None,
    keys: torch.Tensor | None = None,
    squash: bool = False,
    eps: float = 1e-6,
    backend: str = "auto",
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """The end of one evaluation of the head, the sampler's step, and the beginning of the next.

        x0 = adaln_norm(h, scale, shift, eps=eps) W^T + b      2 sigmoid(x0) - 1 with squash
        x' = denoise_step(x, x0, table, step, cfg, noise or keys)
        h' = x' W_in^T + b_in                                  for both halves with cfg
        y' = silu(time[step + 1] + cond)                       what the next modulations are made of

    Args:
        h: the stream after the last block, [R, ..., C], or [2 R, ..., C] with `cfg`, the
            conditional rows first; floating point, any strides.
        scale: of the shape of `h` or broadcast to it ([C], [B, 1, C]), any floating dtype; usually
            a strided chunk.
        shift: as `scale`.
        weight: [D, C] of the dtype of `h`.
        bias: [D] of the dtype of `h`.
        x: the state [R, ..., D], float32 (or float64).
        table: as for ``denoise_step``.
        step: as for ``denoise_step``.
        in_weight: [C, D] of the dtype of `h`.
        in_bias: [C] of the dtype of `h`.
        time: embedded times [S + 1, C] of the dtype of `h`, or None for an empty y'. After the last
            step its last row is taken once more.
        cond: embedded conditions, of the dtype of `h` and of its shape or broadcast to it; with
            `time`, and only with it.
        cfg: as for ``denoise_step``.
        noise: as for ``denoise_step``.
        keys: as for ``denoise_step``.
        squash: whether predictions go through 2 sigmoid(x0) - 1.
        eps: added to the (biased) variance.
        backend: "auto", "reference" or "triton".

    Returns:
        (x0, x', h', y'), contiguous: the predictions [.., D] of all rows of `h` in its dtype, the
        next state, the next stream like `h`, and y' like `h` (or empty).

    Raises:
        TypeError: a tensor has a wrong dtype.
        ValueError: a shape or device does not fit, an int `step` is outside the table, not exactly
            one of `noise` and `keys` is given, or one of `time` and `cond` without the other.
        IndexError: as for ``denoise_step``.
        RuntimeError: an argument requires grad; sampling has no gradient.
        BackendError: a backend named explicitly cannot run the call.

    Numerics:
        Norms and x0 are rounded to the dtype of `h`, x' is computed in that of `x` as by
        ``denoise_step``, and enters the product of h' in the dtype of `h`. Sums are float32.
        Autocast casts what has to be of the dtype of `h`, and `h`, to its own.

    Backends:
        reference, which is a dozen launches; Triton, one, for float32, float16 and bfloat16, a
        float32 state and D up to 128 (with `keys` a multiple of 4).
    """
    step = affine_step.step_tensor("predict_step", step, table)
    cfg = guidance.scale_tensor("predict_step", cfg, h, name="h")
    return _op.call(
        h, scale, shift, weight, bias, x, table, step, in_weight, in_bias, time, cond, cfg, noise,
        keys, squash, eps, backend,
    )  # fmt: skip


def _check(
    h: torch.Tensor,
    scale: torch.Tensor,
    shift: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    x: torch.Tensor,
    table: torch.Tensor,
    step: torch.Tensor,
    in_weight: torch.Tensor,
    in_bias: torch.Tensor,
    time: torch.Tensor | None,
    cond: torch.Tensor | None,
    cfg: torch.Tensor | None,
    noise: torch.Tensor | None,
    keys: torch.Tensor | None,
    squash: bool,
    eps: float,
) -> None:
    op = "predict_step"
    affine_step.check_state(op, x, table, step, noise, keys)
    guidance.check(op, h, cfg, name="h")
    modulated_norm.check(op, h, scale, shift, None, None, name="h")
    width, bits = h.shape[-1], x.shape[-1]
    rows = x.shape[0] if cfg is None else 2 * x.shape[0]
    checks.shape(op, "h", h, (rows, *x.shape[1:-1], width), "[R or 2 R, ..., C]")
    if (time is None) != (cond is None):
        raise checks.fail(op, "time and cond", "given both or neither", "one of them")
    layers: tuple[tuple[str, torch.Tensor | None, tuple[int, ...], str], ...] = (
        ("weight", weight, (bits, width), "[D, C]"),
        ("bias", bias, (bits,), "[D]"),
        ("in_weight", in_weight, (width, bits), "[C, D]"),
        ("in_bias", in_bias, (width,), "[C]"),
        ("time", time, (table.shape[0], width), "[S + 1, C]"),
        ("cond", cond, tuple(h.shape), "that of h"),
    )
    for name, tensor, shape, letters in layers:
        if tensor is not None:
            checks.dtype(op, name, tensor, (h.dtype,))
            check = checks.broadcast if name == "cond" else checks.shape
            check(op, name, tensor, shape, letters)
            checks.same_device(op, "h", h, **{name: tensor})
    checks.same_device(op, "h", h, x=x)


def _fake(h: torch.Tensor, *others: Any) -> tuple[torch.Tensor, ...]:
    weight, x, time = others[2], others[4], others[9]
    x0 = h.new_empty((*h.shape[:-1], weight.shape[0]))
    y = h.new_empty(0 if time is None else h.shape)
    return x0, x.new_empty(x.shape), h.new_empty(h.shape), y


_op = KernelOp(
    "predict_step",
    "(Tensor h, Tensor scale, Tensor shift, Tensor weight, Tensor bias, Tensor x, Tensor table, "
    "Tensor step, Tensor in_weight, Tensor in_bias, Tensor? time, Tensor? cond, Tensor? cfg, "
    "Tensor? noise, Tensor? keys, bool squash, float eps) -> (Tensor, Tensor, Tensor, Tensor)",
    package=__package__,
    check=_check,
    fake=_fake,
    broadcast={"scale": ("h", None), "shift": ("h", None), "cond": ("h", None)},
    order={"cuda": ("triton", "reference"), "cpu": ("reference",)},
    autocast=("h", "weight", "bias", "in_weight", "in_bias", "time", "cond"),
)
