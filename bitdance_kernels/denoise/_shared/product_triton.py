"""Triton kernel of the head's matrix products together with what surrounds them.

One kernel with switches computes, tile by tile,

    y = epilogue(prologue(x) W^T + b)

for linear, linear_swiglu, linear_gated_residual and adaln_linear. The prologue is nothing or the
modulated LayerNorm of the rows; the epilogue nothing, the gate of a SwiGLU network (the tiles of
both halves are one program's) or the gated sum. Sums are float32 and the result is rounded once.

With many rows the programs are as many as multiprocessors, and each goes on from tile to tile; the
operands come by TMA where the card has it. With few rows there is a program for every tile, and
what counts is that all weights are on their way at once.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

from bitdance_kernels._shared import triton_support
from bitdance_kernels._shared.rows import as_rows
from bitdance_kernels.denoise._shared.product_config import FEW_ROWS, MULTIPROCESSORS, Tiles, tiles

_TMA_CAPABILITY = 90


class Norm(NamedTuple):
    """Prologue: LN(x) (1 + scale) + shift."""

    scale: torch.Tensor
    shift: torch.Tensor
    weight: torch.Tensor | None
    bias: torch.Tensor | None
    eps: float


@triton.jit
def load_tile(ptr, row, stride, column, inside):
    """[ROWS, COLUMNS], 0 outside."""
    return tl.load(ptr + (row[:, None] * stride + column[None, :]), mask=inside, other=0.0)


@triton.jit
def store_tile(ptr, row, stride, column, inside, values):
    """In the dtype of the memory."""
    offsets = row[:, None] * stride + column[None, :]
    tl.store(ptr + offsets, values.to(ptr.dtype.element_ty), mask=inside)


@triton.jit
def moments(x_ptr, row, rows, stride, channels, eps, ROWS: tl.constexpr, DEPTH: tl.constexpr):
    """Mean and 1 / sqrt(var + eps) of rows, in one pass: those of tiles, one merged to another."""
    mean = tl.zeros([ROWS], tl.float32)
    squares = tl.zeros([ROWS], tl.float32)  # about the mean
    for first in range(0, channels, DEPTH):
        channel = first + tl.arange(0, DEPTH).to(tl.int64)
        inside = (row < rows)[:, None] & (channel < channels)[None, :]
        x = load_tile(x_ptr, row, stride, channel, inside).to(tl.float32)
        before = tl.zeros([ROWS], tl.float32) + first
        count = tl.minimum(before + DEPTH, channels) - before
        tile_mean = tl.div_rn(tl.sum(x, axis=1), count)
        centred = tl.where(inside, x - tile_mean[:, None], 0.0)
        delta = tile_mean - mean
        share = tl.div_rn(count, before + count)
        mean += delta * share
        squares += tl.sum(centred * centred, axis=1) + delta * delta * before * share
    variance = tl.div_rn(squares, tl.zeros([ROWS], tl.float32) + channels)
    return mean, tl.div_rn(tl.full([ROWS], 1.0, tl.float32), tl.sqrt_rn(variance + eps))


@triton.jit
def modulated(
    x_ptr, scale_ptr, shift_ptr, weight_ptr, bias_ptr, row, x_stride, scale_stride, shift_stride,
    channel, channels, inside, mean, rstd, WEIGHT: tl.constexpr, BIAS: tl.constexpr,
):  # fmt: skip
    """A tile of LN(x) (1 + scale) + shift, float32, 0 outside."""
    n = load_tile(x_ptr, row, x_stride, channel, inside).to(tl.float32)
    n = (n - mean[:, None]) * rstd[:, None]
    if WEIGHT:
        weight = tl.load(weight_ptr + channel, mask=channel < channels, other=0.0)
        n *= weight.to(tl.float32)[None, :]
    if BIAS:
        bias = tl.load(bias_ptr + channel, mask=channel < channels, other=0.0)
        n += bias.to(tl.float32)[None, :]
    scale = load_tile(scale_ptr, row, scale_stride, channel, inside).to(tl.float32)
    shift = load_tile(shift_ptr, row, shift_stride, channel, inside).to(tl.float32)
    return tl.where(inside, n * (1 + scale) + shift, 0.0)


@triton.jit
def _weights(weight, stride, first_feature, last, feature, channel, channels, k, TMA: tl.constexpr):
    """Weights of a tile's features [FEATURES, DEPTH]; rows from `last` on are of no use."""
    if TMA:
        tile = weight.load([first_feature, k])
    else:
        inside = (feature < last)[:, None] & (channel < channels)[None, :]
        tile = load_tile(weight, feature, stride, channel, inside)
    return tile


