"""Decode an image tile by tile, with the result of the whole decode.

The coarse stages run on all latents; the finest levels, whose maps are by far the largest, run
on tiles with a border that covers the receptive field, so every convolution is exact. What remains
global are the statistics of AdaGN, which are those of all latents anyway, and those of GroupNorm
over the whole map. The latter are gathered in passes over the tiles: pass n settles the n-th norm,
whose input is exact since the norms before it are settled, and goes no further. After as many
passes as there are norms the tiles are exact. The approximation instead lets every tile normalize
itself in a single pass, and then gives all tiles the statistics that this pass has seen, so that no
seam shows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F

from bitdance.models.autoencoder.blocks import Decoder, Modulation
from bitdance.models.tracing import is_traced

__all__ = ["Tiling", "decode_tiles"]


@dataclass(frozen=True)
class Tiling:
    """How large images are decoded.

    Attributes:
        tile_size: side of a tile in pixels. An image with no more pixels than a tile has is decoded
            whole.
        exact: see ``BinaryAutoencoder.decode_tiled``.
    """

    tile_size: int
    exact: bool

    def levels(self, height: int, width: int, count: int) -> int:
        """Finest levels that run in tiles; 0 for an image that is decoded whole.

        As many as it takes for the maps of the coarser levels to be no larger than a tile.

        Args:
            height: pixels of the image vertically.
            width: pixels of the image horizontally.
            count: levels of the decoder.
        """
        levels = 0
        while levels < count and (height >> levels) * (width >> levels) > self.tile_size**2:
            levels += 1
        return levels


@torch.no_grad()
def decode_tiles(
    decoder: Decoder,
    latents: torch.Tensor,
    noise: torch.Tensor | None,
    *,
    tile_size: int,
    tiled_levels: int,
    exact: bool,
) -> torch.Tensor:
    """Decode one image after the other, the finest levels in tiles.

    Args:
        decoder: the decoder.
        latents: [B, z_channels, h, w].
        noise: like `latents`, for a decoder that takes noise.
        tile_size: side of a tile in pixels of the image.
        tiled_levels: levels that run in tiles.
        exact: settle the statistics norm by norm, else estimate them in one pass.

    Returns:
        [B, out_ch, H, W].
    """
    num_levels = len(decoder.up)
    whole_levels = range(num_levels - 1, tiled_levels - 1, -1)
    images = []
    for i in range(latents.shape[0]):
        one = slice(i, i + 1)
        modulations = decoder.modulations(latents[one])
        coarse = decoder.stem(latents[one], None if noise is None else noise[one])
        coarse = decoder.levels(coarse, modulations, whole_levels)
        tail = _Tail(decoder, modulations, tiled_levels)
        images.append(tail.run(coarse, tile_size, exact))
    return torch.cat(images)


class _Span(NamedTuple):
    """One axis of a tile, in cells of the map that is cut into tiles."""

    start: int
    stop: int
    border_start: int
    border_stop: int

    def core(self, size: int) -> slice:
        """The tile's own part, without the border, of an axis of `size` that was made from it."""
        factor = size // (self.border_stop - self.border_start)
        return slice(
            factor * (self.start - self.border_start), factor * (self.stop - self.border_start)
        )


