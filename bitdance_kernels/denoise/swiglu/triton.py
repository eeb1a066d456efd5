"""swiglu in Triton: a program handles a tile of rows and of hidden channels in both halves."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from bitdance_kernels._shared import triton_support
from bitdance_kernels._shared.rows import as_rows

# Values per tile: eight a thread, so that 16-bit dtypes move 16 bytes at a time. BitDance's hidden
# widths are multiples of its channels.
_TILE = 1024
_MAX_CHANNELS = 128


@triton.jit
def _where(rows, hidden, ROWS: tl.constexpr, CHANNELS: tl.constexpr):
    """Rows [ROWS, 1], channels [1, CHANNELS] and their mask, of a program."""
    program = tl.program_id(0)
    tiles = tl.cdiv(hidden, CHANNELS)
    row = (program // tiles).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    channel = (program % tiles) * CHANNELS + tl.arange(0, CHANNELS)[None, :]
    return row, channel, (row < rows) & (channel < hidden)


@triton.jit
def _swiglu_forward_kernel(
    h_ptr, y_ptr, h_stride, rows, hidden, ROWS: tl.constexpr, CHANNELS: tl.constexpr
):
    row, channel, inside = _where(rows, hidden, ROWS, CHANNELS)
    source = row * h_stride + channel
    gate = tl.load(h_ptr + source, mask=inside, other=0.0).to(tl.float32)
    value = tl.load(h_ptr + (source + hidden), mask=inside, other=0.0).to(tl.float32)
    y = gate * tl.sigmoid(gate) * value
    tl.store(y_ptr + (row * hidden + channel), y.to(y_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _swiglu_backward_kernel(
    grad_ptr, h_ptr, grad_h_ptr, grad_stride, h_stride, rows, hidden,
    ROWS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    row, channel, inside = _where(rows, hidden, ROWS, CHANNELS)
    source = row * h_stride + channel
    gate = tl.load(h_ptr + source, mask=inside, other=0.0).to(tl.float32)
    value = tl.load(h_ptr + (source + hidden), mask=inside, other=0.0).to(tl.float32)
    grad = tl.load(grad_ptr + (row * grad_stride + channel), mask=inside, other=0.0)
    grad = grad.to(tl.float32)
    sigmoid = tl.sigmoid(gate)
    # d/dg of g sigmoid(g) is sigmoid(g) (1 + g (1 - sigmoid(g))).
    grad_gate = grad * value * sigmoid * (1 + gate * (1 - sigmoid))
    grad_value = grad * gate * sigmoid
    target = row * 2 * hidden + channel
    tl.store(grad_h_ptr + target, grad_gate.to(grad_h_ptr.dtype.element_ty), mask=inside)
    grad_value = grad_value.to(grad_h_ptr.dtype.element_ty)
    tl.store(grad_h_ptr + (target + hidden), grad_value, mask=inside)


def _launch(rows: int, hidden: int) -> tuple[tuple[int], dict[str, int]]:
    """Grid and constants of a kernel."""
    channels = min(_MAX_CHANNELS, triton.next_power_of_2(hidden))
    constants = {"ROWS": _TILE // channels, "CHANNELS": channels}
    programs = triton.cdiv(rows, constants["ROWS"]) * triton.cdiv(hidden, channels)
    return (programs,), constants


def unsupported(h: torch.Tensor) -> str | None:
    return triton_support.unsupported(h)


def run(h: torch.Tensor) -> torch.Tensor:
    y = h.new_empty((*h.shape[:-1], h.shape[-1] // 2))
    if y.numel() == 0:
        return y
    h, rows, stride = as_rows(h)
    hidden = y.shape[-1]
    grid, constants = _launch(rows, hidden)
    with triton_support.on_device(h):
        _swiglu_forward_kernel[grid](h, y, stride, rows, hidden, **constants)
    return y


def unsupported_backward(grad: torch.Tensor, h: torch.Tensor) -> str | None:
    return triton_support.unsupported(grad, h)


def run_backward(grad: torch.Tensor, h: torch.Tensor) -> torch.Tensor:
    grad_h = h.new_empty(h.shape)
    if grad.numel() == 0:
        return grad_h
    (grad, rows, grad_stride), (h, _, h_stride) = as_rows(grad), as_rows(h)
    hidden = grad.shape[-1]
    grid, constants = _launch(rows, hidden)
    with triton_support.on_device(h):
        _swiglu_backward_kernel[grid](
            grad, h, grad_h, grad_stride, h_stride, rows, hidden, **constants
        )
    return grad_h