@triton.jit
def _product_kernel(
    x, weight, bias_ptr, scale_ptr, shift_ptr, norm_weight_ptr, norm_bias_ptr, residual_ptr,
    gate_ptr, y_ptr, rows, features, channels, x_stride, weight_stride, scale_stride, shift_stride,
    residual_stride, gate_stride, eps,
    BIAS: tl.constexpr, NORM: tl.constexpr, NORM_WEIGHT: tl.constexpr, NORM_BIAS: tl.constexpr,
    SWIGLU: tl.constexpr, GATED: tl.constexpr, TMA: tl.constexpr,
    ROWS: tl.constexpr, FEATURES: tl.constexpr, DEPTH: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """`x` and `weight` are tensor descriptors with TMA (x not under a norm), pointers without."""
    row_tiles, feature_tiles = tl.cdiv(rows, ROWS), tl.cdiv(features, FEATURES)
    for tile in tl.range(
        tl.program_id(0), row_tiles * feature_tiles, tl.num_programs(0), flatten=not NORM
    ):
        # Neighbours share weights: GROUP tiles of rows take turns before the features move on.
        first_tile = tile // (GROUP * feature_tiles) * GROUP
        height = tl.minimum(row_tiles - first_tile, GROUP)
        within = tile % (GROUP * feature_tiles)
        first_row = (first_tile + within % height) * ROWS
        first_feature = within // height * FEATURES
        row = first_row.to(tl.int64) + tl.arange(0, ROWS)
        feature = first_feature.to(tl.int64) + tl.arange(0, FEATURES)
        if NORM:
            mean, rstd = moments(x, row, rows, x_stride, channels, eps, ROWS, DEPTH)
        sums = tl.zeros([ROWS, FEATURES], tl.float32)
        if SWIGLU:
            values = tl.zeros([ROWS, FEATURES], tl.float32)
        for k in range(0, channels, DEPTH):
            channel = k + tl.arange(0, DEPTH).to(tl.int64)
            inside = (row < rows)[:, None] & (channel < channels)[None, :]
            if NORM:
                left = modulated(
                    x, scale_ptr, shift_ptr, norm_weight_ptr, norm_bias_ptr, row, x_stride,
                    scale_stride, shift_stride, channel, channels, inside, mean, rstd,
                    NORM_WEIGHT, NORM_BIAS,
                ).to(x.dtype.element_ty)  # fmt: skip
            elif TMA:
                left = x.load([first_row, k])
            else:
                left = load_tile(x, row, x_stride, channel, inside)
            right = _weights(
                weight, weight_stride, first_feature, features, feature, channel, channels, k, TMA
            )
            sums = tl.dot(left, tl.trans(right), sums, input_precision="ieee")
            if SWIGLU:
                right = _weights(
                    weight, weight_stride, first_feature + features, 2 * features,
                    feature + features, channel, channels, k, TMA,
                )  # fmt: skip
                values = tl.dot(left, tl.trans(right), values, input_precision="ieee")
        if BIAS:
            bias = tl.load(bias_ptr + feature, mask=feature < features, other=0.0)
            sums += bias.to(tl.float32)[None, :]
        if SWIGLU:
            if BIAS:
                at = bias_ptr + (feature + features)
                bias = tl.load(at, mask=feature < features, other=0.0)
                values += bias.to(tl.float32)[None, :]
            sums = sums / (1 + tl.exp(-sums)) * values  # one rounding less than by the sigmoid
        inside = (row < rows)[:, None] & (feature < features)[None, :]
        if GATED:
            gate = load_tile(gate_ptr, row, gate_stride, feature, inside).to(tl.float32)
            residual = load_tile(residual_ptr, row, residual_stride, feature, inside)
            sums = residual.to(tl.float32) + gate * sums
        store_tile(y_ptr, row, features, feature, inside, sums)


def unsupported(*tensors: torch.Tensor | None) -> str | None:
    """Why the kernel cannot take these tensors; None when it can."""
    given = [tensor for tensor in tensors if tensor is not None]
    return triton_support.unsupported(*given)


def product(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    *,
    norm: Norm | None = None,
    swiglu: bool = False,
    gated: tuple[torch.Tensor, torch.Tensor] | None = None,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """The product of `x` [..., C] and `weight` [N, C], [2N, C] for `swiglu`: [..., N].

    Args:
        x: of the dtype of `weight`.
        weight: the layer's.
        bias: the layer's or None.
        norm: what x goes through first.
        swiglu: silu(h1) h2 of the result h = [h1 | h2].
        gated: (residual, gate), for residual + gate h, of the dtype of `residual`.
        out: contiguous, where the result goes; None for a new tensor.
    """
    features = weight.shape[0] // 2 if swiglu else weight.shape[0]
    like = x if gated is None else gated[0]
    y = like.new_empty((*x.shape[:-1], features)) if out is None else out
    if y.numel() == 0:
        return y
    # Of the shape alone, so that a strided view gives the bits of what it is a view of.
    aligned = x.shape[-1] * x.element_size() % 16 == 0
    (x, rows, x_stride), (weight, _, weight_stride) = _rows(x, aligned), _rows(weight, aligned)
    scale, shift, norm_weight, norm_bias, eps = norm or Norm(x, x, None, None, 0.0)
    (scale, _, scale_stride), (shift, _, shift_stride) = as_rows(scale), as_rows(shift)
    (residual, _, residual_stride), (gate, _, gate_stride) = map(as_rows, gated or (x, x))
    with triton_support.on_device(x):
        capability = triton_support.capability(x.device)
        cut = tiles(
            rows, features, weight.dtype, norm=norm is not None, swiglu=swiglu,
            gated=gated is not None, aligned=aligned, capability=capability,
        )  # fmt: skip
        programs = triton.cdiv(rows, cut.rows) * triton.cdiv(features, cut.features)
        if rows > FEW_ROWS:
            programs = min(programs, _multiprocessors(x.device))
        tma = aligned and weight.dtype.itemsize == 2 and capability >= _TMA_CAPABILITY
        tma = tma and _descriptor() is not None
        _product_kernel[(programs,)](
            _operand(x, rows, x_stride, cut.rows, cut, tma and norm is None),
            _operand(weight, weight.shape[0], weight_stride, cut.features, cut, tma),
            _vector(bias), scale, shift, _vector(norm_weight), _vector(norm_bias),
            residual, gate, y, rows, features, x.shape[-1], x_stride, weight_stride,
            scale_stride, shift_stride, residual_stride, gate_stride, eps,
            BIAS=bias is not None, NORM=norm is not None, NORM_WEIGHT=norm_weight is not None,
            NORM_BIAS=norm_bias is not None, SWIGLU=swiglu, GATED=gated is not None, TMA=tma,
            ROWS=cut.rows, FEATURES=cut.features, DEPTH=cut.depth, GROUP=cut.group,
            num_warps=cut.warps, num_stages=cut.stages,
        )  # fmt: skip
    return y


def _rows(tensor: torch.Tensor, aligned: bool) -> tuple[torch.Tensor, int, int]:
    """``as_rows``; for `aligned` of a copy unless all begin at multiples of 16 bytes, as TMA wants.

    (A view whose rows lie on top of one another is copied too.)
    """
    tensor, rows, stride = as_rows(tensor)
    whole = stride > 0 and stride * tensor.element_size() % 16 == 0 and tensor.data_ptr() % 16 == 0
    if whole or not aligned:
        return tensor, rows, stride
    return tensor.clone(memory_format=torch.contiguous_format), rows, tensor.shape[-1]


@functools.cache
def _descriptor() -> Any:
    """Triton's class of tensor descriptors made on the host; None in versions without it."""
    try:
        from triton.tools.tensor_descriptor import TensorDescriptor
    except ImportError:
        return None
    return TensorDescriptor


def _operand(
    tensor: torch.Tensor, rows: int, stride: int, height: int, cut: Tiles, tma: bool
) -> Any:
    """What the kernel reads tiles of `height` rows from."""
    if not tma:
        return tensor
    shape, block = [rows, tensor.shape[-1]], [height, cut.depth]
    return _descriptor()(tensor, shape, [stride, 1], block)


def _vector(vector: torch.Tensor | None) -> torch.Tensor | None:
    return None if vector is None else vector.contiguous()


@functools.cache
def _multiprocessors(device: torch.device) -> int:
    if device.type != "cuda":  # the interpreter uses the choice for a large card
        return MULTIPROCESSORS
    return torch.cuda.get_device_properties(device).multi_processor_count