class _Tail:
    """The levels that run in tiles, for one image."""

    def __init__(self, decoder: Decoder, modulations: list[Modulation], tiled_levels: int) -> None:
        self.decoder = decoder
        self.modulations = modulations
        self.levels = range(tiled_levels - 1, -1, -1)
        upsamplings = min(tiled_levels, len(decoder.up) - 1)
        self.factor = 2**upsamplings
        # Norms: AdaGN and two in every residual block of a level, then norm_out.
        convolutions = 2 * decoder.config.num_res_blocks
        self.num_norms = tiled_levels * (1 + convolutions) + 1
        # Every 3x3 convolution reaches one cell further. From conv_out backwards: those of a level,
        # then the upsampling, which halves what is reached and comes after a convolution itself.
        reach = 1
        for level in reversed(self.levels):
            reach += convolutions
            if level < upsamplings:
                reach = -(-reach // 2) + 1
        self.border = reach

    def run(self, coarse: torch.Tensor, tile_size: int, exact: bool) -> torch.Tensor:
        """[1, C, h, w] -> [1, out_ch, h * factor, w * factor]."""
        cells = max(tile_size // self.factor, 1)
        known: list[_Moments] = []
        for stop in range(self.num_norms) if exact else (None,):
            gathered: list[_Moments] = []
            for rows, columns in _tiles(coarse, cells, self.border):
                self._tile(coarse, _TileNorm(rows, columns, known, gathered, stop))
            # A program goes on after the norm that the pass is for, with what is not settled yet.
            known = known + (gathered if stop is None else gathered[:1])
        _, _, H, W = coarse.shape
        channels = self.decoder.conv_out.out_channels
        image = coarse.new_empty(1, channels, H * self.factor, W * self.factor)
        for rows, columns in _tiles(coarse, cells, self.border):
            tile = self._tile(coarse, _TileNorm(rows, columns, known))
            assert tile is not None
            y = slice(rows.start * self.factor, rows.stop * self.factor)
            x = slice(columns.start * self.factor, columns.stop * self.factor)
            image[:, :, y, x] = tile[..., rows.core(tile.shape[2]), columns.core(tile.shape[3])]
        return image

    def _tile(self, coarse: torch.Tensor, norm: _TileNorm) -> torch.Tensor | None:
        """A tile with its border, or None when `norm` has ended it early."""
        rows, columns = norm.rows, norm.columns
        h = coarse[
            ..., rows.border_start : rows.border_stop, columns.border_start : columns.border_stop
        ]
        try:
            h = self.decoder.levels(h, self.modulations, self.levels, norm)
            return self.decoder.head(h, norm)
        except _Reached:
            return None


def _tiles(coarse: torch.Tensor, cells: int, border: int) -> Iterator[tuple[_Span, _Span]]:
    _, _, height, width = coarse.shape
    for rows in _spans(height, cells, border):
        for columns in _spans(width, cells, border):
            yield rows, columns


def _spans(size: int, cells: int, border: int) -> Iterator[_Span]:
    for start in range(0, size, cells):
        stop = min(start + cells, size)
        # At the map's own edge the convolutions pad with zeros, as in the whole decode.
        yield _Span(start, stop, max(start - border, 0), min(stop + border, size))


class _Reached(Exception):  # noqa: N818  (ends a tile of a gathering pass, is never seen outside)
    pass


class _Moments(NamedTuple):
    """Size, mean and summed squared deviation of each group of values, the latter two float64."""

    size: int
    mean: torch.Tensor
    deviation: torch.Tensor

    @classmethod
    def of(cls, values: torch.Tensor) -> _Moments:
        """Moments of `values` [B, groups, n], each [B, groups]."""
        wide = values.to(torch.promote_types(values.dtype, torch.float32))
        variance, mean = torch.var_mean(wide, dim=-1, correction=0)
        size = values.shape[-1]
        return cls(size, mean.double(), variance.double() * size)

    def joined(self, other: _Moments) -> _Moments:
        """Moments of both sets of values together (Chan, Golub and LeVeque, 1979)."""
        size = self.size + other.size
        shift = other.mean - self.mean
        return _Moments(
            size,
            self.mean + shift * (other.size / size),
            self.deviation + other.deviation + shift**2 * (self.size * other.size / size),
        )


class _TileNorm:
    """Stands in for `group_norm_silu` on one tile.

    The norms are told apart by the order of their calls.

    Args:
        rows: the tile's rows.
        columns: the tile's columns.
        known: moments of the whole map for the first norms.
        gathered: where the tile's moments go for the norms after them, which take the tile's own.
        stop: norm after which the tile ends, or None.
    """

    def __init__(
        self,
        rows: _Span,
        columns: _Span,
        known: list[_Moments],
        gathered: list[_Moments] | None = None,
        stop: int | None = None,
    ) -> None:
        self.rows = rows
        self.columns = columns
        self.known = known
        self.gathered = [] if gathered is None else gathered
        self.stop = stop
        self.calls = 0

    def __call__(
        self,
        x: torch.Tensor,
        num_groups: int,
        weight: torch.Tensor | None = None,
        bias: torch.Tensor | None = None,
        *,
        scale: torch.Tensor | None = None,
        shift: torch.Tensor | None = None,
        silu: bool = True,
        eps: float = 1e-6,
    ) -> torch.Tensor:
        """Normalize as `group_norm_silu` does, with the statistics of the whole map."""
        norm, self.calls = self.calls, self.calls + 1
        moments = self._moments(norm, x, num_groups)
        deviation = (moments.deviation / moments.size + eps).sqrt()
        # y = slope x + offset, the norm's own affine map and the adaptive one included.
        slope = _per_channel(1 / deviation, x)
        offset = _per_channel(-moments.mean / deviation, x)
        for factor, term in ((weight, bias), (scale, shift)):
            if factor is not None:
                slope, offset = slope * factor, offset * factor
            if term is not None:
                offset = offset + term
        dtype = torch.promote_types(x.dtype, torch.float32)
        slope, offset = slope[..., None, None].to(dtype), offset[..., None, None].to(dtype)
        y = torch.addcmul(offset, x.to(dtype), slope)
        return (F.silu(y, inplace=True) if silu else y).to(x.dtype)

    def _moments(self, norm: int, x: torch.Tensor, num_groups: int) -> _Moments:
        if norm < len(self.known):
            return self.known[norm]
        core = x[..., self.rows.core(x.shape[2]), self.columns.core(x.shape[3])]
        own = _Moments.of(core.reshape(x.shape[0], num_groups, -1))
        place = norm - len(self.known)
        if place < len(self.gathered):
            self.gathered[place] = self.gathered[place].joined(own)
        else:
            self.gathered.append(own)
        if norm == self.stop and not is_traced():  # exporters count on a module's call to return
            raise _Reached
        return own


def _per_channel(groups: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Repeat [B, groups] to the channels of `x`, [B, C]."""
    return groups.repeat_interleave(x.shape[1] // groups.shape[1], dim=1)
