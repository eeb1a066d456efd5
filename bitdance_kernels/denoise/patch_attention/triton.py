"""patch_attention in Triton: a program holds the whole score tile of one head in registers.

Tensor cores want tiles of 16 rows or more. Patches of fewer tokens lie behind each other in memory,
so one tile takes several of them and keeps the blocks on the diagonal of its scores. Nothing is
transposed or copied: q, k and v are read where the projection left them, and every element of the
input and the output moves once.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from bitdance_kernels._shared import triton_support
from bitdance_kernels._shared.rows import as_rows

_MAX_HEAD_DIM = 128
# Values per tile: float32 products run on the ordinary cores and need more registers.
_MAX_FLOAT32 = 2048
_LOG2_E = 1.4426950408889634


@triton.jit
def _where(group_tokens, total, heads, HEAD_DIM: tl.constexpr, TILE: tl.constexpr,
           WIDTH: tl.constexpr):  # fmt: skip
    """Tokens [TILE], channels of the head in a third [WIDTH] and their mask, of a program."""
    program = tl.program_id(0)
    i = tl.arange(0, TILE)
    d = tl.arange(0, WIDTH)
    token = (program // heads).to(tl.int64) * group_tokens + i
    inside = ((i < group_tokens) & (token < total))[:, None] & (d < HEAD_DIM)[None, :]
    return token, (program % heads) * HEAD_DIM + d, inside


@triton.jit
def _load(ptr, token, stride, channel, inside):
    return tl.load(ptr + (token[:, None] * stride + channel[None, :]), mask=inside, other=0.0)


@triton.jit
def _store(ptr, token, stride, channel, inside, value):
    value = value.to(ptr.dtype.element_ty)
    tl.store(ptr + (token[:, None] * stride + channel[None, :]), value, mask=inside)


@triton.jit
def _same_patch(PATCH: tl.constexpr, TILE: tl.constexpr):
    """[TILE, TILE]. Padding is a patch of zeros of its own, so that no row is empty."""
    patch = tl.arange(0, TILE) // PATCH
    return patch[:, None] == patch[None, :]


@triton.jit
def _exponentials(q, k, scale, PATCH: tl.constexpr, TILE: tl.constexpr):
    """2^(scale q k^T - maximum of the row), float32 [TILE, TILE]; 0 between patches."""
    scores = tl.dot(q, tl.trans(k), input_precision="ieee") * scale
    if PATCH < TILE:
        scores = tl.where(_same_patch(PATCH, TILE), scores, float("-inf"))
    return tl.exp2(scores - tl.max(scores, axis=1)[:, None])


@triton.jit
def _patch_attention_forward_kernel(
    qkv_ptr, out_ptr, stride, channels, total, heads, scale,
    PATCH: tl.constexpr, GROUP: tl.constexpr, HEAD_DIM: tl.constexpr, TILE: tl.constexpr,
    WIDTH: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    token, channel, inside = _where(GROUP * PATCH, total, heads, HEAD_DIM, TILE, WIDTH)
    if OVERLAP:
        gdc_launch_dependents()
        gdc_wait()
    q = _load(qkv_ptr, token, stride, channel, inside)
    k = _load(qkv_ptr, token, stride, channels + channel, inside)
    v = _load(qkv_ptr, token, stride, 2 * channels + channel, inside)
    # The product takes the weights in the dtype of v; summed in that dtype, they add up to one.
    weights = _exponentials(q, k, scale, PATCH, TILE).to(v.dtype)
    total_weight = tl.sum(weights.to(tl.float32), axis=1)[:, None]
    if GROUP > 1:
        # A weight of 0 does not remove NaN and infinity, which must not reach other patches.
        finite = v - v == 0
        out = tl.dot(weights, tl.where(finite, v, 0.0), input_precision="ieee") / total_weight
        same = _same_patch(PATCH, TILE).to(v.dtype)
        broken = tl.dot(same, tl.where(finite, 0.0, 1.0).to(v.dtype), input_precision="ieee")
        out = tl.where(broken > 0, float("nan"), out)
    else:
        out = tl.dot(weights, v, input_precision="ieee") / total_weight
    _store(out_ptr, token, channels, channel, inside, out)


@triton.jit
def _patch_attention_backward_kernel(
    grad_ptr, qkv_ptr, grad_qkv_ptr, grad_stride, stride, channels, total, heads, scale, factor,
    PATCH: tl.constexpr, GROUP: tl.constexpr, HEAD_DIM: tl.constexpr, TILE: tl.constexpr,
    WIDTH: tl.constexpr,
):  # fmt: skip
    token, channel, inside = _where(GROUP * PATCH, total, heads, HEAD_DIM, TILE, WIDTH)
    q = _load(qkv_ptr, token, stride, channel, inside)
    k = _load(qkv_ptr, token, stride, channels + channel, inside)
    p = _exponentials(q, k, scale, PATCH, TILE)
    p = p / tl.sum(p, axis=1)[:, None]
    grad = _load(grad_ptr, token, grad_stride, channel, inside).to(q.dtype)
    grad_v = tl.dot(tl.trans(p.to(q.dtype)), grad, input_precision="ieee")
    _store(grad_qkv_ptr, token, 3 * channels, 2 * channels + channel, inside, grad_v)
    v = _load(qkv_ptr, token, stride, 2 * channels + channel, inside)
    grad_p = tl.dot(grad, tl.trans(v), input_precision="ieee")
    # Softmax: subtract from each row's gradient its mean under p.
    grad_scores = (p * (grad_p - tl.sum(grad_p * p, axis=1)[:, None])).to(q.dtype)
    grad_q = tl.dot(grad_scores, k, input_precision="ieee") * factor
    _store(grad_qkv_ptr, token, 3 * channels, channel, inside, grad_q)
    grad_k = tl.dot(tl.trans(grad_scores), q, input_precision="ieee") * factor
    _store(grad_qkv_ptr, token, 3 * channels, channels + channel, inside, grad_k)


def _unsupported(num_heads: int, qkv: torch.Tensor, *others: torch.Tensor) -> str | None:
    head_dim = qkv.shape[2] // (3 * num_heads)
    if head_dim > _MAX_HEAD_DIM:
        return f"it handles heads of at most {_MAX_HEAD_DIM} channels, got {head_dim}"
    tile, width = _tile(qkv.shape[1], head_dim)
    if qkv.dtype == torch.float32 and tile * width > _MAX_FLOAT32:
        return f"float32 tiles of {tile} tokens and {width} channels overflow the registers"
    tensors = (qkv, *others)
    return triton_support.unsupported(*tensors)


def _tile(patch: int, head_dim: int) -> tuple[int, int]:
    """Tokens and channels of a tile: powers of two that tensor cores take."""
    return max(16, triton.next_power_of_2(patch)), max(16, triton.next_power_of_2(head_dim))


def _launch(qkv: torch.Tensor, num_heads: int, warp_bytes: int) -> tuple[int, dict[str, int]]:
    """Number of programs, and constants of a kernel with one warp per `warp_bytes` of a tile."""
    rows, patch, width = qkv.shape
    head_dim = width // (3 * num_heads)
    tile, channels = _tile(patch, head_dim)
    group = tile // patch
    warps = tile * max(tile, channels) * qkv.element_size() // warp_bytes
    constants = {
        "PATCH": patch,
        "GROUP": group,
        "HEAD_DIM": head_dim,
        "TILE": tile,
        "WIDTH": channels,
        "num_warps": min(8, max(1, warps)),
    }
    return triton.cdiv(rows, group) * num_heads, constants


def unsupported(qkv: torch.Tensor, num_heads: int) -> str | None:
    return _unsupported(num_heads, qkv)


def run(qkv: torch.Tensor, num_heads: int) -> torch.Tensor:
    rows, patch, width = qkv.shape
    channels = width // 3
    out = qkv.new_empty(rows, patch, channels)
    if out.numel() == 0:
        return out
    programs, constants = _launch(qkv, num_heads, 2048)
    qkv, total, stride = as_rows(qkv)
    scale = (channels // num_heads) ** -0.5 * _LOG2_E
    with triton_support.on_device(qkv):
        _patch_attention_forward_kernel[(programs,)](
            qkv, out, stride, channels, total, num_heads, scale, **constants,
            **triton_support.overlapping(out.device),
        )  # fmt: skip
    return out


def unsupported_backward(grad: torch.Tensor, qkv: torch.Tensor, num_heads: int) -> str | None:
    return _unsupported(num_heads, qkv, grad)


def run_backward(grad: torch.Tensor, qkv: torch.Tensor, num_heads: int) -> torch.Tensor:
    grad_qkv = qkv.new_empty(qkv.shape)
    if grad_qkv.numel() == 0:
        return grad_qkv
    programs, constants = _launch(qkv, num_heads, 1024)
    (qkv, total, stride), (grad, _, grad_stride) = as_rows(qkv), as_rows(grad)
    channels = qkv.shape[2] // 3
    factor = (channels // num_heads) ** -0.5
    with triton_support.on_device(qkv):
        _patch_attention_backward_kernel[(programs,)](
            grad, qkv, grad_qkv, grad_stride, stride, channels, total, num_heads,
            factor * _LOG2_E, factor, **constants,
        )  # fmt: skip
    return grad_qkv
