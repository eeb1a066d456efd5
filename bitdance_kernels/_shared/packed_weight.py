"""Weights in the order in which kernels read them: tensor cores, and vectors of a CPU.

A tile of 16 rows and 16 channels lies as the A operand of ``mma.m16n8k16``: 8 values for each of 32
lanes, lane 4 r + p having channels (2 p, 2 p + 1, 2 p + 8, 2 p + 9) of rows r and r + 8. So a lane
reads all of its tile by one load of 16 bytes, and a warp reads 512 adjacent ones.

A panel is 16 rows, transposed: a vector of a CPU has a channel of all of them.
"""

from __future__ import annotations

import torch

from bitdance_kernels._dispatch import arguments
from bitdance_kernels._shared import checks

__all__ = ["pack_weight", "unpack_weight"]

TILE = 16
# By layout, how a weight's rows are numbered: by tile ("t", -1 here), half of the tile ("h") and
# row of the half ("r"), the slowest first.
_LAYOUTS = {"rows": "thr", "swiglu": "htr", "rope": "trh", "rope_half": "trh"}
_SIZES = {"t": -1, "h": 2, "r": 8}
_PANELS = "panels"


def pack_weight(
    weight: torch.Tensor,
    layout: str = "rows",
    *,
    head_dim: int | None = None,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """A weight in the order in which tensor cores or the vectors of a CPU read it.

    Ops with a product take such a weight in place of a matrix, in the layout that their
    documentation names. Biases keep their order.

    Args:
        weight: [F, C] of any dtype, F and C multiples of 16; with "panels" C is any.
        layout: "rows"; "swiglu", where a tile of 16 rows holds 8 of the first half of all rows and
            the same 8 of the second; "rope", where it holds even rows before odd ones; or
            "rope_half", where it holds 8 of the first half of a head and the same 8 of the second.
            On a CPU "panels": 16 rows, transposed.
        head_dim: rows of a head, a multiple of 16 that divides F; of "rope_half" alone.
        out: [F / 16, C / 16, 32, 8], with "panels" [F / 16, C, 16], contiguous and of any dtype,
            where the result goes; None for a new tensor of the dtype of `weight`.

    Returns:
        `out`, or the new tensor.

    Raises:
        TypeError: `weight` or `out` is no tensor.
        ValueError: a shape or layout other than the above.

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
    if half := _half_of_heads("pack_weight", layout, head_dim, F):
        # The pairs (i, i + D / 2) side by side, so that they are even and odd rows.
        weight = weight.unflatten(0, (-1, 2, half)).transpose(1, 2).flatten(0, 2)
    if layout == _PANELS:
        shape: tuple[int, ...] = (F // TILE, C, TILE)
        letters = "[F / 16, C, 16]"
        packed = weight.reshape(F // TILE, TILE, C).transpose(1, 2)
    else:
        rows = [F // TILE if axis == "t" else _SIZES[axis] for axis in order]
        tiles = weight.reshape(*rows, C // TILE, 2, 4, 2)
        tile, half, row = map(order.index, "thr")
        packed, letters = tiles.permute(tile, 3, row, 5, 4, half, 6), "[F / 16, C / 16, 32, 8]"
        shape = (F // TILE, C // TILE, 32, 8)
    if out is None:
        return packed.reshape(shape).contiguous()
    arguments.tensor("pack_weight", "out", out)
    checks.shape("pack_weight", "out", out, shape, letters)
    if not out.is_contiguous():
        raise checks.fail("pack_weight", "out", "contiguous", f"strides {list(out.stride())}")
    out.view(packed.shape).copy_(packed)
    return out


def unpack_weight(
    packed: torch.Tensor, layout: str = "rows", *, head_dim: int | None = None
) -> torch.Tensor:
    """The weight that ``pack_weight`` packed.

    Args:
        packed: [F / 16, C / 16, 32, 8], with "panels" [F / 16, C, 16], of any dtype.
        layout: as for ``pack_weight``.
        head_dim: as for ``pack_weight``.

    Returns:
        [F, C] of the dtype of `packed`, contiguous.

    Raises:
        TypeError: `packed` is no tensor.
        ValueError: a shape or layout other than the above.
    """
    order = _order("unpack_weight", layout)
    arguments.tensor("unpack_weight", "packed", packed)
    if layout == _PANELS:
        _half_of_heads("unpack_weight", layout, head_dim, 0)
        checks.rank("unpack_weight", "packed", packed, 3, 3)
        shape = (*packed.shape[:2], TILE)
        checks.shape("unpack_weight", "packed", packed, shape, "[F / 16, C, 16]")
        return packed.transpose(1, 2).reshape(-1, packed.shape[1]).contiguous()
    checks.rank("unpack_weight", "packed", packed, 4, 4)
    tiles, steps = packed.shape[:2]
    letters = "[F / 16, C / 16, 32, 8]"
    checks.shape("unpack_weight", "packed", packed, (tiles, steps, 32, 8), letters)
    parts = packed.reshape(tiles, steps, 8, 4, 2, 2, 2)  # tile, step, row, pair, eight, half, one
    axes = ["tkrpehc".index(axis) for axis in f"{order}kepc"]
    weight = parts.permute(axes).reshape(tiles * TILE, steps * TILE)
    if half := _half_of_heads("unpack_weight", layout, head_dim, len(weight)):
        weight = weight.unflatten(0, (-1, half, 2)).transpose(1, 2).flatten(0, 2)
    return weight.contiguous()


def matrix(weight: torch.Tensor, layout: str = "rows", head_dim: int | None = None) -> torch.Tensor:
    """The matrix of a weight, which may be packed."""
    if is_panels(weight):
        return unpack_weight(weight, _PANELS)
    if not is_packed(weight):
        return weight
    return unpack_weight(weight, layout, head_dim=head_dim)


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


def features(weight: torch.Tensor) -> int:
    """F, the rows of the matrix of a weight."""
    return weight.shape[0] * (TILE if weight.dim() > 2 else 1)


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
