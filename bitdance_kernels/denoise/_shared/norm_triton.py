"""Triton kernels of adaln_norm and gated_residual: one forward, one backward, both row by row.

A program holds whole rows in registers, so each tensor is read once and the statistics take two
passes (mean, then variance about it) over what is there already. Everything is computed in float32.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from bitdance_kernels._shared import triton_support
from bitdance_kernels._shared.rows import as_rows

MAX_CHANNELS = 8192
# Elements per block of rows, and programs that share the row sums of a backward pass.
_BLOCK, _PROGRAMS = 1024, 512


@triton.jit
def _load(ptr, row, stride, channel, inside):
    values = tl.load(ptr + (row[:, None] * stride + channel[None, :]), mask=inside, other=0.0)
    return values.to(tl.float32)


@triton.jit
def _store(ptr, row, channels, channel, inside, values):
    offsets = row[:, None] * channels + channel[None, :]
    tl.store(ptr + offsets, values.to(ptr.dtype.element_ty), mask=inside)


@triton.jit
def _unit(x, inside, channels, eps):
    """(x - mean) / sqrt(var + eps), 0 outside, and 1 / sqrt(var + eps)."""
    mean = tl.div_rn(tl.sum(x, axis=1), channels.to(tl.float32))
    centred = tl.where(inside, x - mean[:, None], 0.0)
    variance = tl.div_rn(tl.sum(centred * centred, axis=1), channels.to(tl.float32))
    root = tl.sqrt_rn(variance + eps)
    rstd = tl.div_rn(tl.full(root.shape, 1.0, tl.float32), root)
    return centred * rstd[:, None], rstd


@triton.jit
def _norm_forward_kernel(
    x_ptr, h_ptr, gate_ptr, scale_ptr, shift_ptr, weight_ptr, bias_ptr, total_ptr, normed_ptr,
    rows, channels, x_stride, h_stride, gate_stride, scale_stride, shift_stride, eps,
    GATED: tl.constexpr, NORM: tl.constexpr, WEIGHT: tl.constexpr, BIAS: tl.constexpr,
    ROWS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    channel = tl.arange(0, WIDTH).to(tl.int64)
    inside = (row < rows)[:, None] & (channel < channels)[None, :]  # [ROWS, WIDTH]
    x = _load(x_ptr, row, x_stride, channel, inside)
    if GATED:
        h = _load(h_ptr, row, h_stride, channel, inside)
        x += _load(gate_ptr, row, gate_stride, channel, inside) * h
        _store(total_ptr, row, channels, channel, inside, x)
        x = x.to(total_ptr.dtype.element_ty).to(tl.float32)  # the norm sees the sum as stored
    if NORM:
        n, _ = _unit(x, inside, channels, eps)
        if WEIGHT:
            weight = tl.load(weight_ptr + channel, mask=channel < channels, other=0.0)
            n *= weight.to(tl.float32)[None, :]
        if BIAS:
            bias = tl.load(bias_ptr + channel, mask=channel < channels, other=0.0)
            n += bias.to(tl.float32)[None, :]
        scale = _load(scale_ptr, row, scale_stride, channel, inside)
        shift = _load(shift_ptr, row, shift_stride, channel, inside)
        _store(normed_ptr, row, channels, channel, inside, n * (1 + scale) + shift)


@triton.jit
def _norm_backward_kernel(
    grad_total_ptr, grad_ptr, x_ptr, h_ptr, gate_ptr, scale_ptr, weight_ptr, bias_ptr,
    grad_x_ptr, grad_h_ptr, grad_gate_ptr, grad_scale_ptr, grad_shift_ptr, grad_weight_ptr,
    grad_bias_ptr,
    rows, channels, repeats, grad_total_stride, grad_stride, x_stride, h_stride, gate_stride,
    scale_stride, eps,
    GATED: tl.constexpr, NORM: tl.constexpr, WEIGHT: tl.constexpr, BIAS: tl.constexpr,
    ROWS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0).to(tl.int64)
    channel = tl.arange(0, WIDTH).to(tl.int64)
    within = channel < channels
    if WEIGHT:
        weight = tl.load(weight_ptr + channel, mask=within, other=0.0).to(tl.float32)
        weight_sum = tl.zeros((WIDTH,), tl.float32)
    if BIAS:
        bias = tl.load(bias_ptr + channel, mask=within, other=0.0).to(tl.float32)
        bias_sum = tl.zeros((WIDTH,), tl.float32)
    for i in range(repeats):
        row = (program * repeats + i) * ROWS + tl.arange(0, ROWS)
        inside = (row < rows)[:, None] & within[None, :]
        if GATED:
            grad_x = _load(grad_total_ptr, row, grad_total_stride, channel, inside)
        else:
            grad_x = tl.zeros((ROWS, WIDTH), tl.float32)
        if NORM:
            grad = _load(grad_ptr, row, grad_stride, channel, inside)
            _store(grad_shift_ptr, row, channels, channel, inside, grad)
            unit, rstd = _unit(_load(x_ptr, row, x_stride, channel, inside), inside, channels, eps)
            n = unit
            if WEIGHT:
                n *= weight[None, :]
            if BIAS:
                n += bias[None, :]
            _store(grad_scale_ptr, row, channels, channel, inside, grad * n)
            grad_unit = grad * (1 + _load(scale_ptr, row, scale_stride, channel, inside))
            if BIAS:
                bias_sum += tl.sum(grad_unit, axis=0)
            if WEIGHT:
                weight_sum += tl.sum(grad_unit * unit, axis=0)
                grad_unit *= weight[None, :]
            # The statistics depend on x too: remove the components along 1 and along unit.
            along_one = tl.sum(grad_unit, axis=1) / channels
            along_unit = tl.sum(grad_unit * unit, axis=1) / channels
            grad_x += rstd[:, None] * (grad_unit - along_one[:, None] - unit * along_unit[:, None])
        _store(grad_x_ptr, row, channels, channel, inside, grad_x)
        if GATED:
            gate = _load(gate_ptr, row, gate_stride, channel, inside)
            _store(grad_h_ptr, row, channels, channel, inside, grad_x * gate)
            h = _load(h_ptr, row, h_stride, channel, inside)
            _store(grad_gate_ptr, row, channels, channel, inside, grad_x * h)
    if WEIGHT:
        tl.store(grad_weight_ptr + (program * channels + channel), weight_sum, mask=within)
    if BIAS:
        tl.store(grad_bias_ptr + (program * channels + channel), bias_sum, mask=within)


class _Launch(NamedTuple):
    """Rows and warps of a program for rows of one width."""

    rows: int
    width: int
    warps: int

    @classmethod
    def of(cls, rows: int, channels: int) -> _Launch:
        width = triton.next_power_of_2(channels)
        # Few rows are spread over as many multiprocessors as there are rows.
        block = 1 if rows <= 256 else max(1, _BLOCK // width)
        # Offsets of several rows need registers too.
        per_warp = 512 if block == 1 else 256
        return cls(block, width, min(16, max(1, block * width // per_warp)))


def unsupported(*tensors: torch.Tensor | None) -> str | None:
    """Why the kernels cannot take these tensors, of which the first has rows of C channels."""
    given = [tensor for tensor in tensors if tensor is not None]
    reason = triton_support.unsupported(*given)
    if reason is None and given[0].shape[-1] > MAX_CHANNELS:
        reason = f"it takes at most {MAX_CHANNELS} channels, got {given[0].shape[-1]}"
    return reason


def forward(
    x: torch.Tensor,
    gated: tuple[torch.Tensor, torch.Tensor] | None,
    modulation: tuple[torch.Tensor, torch.Tensor] | None,
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    eps: float = 0.0,
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """The sum x + gate h if `gated` is (h, gate); its norm if `modulation` is (scale, shift)."""
    total = None if gated is None else x.new_empty(x.shape)
    normed = None if modulation is None else x.new_empty(x.shape)
    channels = x.shape[-1]
    x, rows, x_stride = as_rows(x)
    if rows == 0 or channels == 0:
        return total, normed
    (h, _, h_stride), (gate, _, gate_stride) = map(as_rows, gated or (x, x))
    (scale, _, scale_stride), (shift, _, shift_stride) = map(as_rows, modulation or (x, x))
    launch = _Launch.of(rows, channels)
    with triton_support.on_device(x):
        _norm_forward_kernel[(triton.cdiv(rows, launch.rows),)](
            x, h, gate, scale, shift, _vector(weight, x), _vector(bias, x),
            x if total is None else total, x if normed is None else normed, rows, channels,
            x_stride, h_stride, gate_stride, scale_stride, shift_stride, eps,
            GATED=gated is not None, NORM=modulation is not None, WEIGHT=weight is not None,
            BIAS=bias is not None, ROWS=launch.rows, WIDTH=launch.width, num_warps=launch.warps,
        )  # fmt: skip
    return total, normed


def backward(
    grad_total: torch.Tensor | None,
    grad_normed: torch.Tensor | None,
    x: torch.Tensor,
    gated: tuple[torch.Tensor, torch.Tensor] | None,
    modulation: tuple[torch.Tensor, torch.Tensor] | None,
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    eps: float = 0.0,
) -> tuple[torch.Tensor, ...]:
    """Gradients of x, (h, gate) and (scale, shift, weight, bias), as far as these are given.

    The norm is of `x`, which is the sum where there is a gate. Gradients of a `weight` or `bias`
    that is None are empty.
    """
    grad_x = x.new_empty(x.shape)
    grad_gated = tuple(t.new_empty(t.shape) for t in gated or ())
    grad_modulation = tuple(t.new_empty(t.shape) for t in modulation or ())
    channels = x.shape[-1]
    x, rows, x_stride = as_rows(x)
    launch = _Launch.of(rows, channels or 1)
    blocks = triton.cdiv(rows, launch.rows)
    affine = weight is not None or bias is not None
    repeats = triton.cdiv(blocks, _PROGRAMS) if affine else 1
    programs = triton.cdiv(blocks, max(repeats, 1))
    sums = [
        x.new_empty((programs if given is not None else 0, channels), dtype=torch.float32)
        for given in (weight, bias)
    ]
    if rows and channels:
        (h, _, h_stride), (gate, _, gate_stride) = map(as_rows, gated or (x, x))
        scale, _, scale_stride = as_rows(modulation[0] if modulation else x)
        total_grad, _, total_stride = as_rows(x if grad_total is None else grad_total)
        norm_grad, _, norm_stride = as_rows(x if grad_normed is None else grad_normed)
        grad_h, grad_gate = grad_gated or (x, x)
        grad_scale, grad_shift = grad_modulation or (x, x)
        with triton_support.on_device(x):
            _norm_backward_kernel[(programs,)](
                total_grad, norm_grad, x, h, gate, scale, _vector(weight, x), _vector(bias, x),
                grad_x, grad_h, grad_gate, grad_scale, grad_shift, *sums, rows, channels, repeats,
                total_stride, norm_stride, x_stride, h_stride, gate_stride, scale_stride, eps,
                GATED=gated is not None, NORM=modulation is not None, WEIGHT=weight is not None,
                BIAS=bias is not None, ROWS=launch.rows, WIDTH=launch.width,
                num_warps=launch.warps,
            )  # fmt: skip
    grad_affine = (
        x.new_empty(0, dtype=torch.float32) if given is None else grad_t.sum(0).to(given.dtype)
        for given, grad_t in zip((weight, bias), sums, strict=True)
    )
    return grad_x, *grad_gated, *grad_modulation, *(grad_affine if modulation else ())


def _vector(vector: torch.Tensor | None, instead: torch.Tensor) -> torch.Tensor:
    return instead if vector is None else vector.contiguous()
