"""rope in C++: csrc/cpu/rope."""

from __future__ import annotations

import torch

from bitdance_kernels._shared import native
from bitdance_kernels.attention._shared.heads import unit_channels

_MAX_CHANNELS = 1024  # kMaxHeadChannels of csrc/cpu/common/rotation.h

fills_results = fills_results_backward = True


def unsupported(x: torch.Tensor, freqs: torch.Tensor, interleaved: bool) -> str | None:
    reason = native.cpu_unsupported("rope", x, freqs) or native.dtype_unsupported(x.dtype)
    if reason is not None:
        return reason
    if freqs.dtype == torch.float64:
        return "it does not compute in float64"
    if x.shape[3] > _MAX_CHANNELS:
        return f"it takes heads of at most {_MAX_CHANNELS} channels, got D = {x.shape[3]}"
    return None


def run(x: torch.Tensor, freqs: torch.Tensor, interleaved: bool) -> torch.Tensor:
    return _turn(x, freqs, interleaved, back=False)


native_functions_backward = ("rope",)


def unsupported_backward(grad: torch.Tensor, freqs: torch.Tensor, interleaved: bool) -> str | None:
    return unsupported(grad, freqs, interleaved)


def run_backward(grad: torch.Tensor, freqs: torch.Tensor, interleaved: bool) -> torch.Tensor:
    return _turn(grad, freqs, interleaved, back=True)


def _turn(x: torch.Tensor, freqs: torch.Tensor, interleaved: bool, back: bool) -> torch.Tensor:
    y = x.new_empty(x.shape)
    x = unit_channels(x)
    native.cpu.rope(
        x,
        freqs.to(torch.float32).contiguous(),
        y,
        *x.shape,
        *x.stride()[:3],
        int(interleaved),
        int(back),
        native.DTYPE_CODES[x.dtype],
        torch.get_num_threads(),
    )
    return y
