"""group_norm_silu in Triton, for channels-last and contiguous maps.

A program takes a chunk of an image's positions and a block of whole groups of channels, so that all
multiprocessors work on one large map too. What a map needs as a whole is found in launches, without
atomics: a launch writes what each chunk has, and every program of the next one puts the chunks
together for its own groups, in their order. Forward: moments, apply. Backward: moments, sums,
gradients of what is given per channel, apply.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

from bitdance_kernels._shared import triton_support
from bitdance_kernels.autoencode.group_norm_silu.reference import memory_format

# Values per tile, minimum of channels per block where there are as many, maximum per group.
_TILE, _CHANNELS, _MAX_WIDTH = 2048, 64, 2048
# Chunks of an image that one program can combine, and programs that fill any card.
_MAX_CHUNKS, _PROGRAMS = 128, 2048


@triton.jit
def _program(
    positions, chunks, tiles, CHANNELS: tl.constexpr, GROUPS: tl.constexpr, WIDTH: tl.constexpr,
    BLOCK: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Image, chunk, first group, first and last position, channels and their mask of a program."""
    blocks: tl.constexpr = (CHANNELS // WIDTH + GROUPS - 1) // GROUPS
    program = tl.program_id(0).to(tl.int64)
    chunk = program % chunks
    group = program // chunks % blocks * GROUPS
    image = program // chunks // blocks
    channel = group * WIDTH + tl.arange(0, BLOCK)
    exists = (tl.arange(0, BLOCK) < GROUPS * WIDTH) & (channel < CHANNELS)
    first = chunk * tiles * TILE
    last = tl.minimum(first + tiles * TILE, positions)
    return image, chunk, group, first, last, channel, exists


@triton.jit
def _offsets(image, position, channel, positions, CHANNELS: tl.constexpr, LAST: tl.constexpr):
    """Offsets of a tile's values [TILE, BLOCK]."""
    if LAST:
        return (image * positions + position)[:, None] * CHANNELS + channel[None, :]
    return (image * CHANNELS + channel)[None, :] * positions + position[:, None]


@triton.jit
def _belongs(GROUPS: tl.constexpr, WIDTH: tl.constexpr, SLOTS: tl.constexpr, BLOCK: tl.constexpr):
    """Whether a channel is in a group, [SLOTS, BLOCK]; GROUPS of the slots are used."""
    slot = tl.arange(0, SLOTS)[:, None]
    return (tl.arange(0, BLOCK)[None, :] // WIDTH == slot) & (slot < GROUPS)


@triton.jit
def _group_norm_moments_kernel(
    x_ptr, moments_ptr, positions, chunks, tiles,
    CHANNELS: tl.constexpr, GROUPS: tl.constexpr, WIDTH: tl.constexpr, SLOTS: tl.constexpr,
    BLOCK: tl.constexpr, TILE: tl.constexpr, LAST: tl.constexpr,
):  # fmt: skip
    """Mean and summed squared distance to it of each group in a chunk.

    moments: float64 [B, chunks, 2, groups].
    """
    image, chunk, group, first, last, channel, exists = _program(
        positions, chunks, tiles, CHANNELS, GROUPS, WIDTH, BLOCK, TILE
    )
    # The divisions come first, while registers are free: in float64 they are calls.
    count = (last - first).to(tl.float64)
    share, in_tile = 1.0 / count, 1.0 / tl.minimum(last - first, TILE).to(tl.float32)
    # Distances to the mean of a channel's first tile, which is known first and close enough to
    # the chunk's mean that nothing cancels.
    position = first + tl.arange(0, TILE)
    inside = (position < last)[:, None] & exists[None, :]
    offsets = _offsets(image, position, channel, positions, CHANNELS, LAST)
    x = tl.load(x_ptr + offsets, mask=inside, other=0.0).to(tl.float32)
    pivot = tl.sum(x, axis=0) * in_tile
    sums = tl.zeros((TILE, BLOCK), tl.float32)
    squares = tl.zeros((TILE, BLOCK), tl.float32)
    for _ in range(tiles):
        inside = (position < last)[:, None] & exists[None, :]
        offsets = _offsets(image, position, channel, positions, CHANNELS, LAST)
        x = tl.load(x_ptr + offsets, mask=inside, other=0.0).to(tl.float32)
        distance = tl.where(inside, x - pivot[None, :], 0.0)
        sums += distance
        squares += distance * distance
        position += TILE
    # Float64 from here: an error would be common to all positions.
    offset = tl.sum(sums, axis=0).to(tl.float64) * share  # from a channel's pivot to its mean
    square = tl.sum(squares, axis=0).to(tl.float64) - count * offset * offset
    mean = tl.where(exists, pivot.to(tl.float64) + offset, 0.0)
    belongs = _belongs(GROUPS, WIDTH, SLOTS, BLOCK)
    group_mean = tl.sum(tl.where(belongs, mean[None, :], 0.0), axis=1) * (1.0 / WIDTH)
    between = tl.where(belongs, mean[None, :] - group_mean[:, None], 0.0)
    within = tl.sum(tl.where(belongs, square[None, :], 0.0), axis=1)
    square_of_group = within + count * tl.sum(between * between, axis=1)
    groups: tl.constexpr = CHANNELS // WIDTH
    slot = group + tl.arange(0, SLOTS)
    written = (tl.arange(0, SLOTS) < GROUPS) & (slot < groups)
    to = (image * chunks + chunk) * (2 * groups) + slot
    tl.store(moments_ptr + to, group_mean, mask=written)
    tl.store(moments_ptr + (to + groups), square_of_group, mask=written)


@triton.jit
def _joined(
    moments_ptr, image, group, positions, chunks, tiles, eps,
    CHANNELS: tl.constexpr, GROUPS: tl.constexpr, WIDTH: tl.constexpr, SLOTS: tl.constexpr,
    BLOCK: tl.constexpr, TILE: tl.constexpr, CHUNKS: tl.constexpr,
):  # fmt: skip
    """Mean and 1 / sqrt(var + eps) of each channel's group, float64, from those of the chunks."""
    groups: tl.constexpr = CHANNELS // WIDTH
    chunk = tl.arange(0, CHUNKS).to(tl.int64)
    slot = group + tl.arange(0, SLOTS)
    within = (tl.arange(0, SLOTS) < GROUPS) & (slot < groups)
    inside = (chunk < chunks)[:, None] & within[None, :]
    at = (image * chunks + chunk)[:, None] * (2 * groups) + slot[None, :]
    means = tl.load(moments_ptr + at, mask=inside, other=0.0)
    squares = tl.load(moments_ptr + (at + groups), mask=inside, other=0.0)
    first = chunk * (tiles * TILE)
    counts = tl.maximum(tl.minimum(positions - first, tiles * TILE), 0).to(tl.float64)
    mean = tl.sum(means * (counts / positions)[:, None], axis=0)
    distance = tl.where(inside, means - mean[None, :], 0.0)
    square = tl.sum(squares + distance * distance * (counts * WIDTH)[:, None], axis=0)
    variance = square / tl.sum(counts * WIDTH, axis=0)
    rstd = 1.0 / tl.sqrt(variance + eps)
    belongs = _belongs(GROUPS, WIDTH, SLOTS, BLOCK)
    mean_of = tl.sum(tl.where(belongs, mean[:, None], 0.0), axis=0)
    return mean_of, tl.sum(tl.where(belongs, rstd[:, None], 0.0), axis=0)


@triton.jit
def _vector(ptr, index, exists, otherwise, GIVEN: tl.constexpr):
    """Values per channel, or `otherwise` without them."""
    if GIVEN:
        return tl.load(ptr + index, mask=exists, other=0.0).to(tl.float32)
    return tl.zeros(index.shape, tl.float32) + otherwise


@triton.jit
def _affine(
    weight_ptr, bias_ptr, scale_ptr, shift_ptr, image, channel, exists,
    CHANNELS: tl.constexpr, WEIGHT: tl.constexpr, BIAS: tl.constexpr, ADAPTIVE: tl.constexpr,
):  # fmt: skip
    """Weight, bias, scale and shift of the channels."""
    row = image * CHANNELS + channel
    weight = _vector(weight_ptr, channel, exists, 1.0, WEIGHT)
    bias = _vector(bias_ptr, channel, exists, 0.0, BIAS)
    scale = _vector(scale_ptr, row, exists, 1.0, ADAPTIVE)
    shift = _vector(shift_ptr, row, exists, 0.0, ADAPTIVE)
    return weight, bias, scale, shift


@triton.jit
def _group_norm_forward_kernel(
    x_ptr, moments_ptr, weight_ptr, bias_ptr, scale_ptr, shift_ptr, y_ptr,
    positions, chunks, tiles, eps,
    WEIGHT: tl.constexpr, BIAS: tl.constexpr, ADAPTIVE: tl.constexpr, SILU: tl.constexpr,
    CHANNELS: tl.constexpr, GROUPS: tl.constexpr, WIDTH: tl.constexpr, SLOTS: tl.constexpr,
    BLOCK: tl.constexpr, TILE: tl.constexpr, CHUNKS: tl.constexpr, LAST: tl.constexpr,
):  # fmt: skip
    image, _, group, first, last, channel, exists = _program(
        positions, chunks, tiles, CHANNELS, GROUPS, WIDTH, BLOCK, TILE
    )
    mean, rstd = _joined(
        moments_ptr, image, group, positions, chunks, tiles, eps,
        CHANNELS, GROUPS, WIDTH, SLOTS, BLOCK, TILE, CHUNKS,
    )  # fmt: skip
    weight, bias, scale, shift = _affine(
        weight_ptr, bias_ptr, scale_ptr, shift_ptr, image, channel, exists,
        CHANNELS, WEIGHT, BIAS, ADAPTIVE,
    )  # fmt: skip
    slope, offset = (rstd * weight * scale).to(tl.float32), bias * scale + shift
    mean = mean.to(tl.float32)
    position = first + tl.arange(0, TILE)
    for _ in range(tiles):
        inside = (position < last)[:, None] & exists[None, :]
        offsets = _offsets(image, position, channel, positions, CHANNELS, LAST)
        x = tl.load(x_ptr + offsets, mask=inside, other=0.0).to(tl.float32)
        y = (x - mean[None, :]) * slope[None, :] + offset[None, :]
        if SILU:
            y *= tl.sigmoid(y)
        tl.store(y_ptr + offsets, y.to(y_ptr.dtype.element_ty), mask=inside)
        position += TILE


@triton.jit
def _of_z(grad, centred, slope, offset, SILU: tl.constexpr):
    """Gradient of z: silu'(z) = s (1 + z (1 - s)) with s = sigmoid(z)."""
    if SILU:
        z = centred * slope[None, :] + offset[None, :]
        sigmoid = tl.sigmoid(z)
        grad *= sigmoid * (1 + z * (1 - sigmoid))
    return grad


@triton.jit
def _group_norm_sums_kernel(
    grad_ptr, x_ptr, moments_ptr, weight_ptr, bias_ptr, scale_ptr, shift_ptr, sums_ptr,
    positions, chunks, tiles, eps,
    WEIGHT: tl.constexpr, BIAS: tl.constexpr, ADAPTIVE: tl.constexpr, SILU: tl.constexpr,
    CHANNELS: tl.constexpr, GROUPS: tl.constexpr, WIDTH: tl.constexpr, SLOTS: tl.constexpr,
    BLOCK: tl.constexpr, TILE: tl.constexpr, CHUNKS: tl.constexpr, LAST: tl.constexpr,
):  # fmt: skip
    """Sums over a chunk of the gradient of z, and of it times (x - mean).

    sums: float64 [B, chunks, 2, C].
    """
    image, chunk, group, first, last, channel, exists = _program(
        positions, chunks, tiles, CHANNELS, GROUPS, WIDTH, BLOCK, TILE
    )
    mean, rstd = _joined(
        moments_ptr, image, group, positions, chunks, tiles, eps,
        CHANNELS, GROUPS, WIDTH, SLOTS, BLOCK, TILE, CHUNKS,
    )  # fmt: skip
    weight, bias, scale, shift = _affine(
        weight_ptr, bias_ptr, scale_ptr, shift_ptr, image, channel, exists,
        CHANNELS, WEIGHT, BIAS, ADAPTIVE,
    )  # fmt: skip
    slope, offset = (rstd * weight * scale).to(tl.float32), bias * scale + shift
    mean = mean.to(tl.float32)
    grad_z = tl.zeros((TILE, BLOCK), tl.float32)
    grad_z_x = tl.zeros((TILE, BLOCK), tl.float32)
    position = first + tl.arange(0, TILE)
    for _ in range(tiles):
        inside = (position < last)[:, None] & exists[None, :]
        offsets = _offsets(image, position, channel, positions, CHANNELS, LAST)
        grad = tl.load(grad_ptr + offsets, mask=inside, other=0.0).to(tl.float32)
        centred = tl.load(x_ptr + offsets, mask=inside, other=0.0).to(tl.float32) - mean[None, :]
        grad = _of_z(grad, centred, slope, offset, SILU)
        grad_z += grad
        grad_z_x += grad * centred
        position += TILE
    to = (image * chunks + chunk) * (2 * CHANNELS) + channel
    tl.store(sums_ptr + to, tl.sum(grad_z.to(tl.float64), axis=0), mask=exists)
    tl.store(sums_ptr + (to + CHANNELS), tl.sum(grad_z_x.to(tl.float64), axis=0), mask=exists)


@triton.jit
def _group_norm_channels_kernel(
    moments_ptr, sums_ptr, weight_ptr, bias_ptr, scale_ptr, shift_ptr, along_ptr,
    grad_weight_ptr, grad_bias_ptr, grad_scale_ptr, grad_shift_ptr, positions, chunks, tiles, eps,
    WEIGHT: tl.constexpr, BIAS: tl.constexpr, ADAPTIVE: tl.constexpr,
    CHANNELS: tl.constexpr, GROUPS: tl.constexpr, WIDTH: tl.constexpr, SLOTS: tl.constexpr,
    BLOCK: tl.constexpr, TILE: tl.constexpr, CHUNKS: tl.constexpr,
):  # fmt: skip
    """Gradients of the per-channel arguments for each image, and what the map's lies along.

    along: [B, 2, C], what is taken from the gradient at every position: a number, and a factor of
    (x - mean). A program for each image and block.
    """
    image, _, group, _, _, channel, exists = _program(
        positions, 1, tiles, CHANNELS, GROUPS, WIDTH, BLOCK, TILE
    )
    mean, rstd = _joined(
        moments_ptr, image, group, positions, chunks, tiles, eps,
        CHANNELS, GROUPS, WIDTH, SLOTS, BLOCK, TILE, CHUNKS,
    )  # fmt: skip
    weight, bias, scale, _ = _affine(
        weight_ptr, bias_ptr, scale_ptr, shift_ptr, image, channel, exists,
        CHANNELS, WEIGHT, BIAS, ADAPTIVE,
    )  # fmt: skip
    grad_z = tl.zeros((BLOCK,), tl.float64)
    with_unit = tl.zeros((BLOCK,), tl.float64)  # the gradient of z times (x - mean) rstd
    at = image * chunks * (2 * CHANNELS) + channel
    for _ in range(chunks):
        grad_z += tl.load(sums_ptr + at, mask=exists, other=0.0)
        with_unit += tl.load(sums_ptr + (at + CHANNELS), mask=exists, other=0.0)
        at += 2 * CHANNELS
    # The sums are about the mean in float32.
    with_unit = (with_unit - (mean - mean.to(tl.float32)) * grad_z) * rstd
    row = image * CHANNELS + channel
    if WEIGHT:
        tl.store(grad_weight_ptr + row, scale * with_unit, mask=exists)
    if BIAS:
        tl.store(grad_bias_ptr + row, scale * grad_z, mask=exists)
    if ADAPTIVE:
        grad_scale = weight * with_unit + bias * grad_z
        tl.store(grad_scale_ptr + row, grad_scale.to(grad_scale_ptr.dtype.element_ty), mask=exists)
        tl.store(grad_shift_ptr + row, grad_z.to(grad_shift_ptr.dtype.element_ty), mask=exists)
    # The moments depend on x too: remove the components of the gradient along 1 and unit.
    belongs = _belongs(GROUPS, WIDTH, SLOTS, BLOCK)
    size = positions * 1.0 * WIDTH
    one = tl.sum(tl.where(belongs, (weight * scale * grad_z)[None, :], 0.0), axis=1) / size
    unit = tl.sum(tl.where(belongs, (weight * scale * with_unit)[None, :], 0.0), axis=1) / size
    one_of = tl.sum(tl.where(belongs, one[:, None], 0.0), axis=0)
    unit_of = tl.sum(tl.where(belongs, unit[:, None], 0.0), axis=0)
    to = image * (2 * CHANNELS) + channel
    tl.store(along_ptr + to, (rstd * one_of).to(tl.float32), mask=exists)
    tl.store(along_ptr + (to + CHANNELS), (rstd * rstd * unit_of).to(tl.float32), mask=exists)


@triton.jit
def _group_norm_backward_kernel(
    grad_ptr, x_ptr, moments_ptr, weight_ptr, bias_ptr, scale_ptr, shift_ptr, along_ptr, grad_x_ptr,
    positions, chunks, tiles, eps,
    WEIGHT: tl.constexpr, BIAS: tl.constexpr, ADAPTIVE: tl.constexpr, SILU: tl.constexpr,
    CHANNELS: tl.constexpr, GROUPS: tl.constexpr, WIDTH: tl.constexpr, SLOTS: tl.constexpr,
    BLOCK: tl.constexpr, TILE: tl.constexpr, CHUNKS: tl.constexpr, LAST: tl.constexpr,
):  # fmt: skip
    image, _, group, first, last, channel, exists = _program(
        positions, chunks, tiles, CHANNELS, GROUPS, WIDTH, BLOCK, TILE
    )
    mean, rstd = _joined(
        moments_ptr, image, group, positions, chunks, tiles, eps,
        CHANNELS, GROUPS, WIDTH, SLOTS, BLOCK, TILE, CHUNKS,
    )  # fmt: skip
    weight, bias, scale, shift = _affine(
        weight_ptr, bias_ptr, scale_ptr, shift_ptr, image, channel, exists,
        CHANNELS, WEIGHT, BIAS, ADAPTIVE,
    )  # fmt: skip
    slope, offset = (rstd * weight * scale).to(tl.float32), bias * scale + shift
    mean = mean.to(tl.float32)
    at = image * (2 * CHANNELS) + channel
    one = tl.load(along_ptr + at, mask=exists, other=0.0)
    unit = tl.load(along_ptr + (at + CHANNELS), mask=exists, other=0.0)
    position = first + tl.arange(0, TILE)
    for _ in range(tiles):
        inside = (position < last)[:, None] & exists[None, :]
        offsets = _offsets(image, position, channel, positions, CHANNELS, LAST)
        grad = tl.load(grad_ptr + offsets, mask=inside, other=0.0).to(tl.float32)
        centred = tl.load(x_ptr + offsets, mask=inside, other=0.0).to(tl.float32) - mean[None, :]
        grad = _of_z(grad, centred, slope, offset, SILU)
        grad_x = grad * slope[None, :] - one[None, :] - centred * unit[None, :]
        tl.store(grad_x_ptr + offsets, grad_x.to(grad_x_ptr.dtype.element_ty), mask=inside)
        position += TILE


class _Launch(NamedTuple):
    """How a map is cut into programs, and the constants of the kernels."""

    images: int
    blocks: int
    sizes: tuple[int, int, int]  # positions, chunks, tiles of a chunk
    constants: dict[str, Any]

    @classmethod
    def of(cls, x: torch.Tensor, num_groups: int) -> _Launch:
        images, channels, height, width = x.shape
        positions, group = height * width, channels // num_groups
        groups = max(1, min(num_groups, _CHANNELS // group))
        block = triton.next_power_of_2(groups * group)
        tile = min(_TILE // block, triton.next_power_of_2(positions))
        blocks, tiles = triton.cdiv(num_groups, groups), triton.cdiv(positions, tile)
        chunks = min(_MAX_CHUNKS, tiles, triton.cdiv(_PROGRAMS, images * blocks))
        chunk_tiles = triton.cdiv(tiles, chunks)
        chunks = triton.cdiv(tiles, chunk_tiles)
        constants = {
            "CHANNELS": channels, "GROUPS": groups, "WIDTH": group,
            "SLOTS": triton.next_power_of_2(groups), "BLOCK": block, "TILE": tile,
        }  # fmt: skip
        return cls(images, blocks, (positions, chunks, chunk_tiles), constants)

    @property
    def grid(self) -> tuple[int]:
        return (self.images * self.blocks * self.sizes[1],)

    @property
    def joining(self) -> dict[str, Any]:
        """Constants of the kernels that combine chunks."""
        return {**self.constants, "CHUNKS": triton.next_power_of_2(self.sizes[1])}


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
    reason = triton_support.unsupported(*given)
    if reason is None and x.shape[1] // num_groups > _MAX_WIDTH:
        reason = f"it takes at most {_MAX_WIDTH} channels a group, got {x.shape[1] // num_groups}"
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
    layout = memory_format(x)
    y = torch.empty_like(x, memory_format=layout)
    if x.numel() == 0:
        return y
    x = x.contiguous(memory_format=layout)
    vectors, given = _given(x, weight, bias, scale, shift)
    launch, last = _Launch.of(x, num_groups), layout == torch.channels_last
    with triton_support.on_device(x):
        moments = _moments(x, num_groups, launch, last)
        _group_norm_forward_kernel[launch.grid](
            x, moments, *vectors, y, *launch.sizes, eps, **given, SILU=silu, **launch.joining,
            LAST=last,
        )  # fmt: skip
    return y


def unsupported_backward(grad: torch.Tensor, *inputs: Any) -> str | None:
    return triton_support.unsupported(grad) or unsupported(*inputs)


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
    layout = memory_format(x)
    grad_x = torch.empty_like(x, memory_format=layout)
    images, channels = x.shape[:2]
    # Those of weight and bias are summed over the images at the end.
    grad_affine = [x.new_zeros((images, channels), dtype=torch.float64) for _ in range(2)]
    grad_adaptive = [
        x.new_empty(0) if t is None else torch.zeros_like(t, memory_format=torch.contiguous_format)
        for t in (scale, shift)
    ]
    if x.numel() > 0:
        x, grad = (t.contiguous(memory_format=layout) for t in (x, grad))
        vectors, given = _given(x, weight, bias, scale, shift)
        launch, last = _Launch.of(x, num_groups), layout == torch.channels_last
        sums = x.new_empty((images, launch.sizes[1], 2, channels), dtype=torch.float64)
        along = x.new_empty((images, 2, channels), dtype=torch.float32)
        with triton_support.on_device(x):
            moments = _moments(x, num_groups, launch, last)
            _group_norm_sums_kernel[launch.grid](
                grad, x, moments, *vectors, sums, *launch.sizes, eps, **given, SILU=silu,
                **launch.joining, LAST=last,
            )  # fmt: skip
            _group_norm_channels_kernel[(launch.images * launch.blocks,)](
                moments, sums, *vectors, along, *grad_affine, *grad_adaptive, *launch.sizes, eps,
                **given, **launch.joining,
            )  # fmt: skip
            _group_norm_backward_kernel[launch.grid](
                grad, x, moments, *vectors, along, grad_x, *launch.sizes, eps, **given, SILU=silu,
                **launch.joining, LAST=last,
            )  # fmt: skip
    affine = (
        x.new_empty(0) if t is None else grad_t.sum(0).to(t.dtype)
        for t, grad_t in zip((weight, bias), grad_affine, strict=True)
    )
    return grad_x, *affine, *grad_adaptive


def _moments(x: torch.Tensor, num_groups: int, launch: _Launch, last: bool) -> torch.Tensor:
    shape = (launch.images, launch.sizes[1], 2, num_groups)
    moments = x.new_empty(shape, dtype=torch.float64)
    _group_norm_moments_kernel[launch.grid](
        x, moments, *launch.sizes, **launch.constants, LAST=last
    )
    return moments


def _given(
    x: torch.Tensor, *tensors: torch.Tensor | None
) -> tuple[list[torch.Tensor], dict[str, bool]]:
    """Contiguous weight, bias, scale and shift, `x` in place of None; and which were given."""
    vectors = [x if t is None else t.contiguous() for t in tensors]
    weight, bias, scale, _ = (t is not None for t in tensors)
    return vectors, {"WEIGHT": weight, "BIAS": bias, "ADAPTIVE": scale}
