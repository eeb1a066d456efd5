"""Weights in the order in which kernels read them: tensor cores, and vectors of a CPU.

A tile of 16 rows and 16 channels lies as the A operand of ``mma.m16n8k16``: 8 values for each of 32
lanes, lane 4 r + p having channels (2 p, 2 p + 1, 2 p + 8, 2 p + 9) of rows r and r + 8. So a lane
reads all of its tile by one load of 16 bytes, and a warp reads 512 adjacent ones.

Float8 values take half of that. Their scales follow the tiles of their rows, in the bytes of one
more, so that a packed weight is one tensor whatever its dtype.

A panel is 16 rows, transposed: a vector of a CPU has a channel of all of them. Of int8 values the
scales follow the channels, in the bytes of four more.
"""

from __future__ import annotations

import torch

from bitdance_kernels._dispatch import arguments
from bitdance_kernels._shared import checks, native, quantized

__all__ = ["pack_weight", "unpack_weight"]

TILE = 16
# By layout, how a weight's rows are numbered: by tile ("t", -1 here), half of the tile ("h") and
# row of the half ("r"), the slowest first.
_LAYOUTS = {"rows": "thr", "swiglu": "htr", "rope": "trh", "rope_half": "trh"}
_SIZES = {"t": -1, "h": 2, "r": 8}
_PANELS = "panels"
_SCALE_CHANNELS = 4  # whose bytes in a panel of int8 values its scales take
_PANEL_LETTERS = ("[F / 16, C, 16]", "[F / 16, C + 4, 16]")  # without scales, and with them


