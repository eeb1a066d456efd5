"""Decoding to 8-bit images: from a captured graph if maps are small, in tiles if they are large."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from functools import partial
from typing import Any

import torch

from bitdance.models.autoencoder.autoencoder import BinaryAutoencoder, to_uint8
from bitdance.models.autoencoder.blocks import Decoder
from bitdance.models.autoencoder.packed_weights import can_pack, packed
from bitdance.models.autoencoder.tiling import decode_tiles
from bitdance.models.tracing import is_traced
from bitdance.sampling import graphs
from bitdance.sampling.finite import NotFiniteError, largest
from bitdance.sampling.lru_cache import LRUCache
from bitdance.sampling.workspace import Pool
from bitdance_kernels import default_backend

__all__ = ["MAX_CAPTURED_PIXELS", "ImageDecoder"]

MAX_CAPTURED_PIXELS = {"cpu": 2**14, "cuda": 2**19}
"""Pixels of a batch up to which decoding is captured as a graph, by the type of device.

On the CPU larger batches are decoded in slices, whose maps stay in the caches. On CUDA a graph
keeps the memory of all maps between two calls, about 2 KB a pixel: a gigabyte for eight images of
256 x 256. On an H200 one such image takes 4.4 ms as a graph and 24.9 without, eight take 22.8
and 32.4; larger batches were not timed (``benchmarks/results/gpu-decide.json``).
"""


class ImageDecoder:
    """Decodes to 8-bit images, without gradients, as the autoencoder's settings say.

    These are its ``tiling`` and its ``use_slicing``. Any number of threads may use one object at
    a time. On the CPU an image has the bits that it has alone, whatever the batch, unless its
    weights are trained (``requires_grad``), have fewer than 32 bits or run under autocast, or
    there are no C++ kernels.

    Args:
        autoencoder: the autoencoder whose decoder is used.
    """

    def __init__(self, autoencoder: BinaryAutoencoder) -> None:
        self.autoencoder = autoencoder
        self._graphs: Pool[LRUCache[_Decoding]] = Pool(partial(LRUCache, graphs.MAX_KINDS))
        self._packed = _PackedDecoder()

    def __call__(
        self,
        latents: torch.Tensor,
        *,
        noise: torch.Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> torch.Tensor:
        """Decode binary latents to images.

        Args:
            latents: as for ``BinaryAutoencoder.decode``.
            noise: as for ``BinaryAutoencoder.decode``.
            generator: as for ``BinaryAutoencoder.decode``.

        Returns:
            uint8 [B, out_ch, h * downsampling, w * downsampling], channels-last: ``to_uint8`` of
            what ``decode`` returns.

        Raises:
            TypeError, ValueError: as in ``BinaryAutoencoder.decode``.
            NotFiniteError: an image holds NaN or infinity. To know it, the host waits for a GPU;
                exported and compiled programs do not look.
        """
        autoencoder = self.autoencoder
        if is_traced():
            with torch.no_grad():
                return to_uint8(autoencoder.decode(latents, noise=noise, generator=generator))
        with self._graphs.lease() as kept:
            # Autograd's share of a call shows between the small maps of a small model.
            with torch.inference_mode():
                latents, noise = autoencoder.decoder_inputs(
                    latents, noise=noise, generator=generator
                )
                levels = self._tiled_levels(latents)
                images = self._images_at_once(latents, levels)
                if len(latents) and (levels or images < len(latents)):
                    pixels, peaks = self._in_slices(kept, latents, noise, images, levels)
                else:
                    pixels, peaks = self._decoding(kept, latents)(latents, noise)
            # An ordinary tensor of its own memory. Made before the host waits for the peaks, since
            # the next call, perhaps on another stream, overwrites what a graph has written.
            pixels = pixels.clone()
            if not peaks.is_meta:  # which has no values
                faults = [i for i, peak in enumerate(peaks.tolist()) if not math.isfinite(peak)]
                if faults:
                    raise NotFiniteError("decode", dict.fromkeys(faults))
            return pixels

    def clear(self) -> None:
        """Drop the graphs that no call uses, and their memory."""
        self._graphs.clear()
        self._packed.clear()

    def _tiled_levels(self, latents: torch.Tensor) -> int:
        """Levels of the decoder that run in tiles; 0 for images that are decoded whole."""
        config, tiling = self.autoencoder.config, self.autoencoder.tiling
        if tiling is None:
            return 0
        height, width = (side * config.downsampling for side in latents.shape[2:])
        return tiling.levels(height, width, len(config.ch_mult))

    def _images_at_once(self, latents: torch.Tensor, levels: int) -> int:
        if levels or self.autoencoder.use_slicing:
            return 1
        if latents.device.type != "cpu":
            return len(latents)
        return max(1, MAX_CAPTURED_PIXELS["cpu"] // self._pixels(latents))

    def _pixels(self, latents: torch.Tensor) -> int:
        """Pixels of an image."""
        height, width = latents.shape[2:]
        return height * width * self.autoencoder.config.downsampling**2

    def _in_slices(
        self,
        kept: LRUCache[_Decoding],
        latents: torch.Tensor,
        noise: torch.Tensor | None,
        images: int,
        levels: int,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """As a ``_Decoding``, so many images at a time, with so many levels in tiles."""
        slices = latents.split(images)
        noises = [None] * len(slices) if noise is None else noise.split(images)
        pixels, peaks = [], []
        for some, drawn in zip(slices, noises, strict=True):
            if levels:
                decoded, peak = self._decode_tiles(some, drawn, levels)
            else:
                decoded, peak = self._decoding(kept, some)(some, drawn)
            pixels.append(decoded.clone())  # the next call overwrites what a graph has written
            peaks.append(peak.clone())
        return torch.cat(pixels), torch.cat(peaks)

    def _decode_tiles(
        self, latents: torch.Tensor, noise: torch.Tensor | None, levels: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        tiling = self.autoencoder.tiling
        assert tiling is not None
        images = decode_tiles(
            self.autoencoder.decoder, latents, noise, tile_size=tiling.tile_size,
            tiled_levels=levels, exact=tiling.exact,
        )  # fmt: skip
        pixels = to_uint8(images).contiguous(memory_format=torch.channels_last)
        return pixels, largest(images)

    def _decoding(self, kept: LRUCache[_Decoding], latents: torch.Tensor) -> _Decoding:
        """How to decode such latents: from a graph if maps are small, where the host would lag."""
        decoder, device = self.autoencoder.decoder, latents.device
        large = latents.shape[0] * self._pixels(latents) > MAX_CAPTURED_PIXELS.get(device.type, 0)
        if large or torch.is_autocast_enabled(device.type):
            return _Decoding(decoder, graphs.run_eager)
        versions = graphs.parameter_versions(decoder)
        return kept.get(
            (device, *versions),
            (default_backend(), latents.shape),
            lambda: _Decoding(self._packed.of(decoder, versions), graphs.make_call_runner(device)),
        )


class _Decoding:
    """A decoder with 8-bit results, for latents of one shape.

    Args:
        decoder: the decoder.
        runner: see ``graphs``.
    """

    def __init__(self, decoder: Decoder, runner: graphs.Runner) -> None:
        self._decoder, self._runner = decoder, runner

    def __call__(
        self, latents: torch.Tensor, noise: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """uint8 [B, out_ch, H, W] and ``largest`` [B], both overwritten by the next call."""
        return self._runner(self._decode, latents, noise)

    def _decode(
        self, latents: torch.Tensor, noise: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        images = self._decoder(latents, noise)
        return to_uint8(images), largest(images)


class _PackedDecoder:
    """The packed decoder of the latest weights, which all graphs read. Copies of it are empty."""

    def __init__(self) -> None:
        self._latest: tuple[Sequence[Hashable], Decoder] | None = None

    def of(self, decoder: Decoder, versions: Sequence[Hashable]) -> Decoder:
        """`decoder` packed, or itself if it cannot be.

        Args:
            decoder: the decoder.
            versions: ``graphs.parameter_versions`` of it.
        """
        if not can_pack(decoder):
            return decoder
        # Read once and written once: threads that come at the same time may each pack, no more.
        latest = self._latest
        if latest is None or latest[0] != versions:
            self._latest = latest = (versions, packed(decoder))
        return latest[1]

    def clear(self) -> None:
        """Drop it."""
        self._latest = None

    def __deepcopy__(self, memo: dict[int, Any]) -> _PackedDecoder:
        return _PackedDecoder()

    def __reduce__(self) -> tuple[type[_PackedDecoder], tuple[()]]:
        return _PackedDecoder, ()
