"""group_norm_silu in CUDA C++: csrc/cuda/group_norm_silu."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from bitdance_kernels._shared import native
from bitdance_kernels.autoencode.group_norm_silu.reference import memory_format

# Chunks of all images that fill any card, and minimum of positions per chunk.
_CHUNKS, _MIN_POSITIONS = 1056, 64


class _Map(NamedTuple):
    """A feature map as the C functions take it."""

    x: torch.Tensor
    sizes: tuple[int, int, int, int, int]  # images, channels, positions, groups, chunk
    chunks: int

    @classmethod
    def of(cls, x: torch.Tensor, num_groups: int) -> _Map:
        images, channels, height, width = x.shape
        positions = height * width
        chunk = max(_MIN_POSITIONS, -(-positions * images // _CHUNKS))
        x = x.contiguous(memory_format=torch.channels_last)
        return cls(x, (images, channels, positions, num_groups, chunk), -(-positions // chunk))

    def pairs(self) -> torch.Tensor:
        """Workspace for two numbers per chunk and channel."""
        images, channels, *_ = self.sizes
        return self.x.new_empty((images, self.chunks, channels, 2), dtype=torch.float32)

    def coefficients(self) -> torch.Tensor:
        images, channels, *_ = self.sizes
        return self.x.new_empty((images, 5, channels), dtype=torch.float32)


def unsupported(
    x: torch.Tensor,
    num_groups: int,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    scale: torch.Tensor | None,
    shift: torch.Tensor | None,
    *_: object,
) -> str | None:
    given = [t for t in (x, weight, bias, scale, shift) if t is not None]
    reason = native.cuda_unsupported("group_norm_silu", *given) or native.dtype_unsupported(
        *(t.dtype for t in given)
    )
    if reason is None and memory_format(x) != torch.channels_last:
        return "it takes channels-last maps"
    return reason


def run(
    x: torch.Tensor,
    num_groups: int,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    scale: torch.Tensor | None,
    shift: torch.Tensor | None,
    silu: bool,
    eps: float,
) -> torch.Tensor:
    y = torch.empty_like(x, memory_format=torch.channels_last)
    feature_map = _Map.of(x, num_groups)
    moments, coefficients = feature_map.pairs(), feature_map.coefficients()
    rows = _rows(weight, bias, scale, shift)
    native.cuda.group_norm_silu(
        feature_map.x,
        y,
        *feature_map.sizes,
        *rows,
        int(silu),
        eps,
        moments,
        coefficients,
        native.DTYPE_CODES[x.dtype],
        *native.stream(x.device),
    )
    return y


# The gradient has the limits of the forward pass.
native_functions_backward = ("group_norm_silu_backward", "group_norm_silu")


def unsupported_backward(grad: torch.Tensor, x: torch.Tensor, *inputs: Any) -> str | None:
    reason = native.cuda_unsupported("group_norm_silu_backward", grad)
    if reason is not None:
        return reason
    if grad.dtype != x.dtype:
        return f"it takes a gradient of the dtype of x, got {grad.dtype} for {x.dtype}"
    return unsupported(x, *inputs)


def run_backward(
    grad: torch.Tensor,
    x: torch.Tensor,
    num_groups: int,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    scale: torch.Tensor | None,
    shift: torch.Tensor | None,
    silu: bool,
    eps: float,
) -> tuple[torch.Tensor, ...]:
    grad_x = torch.empty_like(x, memory_format=torch.channels_last)
    grad = grad.contiguous(memory_format=torch.channels_last)
    feature_map = _Map.of(x, num_groups)
    moments, sums, coefficients = (
        feature_map.pairs(),
        feature_map.pairs(),
        feature_map.coefficients(),
    )
    given = (weight, bias, scale, shift)
    # Zeros, since maps without positions write nothing.
    grad_given = [x.new_zeros(0 if t is None else x.shape[:2], dtype=torch.float32) for t in given]
    rows = _rows(*given)
    native.cuda.group_norm_silu_backward(
        grad,
        feature_map.x,
        grad_x,
        *feature_map.sizes,
        *rows,
        *(None if t is None else grad for t, grad in zip(given, grad_given, strict=True)),
        int(silu),
        eps,
        moments,
        sums,
        coefficients,
        native.DTYPE_CODES[x.dtype],
        *native.stream(x.device),
    )
    gradients = (
        grad if t is None else (grad.sum(0) if t.dim() == 1 else grad).to(t.dtype)
        for t, grad in zip(given, grad_given, strict=True)
    )
    return grad_x, *gradients


def _rows(*tensors: torch.Tensor | None) -> list[torch.Tensor | None]:
    """The tensors, with copies of those whose rows have gaps."""
    return [t if t is None or t.stride(-1) == 1 else t.contiguous() for t in tensors]