def pack_weight(
    weight: torch.Tensor,
    layout: str = "rows",
    *,
    head_dim: int | None = None,
    scales: torch.Tensor | None = None,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """A weight in the order in which tensor cores or the vectors of a CPU read it.

    Ops with a product take such a weight in place of a matrix, in the layout that their
    documentation names. Biases keep their order.

    Args:
        weight: [F, C] of any dtype, F and C multiples of 16; with "panels" C is any. Bytes (uint8)
            are float8 values, and int8 with "panels" is values too, as ``quantize_rows`` returns
            them.
        layout: "rows"; "swiglu", where a tile of 16 rows holds 8 of the first half of all rows and
            the same 8 of the second; "rope", where it holds even rows before odd ones; or
            "rope_half", where it holds 8 of the first half of a head and the same 8 of the second.
            On a CPU "panels": 16 rows, transposed.
        head_dim: rows of a head, a multiple of 16 that divides F; of "rope_half" alone.
        scales: float32 [F], of the rows of float8 or int8 values, and of these alone.
        out: [F / 16, C / 16, 32, 8], with "panels" [F / 16, C, 16], contiguous and of any dtype,
            where the result goes; for float8 values uint8 [F / 16, C / 16 + 1, 32, 8], for panels
            of int8 values int8 [F / 16, C + 4, 16]. None for a new tensor of the dtype of `weight`.

    Returns:
        `out`, or the new tensor.

    Raises:
        TypeError: `weight`, `scales` or `out` is no tensor, or of another dtype than the above.
        ValueError: a shape or layout other than the above; scales are missing, or not expected.

    Example:
        >>> import torch
        >>> weight = torch.arange(512.0).view(32, 16)
        >>> pack_weight(weight)[0, 0, 0]
        tensor([  0.,   1., 128., 129.,   8.,   9., 136., 137.])
        >>> torch.equal(unpack_weight(pack_weight(weight, "swiglu"), "swiglu"), weight)
        True
    """
    order = _order("pack_weight", layout)
    arguments.tensor("pack_weight", "weight", weight)
    checks.rank("pack_weight", "weight", weight, 2, 2)
    F, C = weight.shape
    if F % TILE or (C % TILE and layout != _PANELS):
        expected = f"[F, C] with F {'a multiple' if layout == _PANELS else 'and C multiples'} of 16"
        raise checks.fail("pack_weight", "weight", expected, f"shape {list(weight.shape)}")
    half = _half_of_heads("pack_weight", layout, head_dim, F)
    is_quantized = weight.dtype == (torch.int8 if layout == _PANELS else torch.uint8)
    _check_scales(weight, scales, layout, is_quantized)
    tiles = F // TILE
    shape: tuple[int, ...] = (tiles, C // TILE + is_quantized, 32, 8)
    letters = "[F / 16, C / 16 + 1, 32, 8]" if is_quantized else "[F / 16, C / 16, 32, 8]"
    if layout == _PANELS:
        shape = (tiles, C + _SCALE_CHANNELS * is_quantized, TILE)
        letters = _PANEL_LETTERS[is_quantized]
    given, dtype = out, weight.dtype if is_quantized else None
    out = weight.new_empty(shape) if given is None else _checked_out(given, shape, letters, dtype)
    if layout == _PANELS:
        if scales is not None:
            of_panels = scales.contiguous().view(torch.int8).view(tiles, _SCALE_CHANNELS, TILE)
            out[:, C:] = of_panels
            out[:, :C] = weight.reshape(tiles, TILE, C).transpose(1, 2)
            return out
        if given is not None and _takes_native(weight, given):
            native.cpu.pack_panels(weight.detach(), out.detach(), F, C, torch.get_num_threads())
            return out
        return out.copy_(weight.reshape(tiles, TILE, C).transpose(1, 2))
    # tile, half, row, step, eight, pair, one of a pair
    parts = _tiles(weight, order, half).reshape(tiles, 2, 8, C // TILE, 2, 4, 2)
    steps = out[:, : C // TILE].view(tiles, C // TILE, 8, 4, 2, 2, 2)
    steps.copy_(parts.permute(0, 3, 2, 5, 4, 1, 6))
    if scales is not None:
        # The kernels know no NaN; a row that has one is NaN in every product.
        has_nan = ((weight & 0x7F) == 0x7F).any(-1, keepdim=True)
        of_rows = _tiles(torch.where(has_nan, torch.nan, scales[:, None]), order, half)
        out[:, -1].zero_()
        out[:, -1].flatten(1)[:, : 4 * TILE] = of_rows.reshape(-1, TILE).view(torch.uint8)
    return out


def _takes_native(weight: torch.Tensor, out: torch.Tensor) -> bool:
    """Whether C++ packs these tensors."""
    plain = all(
        type(t) in (torch.Tensor, torch.nn.Parameter) and t.is_cpu and t.dtype == torch.float32
        for t in (weight, out)
    )
    return (
        plain
        and weight.stride(1) == 1
        and native.cpu.unavailable("pack_panels") is None
        and not torch.compiler.is_compiling()
    )


def unpack_weight(
    packed: torch.Tensor, layout: str = "rows", *, head_dim: int | None = None
) -> torch.Tensor:
    """The weight that ``pack_weight`` packed.

    Args:
        packed: [F / 16, C / 16, 32, 8], with "panels" [F / 16, C, 16], of any dtype; for float8
            values uint8 [F / 16, C / 16 + 1, 32, 8], for int8 values int8 [F / 16, C + 4, 16].
        layout: as for ``pack_weight``.
        head_dim: as for ``pack_weight``.

    Returns:
        [F, C] of the dtype of `packed`, contiguous; for float8 and int8 values float32, the values
        times their scales.

    Raises:
        TypeError: `packed` is no tensor.
        ValueError: a shape or layout other than the above.
    """
    order = _order("unpack_weight", layout)
    arguments.tensor("unpack_weight", "packed", packed)
    if layout == _PANELS:
        _half_of_heads("unpack_weight", layout, head_dim, 0)
        checks.rank("unpack_weight", "packed", packed, 3, 3)
        letters = _PANEL_LETTERS[is_int8(packed)]
        checks.shape("unpack_weight", "packed", packed, (*packed.shape[:2], TILE), letters)
        if is_int8(packed) and packed.shape[1] < _SCALE_CHANNELS:
            raise checks.fail("unpack_weight", "packed", letters, f"shape {list(packed.shape)}")
        return _unpacked_panels(packed, torch.float32)
    checks.rank("unpack_weight", "packed", packed, 4, 4)
    tiles, steps = packed.shape[:2]
    letters = "[F / 16, C / 16, 32, 8]"
    checks.shape("unpack_weight", "packed", packed, (tiles, steps, 32, 8), letters)
    half = _half_of_heads("unpack_weight", layout, head_dim, tiles * TILE)
    if not is_float8(packed):
        return _rows(packed, order, half)
    if steps == 0:
        raise checks.fail("unpack_weight", "packed", letters, f"shape {list(packed.shape)}")
    scales = packed[:, -1].flatten(1)[:, : 4 * TILE].contiguous().view(torch.float32)
    of_rows = _matrix(scales.view(tiles, 2, 8, 1), order, half).flatten()
    return quantized.dequantize_rows(_rows(packed[:, :-1], order, half), of_rows, torch.float32)


def _unpacked_panels(packed: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The matrix of panels; in `dtype`, rounded once, if they are of int8 values."""
    if not is_int8(packed):
        return packed.transpose(1, 2).reshape(-1, packed.shape[1]).contiguous()
    values, scales = packed[:, :-_SCALE_CHANNELS], packed[:, -_SCALE_CHANNELS:].flatten(1)
    matrix = values.transpose(1, 2).reshape(TILE * len(packed), values.shape[1])
    of_rows = scales.clone().view(torch.float32).flatten()
    return quantized.dequantize_rows(matrix, of_rows, dtype)


def _check_scales(
    weight: torch.Tensor, scales: torch.Tensor | None, layout: str, is_quantized: bool
) -> None:
    if weight.dtype == torch.uint8 and layout == _PANELS:
        raise checks.fail("pack_weight", "weight", 'no bytes for the layout "panels"', "uint8")
    if not is_quantized:
        if scales is not None:
            expected = f"None for {weight.dtype} and the layout {layout!r}"
            raise checks.fail("pack_weight", "scales", expected, "a tensor")
        return
    if scales is None:
        what = "panels of int8" if layout == _PANELS else "a weight of bytes"
        raise checks.fail("pack_weight", "scales", f"float32 [F] for {what}", "None")
    arguments.tensor("pack_weight", "scales", scales)
    checks.dtype("pack_weight", "scales", scales, (torch.float32,))
    checks.shape("pack_weight", "scales", scales, (len(weight),), "[F]")
    checks.same_device("pack_weight", "weight", weight, scales=scales)


def _checked_out(
    out: torch.Tensor, shape: tuple[int, ...], letters: str, dtype: torch.dtype | None
) -> torch.Tensor:
    arguments.tensor("pack_weight", "out", out)
    checks.shape("pack_weight", "out", out, shape, letters)
    if dtype is not None:
        checks.dtype("pack_weight", "out", out, (dtype,))
    if not out.is_contiguous():
        raise checks.fail("pack_weight", "out", "contiguous", f"strides {list(out.stride())}")
    return out


def _tiles(matrix: torch.Tensor, order: str, half: int) -> torch.Tensor:
    """Rows of a matrix by tile, half of it and row of the half: [F, C] to [F / 16, 2, 8, C]."""
    if half:
        # The pairs (i, i + D / 2) side by side, so that they are even and odd rows.
        matrix = matrix.unflatten(0, (-1, 2, half)).transpose(1, 2).flatten(0, 2)
    sizes = [len(matrix) // TILE if axis == "t" else _SIZES[axis] for axis in order]
    return matrix.reshape(*sizes, matrix.shape[1]).permute(*map(order.index, "thr"), 3)


def _matrix(tiles: torch.Tensor, order: str, half: int) -> torch.Tensor:
    """The matrix that ``_tiles`` has taken apart, contiguous."""
    rows = tiles.permute(*map("thr".index, order), 3).reshape(TILE * len(tiles), tiles.shape[3])
    if half:
        rows = rows.unflatten(0, (-1, half, 2)).transpose(1, 2).flatten(0, 2)
    return rows.contiguous()


def _rows(packed: torch.Tensor, order: str, half: int) -> torch.Tensor:
    """The matrix of packed tiles, without scales."""
    tiles, steps = packed.shape[:2]
    parts = packed.reshape(tiles, steps, 8, 4, 2, 2, 2)  # tile, step, row, pair, eight, half, one
    rows = parts.permute(0, 5, 2, 1, 4, 3, 6).reshape(tiles, 2, 8, TILE * steps)
    return _matrix(rows, order, half)


def matrix(
    weight: torch.Tensor,
    layout: str = "rows",
    head_dim: int | None = None,
    *,
    dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """The matrix of a weight, which may be packed; in `dtype` if it is quantized."""
    if is_panels(weight):
        return _unpacked_panels(weight, dtype or torch.float32)
    if not is_packed(weight):
        return weight
    unpacked = unpack_weight(weight, layout, head_dim=head_dim)
    return unpacked.to(dtype) if is_float8(weight) else unpacked


def like(weight: torch.Tensor, gradient: torch.Tensor, layout: str = "rows") -> torch.Tensor:
    """The matrix `gradient` in the form of `weight`."""
    if is_panels(weight):
        return pack_weight(gradient, _PANELS)
    return pack_weight(gradient, layout) if is_packed(weight) else gradient


def is_packed(weight: torch.Tensor) -> bool:
    """Whether a weight has the shape that ``pack_weight`` gives it for tensor cores."""
    return weight.dim() == 4


def is_panels(weight: torch.Tensor) -> bool:
    """Whether a weight has the shape that ``pack_weight`` gives it with the layout "panels"."""
    return weight.dim() == 3


def is_float8(weight: torch.Tensor) -> bool:
    """Whether a weight is packed float8 values."""
    return weight.dtype == torch.uint8 and is_packed(weight)


def is_int8(weight: torch.Tensor) -> bool:
    """Whether a weight is panels of int8 values."""
    return weight.dtype == torch.int8 and is_panels(weight)


def is_quantized(weight: torch.Tensor) -> bool:
    """Whether a weight is packed values with scales."""
    return is_float8(weight) or is_int8(weight)


def panel_shape(weight: torch.Tensor, channels: int) -> tuple[tuple[int, ...], str]:
    """The shape that panels must have for so many channels, and its letters."""
    with_scales = is_int8(weight)
    shape = (weight.shape[0], channels + _SCALE_CHANNELS * with_scales, TILE)
    return shape, _PANEL_LETTERS[with_scales]


def features(weight: torch.Tensor) -> int:
    """F, the rows of the matrix of a weight."""
    return weight.shape[0] * (TILE if weight.dim() > 2 else 1)


def steps(weight: torch.Tensor, channels: int) -> int:
    """Steps of the packed `weight` of so many channels, with that of the scales."""
    return channels // TILE + is_float8(weight)


def _order(op: str, layout: str) -> str:
    known = {**_LAYOUTS, _PANELS: ""}
    if layout not in known:
        raise checks.fail(op, "layout", f"one of {', '.join(known)}", repr(layout))
    return known[layout]


def _half_of_heads(op: str, layout: str, head_dim: int | None, features: int) -> int:
    """D / 2 with the layout "rope_half", else 0.

    Raises:
        ValueError: `head_dim` is missing, given for another layout, or does not fit.
    """
    if layout != "rope_half":
        if head_dim is not None:
            raise checks.fail(op, "head_dim", f"None for the layout {layout!r}", head_dim)
        return 0
    if type(head_dim) is not int or head_dim < TILE or head_dim % TILE or features % head_dim:
        expected = f"a multiple of 16 that divides F = {features}"
        raise checks.fail(op, "head_dim", expected, head_dim)
    return head_dim // 2
