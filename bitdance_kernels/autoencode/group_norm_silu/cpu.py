"""group_norm_silu in C++: csrc/cpu/group_norm_silu."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from bitdance_kernels._shared import native
from bitdance_kernels.autoencode.group_norm_silu.reference import memory_format

_MAX_CHANNELS = 4096  # kNormMaxChannels of csrc/cpu/group_norm_silu
# Values of a channels-last map per chunk, since a chunk has a fixed cost per channel; and maximum
# of positions per chunk, for moments and for gradients, whose float32 sums lose digits beyond.
_CHUNK, _MAX_POSITIONS, _MAX_GRADIENT_POSITIONS = 32768, 256, 16
_HALF_CHUNK = 8192  # kNormHalves of csrc/cpu/group_norm_silu
_SMALL_SPREADS, _SMALL_CHANNELS = 512, 1024  # kNormSmall* of csrc/cpu/group_norm_silu

fills_results = True


class _Map(NamedTuple):
    """A feature map as the C functions take it, and the size of their workspace."""

    x: torch.Tensor
    sizes: tuple[int, int, int, int, int, int]  # images, channels, positions, groups, last, chunk
    chunks: int

    @classmethod
    def of(cls, x: torch.Tensor, num_groups: int, max_positions: int, halves: bool) -> _Map:
        images, channels, height, width = x.shape
        layout = memory_format(x)
        last = layout == torch.channels_last
        chunk = max(1, min(max_positions, (_HALF_CHUNK if halves else _CHUNK) // channels))
        positions = height * width
        sizes = (images, channels, positions, num_groups, int(last), chunk)
        chunks = -(-positions // chunk) if last else 1
        return cls(x.contiguous(memory_format=layout), sizes, chunks)

    def small_workspace(self) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """The workspace, or None twice where the C function needs none."""
        images, channels, _, groups, *_ = self.sizes
        if images * self.chunks * groups <= _SMALL_SPREADS and images * channels <= _SMALL_CHANNELS:
            return None, None
        return self.workspace()

    def workspace(self) -> tuple[torch.Tensor, torch.Tensor]:
        images, channels, _, groups, *_ = self.sizes
        spreads = self.x.new_empty(images, self.chunks, groups, 3, dtype=torch.float64)
        return spreads, self.x.new_empty(images, 5, channels, dtype=torch.float32)


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
    reason = native.cpu_unsupported("group_norm_silu", *given)
    if reason is not None:
        return reason
    for tensor in given:
        if tensor.dtype not in native.DTYPE_CODES:
            return f"it does not handle {tensor.dtype}"
    if memory_format(x) == torch.channels_last and x.shape[1] > _MAX_CHANNELS:
        return f"it takes at most {_MAX_CHANNELS} channels-last channels, got {x.shape[1]}"
    return None


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
    feature_map = _Map.of(x, num_groups, _MAX_POSITIONS, x.dtype != torch.float32)
    y = torch.empty_like(x, memory_format=memory_format(x))
    spreads, coefficients = feature_map.small_workspace()
    native.cpu.group_norm_silu(
        feature_map.x,
        y,
        *feature_map.sizes,
        *_vectors(weight, bias, scale, shift),
        int(silu),
        eps,
        spreads,
        coefficients,
        native.DTYPE_CODES[x.dtype],
        torch.get_num_threads(),
    )
    return y


# The gradient has the limits of the forward pass.
native_functions_backward = ("group_norm_silu_backward", "group_norm_silu")


def unsupported_backward(grad: torch.Tensor, *inputs: Any) -> str | None:
    reason = native.cpu_unsupported("group_norm_silu_backward", grad)
    if reason is not None:
        return reason
    if grad.dtype not in native.DTYPE_CODES:
        return f"it does not handle {grad.dtype}"
    return unsupported(*inputs)


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
    halves = (grad.dtype, x.dtype) != (torch.float32, torch.float32)
    feature_map = _Map.of(x, num_groups, _MAX_GRADIENT_POSITIONS, halves)
    grad = grad.contiguous(memory_format=memory_format(x))
    grad_x = torch.empty_like(x, memory_format=memory_format(x))
    images, channels = x.shape[:2]
    given = (weight, bias, scale, shift)
    grad_given = [
        None if t is None else x.new_zeros(images, channels, dtype=torch.float32) for t in given
    ]
    spreads, coefficients = feature_map.workspace()
    sums = x.new_empty(images, 2, channels, dtype=torch.float64)
    chunk_sums = x.new_empty(images, feature_map.chunks, 2, channels, dtype=torch.float32)
    native.cpu.group_norm_silu_backward(
        grad,
        feature_map.x,
        grad_x,
        *feature_map.sizes,
        *_vectors(*given),
        *grad_given,
        int(silu),
        eps,
        spreads,
        sums,
        coefficients,
        chunk_sums,
        native.DTYPE_CODES[grad.dtype],
        native.DTYPE_CODES[x.dtype],
        torch.get_num_threads(),
    )
    affine, adaptive = grad_given[:2], grad_given[2:]
    found = (*(None if t is None else t.sum(0) for t in affine), *adaptive)
    # The gradient of None is an empty tensor: the schema has no optional results.
    others = (
        x.new_empty(0) if t is None or grad_t is None else grad_t.to(t.dtype)
        for t, grad_t in zip(given, found, strict=True)
    )
    return grad_x, *others


def _vectors(*tensors: torch.Tensor | None) -> list[torch.Tensor | None]:
    """The tensors as the C functions take them: contiguous, in float32."""
    return [None if t is None else t.to(torch.float32).contiguous() for t in tensors]
