"""denoise_patch: the public function and the op's contract."""

from __future__ import annotations

from typing import Any

import torch

from bitdance_kernels._dispatch import arguments
from bitdance_kernels._dispatch.op import KernelOp
from bitdance_kernels._shared import checks, packed_weight
from bitdance_kernels.denoise._shared import guidance

__all__ = ["check_denoise_status", "denoise_patch"]

_ATTENTION = ("norm_weight", "norm_bias", "qkv_weight", "qkv_bias", "out_weight", "out_bias")
Attention = tuple[
    torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor
]


def denoise_patch(
    x: torch.Tensor,
    modulation: torch.Tensor,
    table: torch.Tensor,
    in_weight: torch.Tensor,
    in_bias: torch.Tensor,
    norm_weight: torch.Tensor,
    norm_bias: torch.Tensor,
    weight1: torch.Tensor,
    bias1: torch.Tensor,
    weight2: torch.Tensor,
    bias2: torch.Tensor,
    out_weight: torch.Tensor,
    out_bias: torch.Tensor,
    *,
    attention: Attention | None = None,
    num_heads: int = 0,
    cfg: torch.Tensor | float | None = None,
    noise: torch.Tensor | None = None,
    keys: torch.Tensor | None = None,
    squash: bool = False,
    eps: float = 1e-6,
    backend: str = "auto",
) -> tuple[torch.Tensor, torch.Tensor]:
    """All evaluations of the head for one patch, and the sampler's steps between them.

    With the modulations of evaluation i cut into chunks of C channels, three for each projection
    (scale, shift, gate) and two for the last norm:

        h  = x W_in^T + b_in                               for both halves with cfg
        h  = h + gate (swiglu(adaln_norm(h) W1^T + b1) W2^T + b2)            L times
        x0 = adaln_norm(h) W_out^T + b_out                 2 sigmoid(x0) - 1 with squash
        x  = denoise_step(x, x0, table, i, cfg, noise[i] or keys)

    With `attention` a layer has h + gate (patch_attention(adaln_norm(h) W^T + b) W_o^T + b_o)
    before that, and a projection twice as many chunks, those of the attention first. Layer l of L
    takes projection l A // L of A; projections beyond the L-th are not used.

    Args:
        x: the state [R, ..., D] before the first step, float32 (or float64), any strides; the
            dimensions between are the tokens of a patch.
        modulation: [S + 1, M, (3 A + 2) C], (6 A + 2) C with `attention`, of the dtype of
            `in_weight`; M is the number of tokens of `x`, twice that with `cfg`, the conditional
            ones first.
        table: [S + 1, 3] of the dtype of `x`, as ``denoise_schedule`` makes it.
        in_weight: [C, D], any floating dtype, which all weights have. Each weight may be packed by
            ``pack_weight``, layer by layer.
        in_bias: [C].
        norm_weight: [L, C].
        norm_bias: [L, C].
        weight1: [L, 2 H, C], the gate's half first; packed in the layout "swiglu".
        bias1: [L, 2 H].
        weight2: [L, C, H].
        bias2: [L, C].
        out_weight: [D, C].
        out_bias: [D].
        attention: norm_weight [L, C], norm_bias [L, C], qkv_weight [L, 3 C, C], qkv_bias [L, 3 C],
            out_weight [L, C, C] and out_bias [L, C] of the attention; `x` is [R, P, D] then.
        num_heads: heads of the attention; 0 without.
        cfg: as for ``denoise_step``.
        noise: eps of every step, [S + 1, R, ..., D] of the dtype of `x`. Either `noise` or `keys`
            must be given.
        keys: int64 [R, 3] as ``noise_keys`` makes them; step i has ``noise(keys, i + 1, ...)``.
        squash: whether predictions go through 2 sigmoid(x0) - 1.
        eps: added to the (biased) variances.
        backend: "auto", "reference" or "cuda".

    Returns:
        (x, status): the state after the last step, of the shape and dtype of `x`, contiguous; and
        an int32 tensor of one element, 0 where all went well. In one CUDA launch blocks wait for
        each other. Should one wait in vain, for a second or so, the launch ends with status 1 and
        a state of NaN. ``check_denoise_status`` reads it, once an image, since that waits for the
        device.

    Raises:
        TypeError: a tensor has a wrong dtype.
        ValueError: a shape or device does not fit, or not exactly one of `noise` and `keys` is
            given, or one of `attention` and `num_heads` without the other.
        RuntimeError: an argument requires grad; sampling has no gradient.
        BackendError: a backend named explicitly cannot run the call.

    Numerics:
        Every norm, product, gate, residual and prediction is rounded to the dtype of the weights,
        the state is computed in that of `x`. Sums are float32. Autocast changes nothing.

    Backends:
        reference; CUDA C++, which is one launch, on cards of compute capability 9.0 or 10.x: for
        float16 and bfloat16, packed weights, a float32 state of 32 channels, heads of (C, H) =
        (768, 1152) or (1024, 1536), M up to 32, or (1280, 1920), M up to 16; with attention
        (768, 1152) in 12 heads and patches of up to 16 tokens.
    """
    cfg = guidance.scale_tensor("denoise_patch", cfg, modulation, name="modulation")
    parts: tuple[torch.Tensor | None, ...] = (None,) * len(_ATTENTION)
    if attention is not None:
        if len(attention) != len(_ATTENTION):
            expected = f"({', '.join(_ATTENTION)})"
            raise checks.fail("denoise_patch", "attention", expected, f"{len(attention)} values")
        parts = tuple(attention)
    return _op.call(
        x, modulation, table, in_weight, in_bias, norm_weight, norm_bias, weight1, bias1, weight2,
        bias2, out_weight, out_bias, *parts, num_heads, cfg, noise, keys, squash, eps, backend,
    )  # fmt: skip


