"""Products with float32 panels in C++ and what is fused with them; see csrc/cpu/common/panels.h."""

from __future__ import annotations

import torch

from bitdance_kernels._shared import native, packed_weight
from bitdance_kernels.denoise._shared import rows_cpu


def unsupported(
    weight: torch.Tensor, *functions: str, tensors: tuple[torch.Tensor | None, ...]
) -> str | None:
    """The reason why C++ cannot multiply by this weight; None if it can.

    Args:
        weight: the weight.
        *functions: functions of the compiled module that the op calls.
        tensors: the op's other tensors [..., C], which are float32 too.
    """
    given = [tensor for tensor in tensors if tensor is not None]
    for function in functions:
        reason = rows_cpu.float32_unsupported(function, *given)
        if reason is not None:
            return reason
    if not packed_weight.is_panels(weight) or weight.dtype != torch.float32:
        return "it takes a weight in panels of float32"
    return None


def swiglu_unsupported(weight: torch.Tensor) -> str | None:
    """The same, of a weight whose halves are panels."""
    if packed_weight.is_panels(weight) and weight.shape[0] % 2 != 0:
        return f"it takes halves of whole panels, got {packed_weight.features(weight)} features"
    return None


def adaln_norm(
    x: torch.Tensor,
    scale: torch.Tensor,
    shift: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    eps: float,
) -> torch.Tensor:
    """The modulated norm of rows."""
    vectors = rows_cpu.vector(weight), rows_cpu.vector(bias)
    y, threads = x.new_empty(x.shape), torch.get_num_threads()
    rows = rows_cpu.readable(x, scale, shift)
    native.cpu.adaln_norm(*rows, *vectors, y, *rows_cpu.size(x), eps, threads)
    return y


def rms_norm(x: torch.Tensor, weight: torch.Tensor | None, eps: float) -> torch.Tensor:
    """The norm of rows by their mean square."""
    y, threads = x.new_empty(x.shape), torch.get_num_threads()
    rows, vector = rows_cpu.spaced(x), rows_cpu.vector(weight)
    native.cpu.rms_norm(*rows, vector, y, *rows_cpu.size(x), eps, threads)
    return y


def product(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """The product x W^T + b."""
    features = packed_weight.features(weight)
    y = x.new_empty((*x.shape[:-1], features))
    native.cpu.linear_panels(*_arguments(x, weight, bias), y, *_sizes(x, features))
    return y


def swiglu(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """The gate silu(h1) h2 with [h1 | h2] = x W^T + b."""
    features = packed_weight.features(weight) // 2
    y = x.new_empty((*x.shape[:-1], features))
    native.cpu.linear_swiglu(*_arguments(x, weight, bias), y, *_sizes(x, features))
    return y


def gated_residual(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    residual: torch.Tensor,
    gate: torch.Tensor | None,
) -> torch.Tensor:
    """The stream residual + gate (x W^T + b)."""
    features, y = packed_weight.features(weight), residual.new_empty(residual.shape)
    gates = (None,) if gate is None else rows_cpu.spaced(gate)
    native.cpu.linear_gated_residual(
        *_arguments(x, weight, bias), residual.contiguous(), *gates, y, *_sizes(x, features)
    )
    return y


def _arguments(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
) -> tuple[torch.Tensor | None, ...]:
    bias = None if bias is None else bias.contiguous()
    return *rows_cpu.spaced(x), weight.contiguous(), bias


def _sizes(x: torch.Tensor, features: int) -> tuple[int, ...]:
    """Rows, channels, features, threads."""
    return *rows_cpu.size(x), features, torch.get_num_threads()