def check_denoise_status(status: torch.Tensor) -> None:
    """Raise RuntimeError if a call of ``denoise_patch`` ended before its time; waits for it.

    Args:
        status: second result of the call, or the largest of several.

    Raises:
        RuntimeError: a block of the launch waited for another one in vain.
    """
    arguments.tensor("check_denoise_status", "status", status)
    if int(status) != 0:
        raise RuntimeError(
            "denoise_patch: the blocks of a launch waited for each other in vain, and the state is "
            "NaN; another backend or plan of the head does without such launches"
        )


def _check(
    x: torch.Tensor,
    modulation: torch.Tensor,
    table: torch.Tensor,
    in_weight: torch.Tensor,
    in_bias: torch.Tensor,
    norm_weight: torch.Tensor,
    norm_bias: torch.Tensor,
    weight1: torch.Tensor,
    bias1: torch.Tensor,
    weight2: torch.Tensor,
    bias2: torch.Tensor,
    out_weight: torch.Tensor,
    out_bias: torch.Tensor,
    *others: Any,
) -> None:
    op, attention = "denoise_patch", others[:6]
    num_heads, cfg, noise, keys = others[6:10]
    _check_state(x, table, cfg, noise, keys)
    checks.dtype(op, "in_weight", in_weight, checks.FLOATS)
    bits = x.shape[-1]
    width = _matrix_shape("in_weight", in_weight, 0)[0]
    layers, features, _ = _matrix_shape("weight1", weight1, 1)
    checks.rank(op, "norm_weight", norm_weight, 2, 2)
    has_attention = [part is not None for part in attention]
    if any(has_attention) != all(has_attention) or all(has_attention) != (num_heads > 0):
        raise checks.fail(op, "attention and num_heads", "given both or neither", num_heads)
    if layers == 0 or features % 2 != 0:
        got = f"shape {list(weight1.shape)}"
        raise checks.fail(op, "weight1", "[L, 2 H, C] with L > 0", got)
    expected: list[tuple[str, torch.Tensor, tuple[int, ...]]] = [
        ("in_weight", in_weight, (width, bits)),
        ("in_bias", in_bias, (width,)),
        ("norm_weight", norm_weight, (layers, width)),
        ("norm_bias", norm_bias, (layers, width)),
        ("weight1", weight1, (layers, features, width)),
        ("bias1", bias1, (layers, features)),
        ("weight2", weight2, (layers, width, features // 2)),
        ("bias2", bias2, (layers, width)),
        ("out_weight", out_weight, (bits, width)),
        ("out_bias", out_bias, (bits,)),
    ]
    if num_heads > 0:
        if width % num_heads != 0 or x.dim() != 3:
            got = f"{num_heads} heads, {width} channels and a state of shape {list(x.shape)}"
            raise checks.fail(op, "attention", "of heads that divide C, x [R, P, D]", got)
        sizes = ((width,), (width,), (3 * width, width), (3 * width,), (width, width), (width,))
        named = zip(_ATTENTION, attention, sizes, strict=True)
        expected += [(f"attention.{name}", t, (layers, *size)) for name, t, size in named]
    for name, tensor, shape in expected:
        checks.dtype(op, name, tensor, (in_weight.dtype,))
        if name.endswith("weight") or name in ("weight1", "weight2"):
            _check_weight(name, tensor, shape)
        else:
            checks.shape(op, name, tensor, shape)
        checks.same_device(op, "x", x, **{name: tensor})
    _check_modulation(x, modulation, table, in_weight, cfg, (3 if num_heads == 0 else 6, width))


def _check_state(
    x: torch.Tensor,
    table: torch.Tensor,
    cfg: torch.Tensor | None,
    noise: torch.Tensor | None,
    keys: torch.Tensor | None,
) -> None:
    op = "denoise_patch"
    checks.dtype(op, "x", x, (torch.float32, torch.float64))
    checks.rank(op, "x", x, 2)
    checks.dtype(op, "table", table, (x.dtype,))
    checks.rank(op, "table", table, 2, 2)
    checks.shape(op, "table", table, (table.shape[0], 3), "[S + 1, 3]")
    if cfg is not None:
        checks.dtype(op, "cfg", cfg, (torch.float32, torch.float64))
        if cfg.numel() != 1:
            raise checks.fail(op, "cfg", "of one element", f"shape {list(cfg.shape)}")
    if (noise is None) == (keys is None):
        got = "neither" if noise is None else "both"
        raise checks.fail(op, "noise or keys", "given, one of the two", got)
    if noise is not None:
        checks.dtype(op, "noise", noise, (x.dtype,))
        checks.shape(op, "noise", noise, (table.shape[0], *x.shape), "[S + 1, R, ..., D]")
    if keys is not None:
        checks.dtype(op, "keys", keys, (torch.int64,))
        checks.shape(op, "keys", keys, (x.shape[0], 3), "[R, 3]")
    checks.same_device(op, "x", x, table=table, cfg=cfg, noise=noise, keys=keys)


def _check_modulation(
    x: torch.Tensor,
    modulation: torch.Tensor,
    table: torch.Tensor,
    in_weight: torch.Tensor,
    cfg: torch.Tensor | None,
    chunks: tuple[int, int],
) -> None:
    op, (each, width) = "denoise_patch", chunks
    checks.dtype(op, "modulation", modulation, (in_weight.dtype,))
    checks.rank(op, "modulation", modulation, 3, 3)
    rows = x.shape[:-1].numel() * (1 if cfg is None else 2)
    projections = (modulation.shape[-1] // width - 2) // each
    wanted = (table.shape[0], rows, (each * max(1, projections) + 2) * width)
    checks.shape(op, "modulation", modulation, wanted, f"[S + 1, M, ({each} A + 2) C]")
    checks.same_device(op, "x", x, modulation=modulation)


def _matrix_shape(name: str, weight: torch.Tensor, stacked: int) -> tuple[int, ...]:
    """Shape of the matrix of a weight, or of those of a stack."""
    if weight.dim() == 4 + stacked:
        *stack, tiles, steps, _, _ = weight.shape
        return (*stack, packed_weight.TILE * tiles, packed_weight.TILE * steps)
    checks.rank("denoise_patch", name, weight, 2 + stacked, 2 + stacked)
    return tuple(weight.shape)


def _check_weight(name: str, weight: torch.Tensor, shape: tuple[int, ...]) -> None:
    if weight.dim() == len(shape) + 2:
        tile = packed_weight.TILE
        if shape[-1] % tile != 0 or shape[-2] % tile != 0:
            got = f"{list(shape)}"
            raise checks.fail("denoise_patch", name, "a matrix of multiples of 16 if packed", got)
        shape = (*shape[:-2], shape[-2] // tile, shape[-1] // tile, 2 * tile, tile // 2)
    checks.shape("denoise_patch", name, weight, shape)


def _fake(x: torch.Tensor, *_: Any) -> tuple[torch.Tensor, torch.Tensor]:
    return x.new_empty(x.shape), x.new_empty(1, dtype=torch.int32)


_op = KernelOp(
    "denoise_patch",
    "(Tensor x, Tensor modulation, Tensor table, Tensor in_weight, Tensor in_bias, "
    "Tensor norm_weight, Tensor norm_bias, Tensor weight1, Tensor bias1, Tensor weight2, "
    "Tensor bias2, Tensor out_weight, Tensor out_bias, Tensor? attention_norm_weight, "
    "Tensor? attention_norm_bias, Tensor? attention_qkv_weight, Tensor? attention_qkv_bias, "
    "Tensor? attention_out_weight, Tensor? attention_out_bias, int num_heads, Tensor? cfg, "
    "Tensor? noise, Tensor? keys, bool squash, float eps) -> (Tensor, Tensor)",
    package=__package__,
    check=_check,
    fake=_fake,
    order={"cuda": ("cuda", "reference"), "cpu": ("reference",)},
    called_arguments={f"attention_{name}": f"attention.{name}" for name in _ATTENTION},
)
