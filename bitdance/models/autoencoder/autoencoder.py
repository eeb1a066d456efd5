"""The binary autoencoder of BitDance and of UniWeTok: images to binary latents and back."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bitdance.io.validation import exact_int, parse_dtype
from bitdance.io.weights import load_weights
from bitdance.models.autoencoder.blocks import Decoder, Encoder
from bitdance.models.autoencoder.quantizer import (
    BinaryQuantizer,
    QuantizerOutput,
    pack_latents,
    unpack_latents,
)
from bitdance.models.autoencoder.tiling import Tiling, decode_tiles
from bitdance.models.config import AutoencoderConfig
from bitdance.models.loading.autoencoder_files import read_autoencoder
from bitdance.models.loading.hub import locate
from bitdance.models.loading.meta_device import (
    autoencoder_block_counts,
    build_on_meta,
    check_block_counts,
)
from bitdance.models.token_order import generation_order, latents_to_tokens

__all__ = ["BinaryAutoencoder", "to_uint8"]

_MIDDLE = torch.tensor(128.0, dtype=torch.float32, device="cpu")
"""A sum that begins with it is one pass."""


class BinaryAutoencoder(nn.Module):
    """Convolutional autoencoder whose latent is the sign of every channel.

    Images are NCHW in [-1, 1]. Latents are a map [B, C, h, w] of +1 and -1 (C = ``z_channels``
    bits for each square of ``downsampling`` pixels a side), or packed: uint8
    [B, h, w, ceil(C / 8)], channel c in bit c % 8 of byte c // 8. Only latents of +1 and -1 carry
    gradients (straight through).

    Parameter names are those of the official checkpoints, for both architectures, with and without
    noise input.

    Args:
        config: shape of the model.
        quantizer: the quantizer with the weights of its losses, by default one as `config` says.
        **factory: ``dtype`` and ``device`` as torch.nn's layers take them.

    Attributes:
        tiling: how images larger than a tile are decoded to 8 bits, None for whole; see
            ``enable_tiling``.
        use_slicing: whether the images of a batch are decoded to 8 bits one after the other; see
            ``enable_slicing``.

    Example:
        >>> import torch
        >>> from bitdance.models.config import AutoencoderConfig
        >>> config = AutoencoderConfig(ch=32, ch_mult=(1, 1), num_res_blocks=1)
        >>> model = BinaryAutoencoder(config).eval()
        >>> with torch.no_grad():
        ...     packed = model.encode(torch.zeros(1, 3, 8, 8), packed=True)
        ...     image = model.decode(packed)
        >>> packed.shape, image.shape
        (torch.Size([1, 4, 4, 4]), torch.Size([1, 3, 8, 8]))
    """

    def __init__(
        self, config: AutoencoderConfig, *, quantizer: BinaryQuantizer | None = None, **factory: Any
    ) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config, **factory)
        self.decoder = Decoder(config, **factory)
        self.quantizer = quantizer or BinaryQuantizer(config.z_channels, config.num_codebooks)
        self.tiling: Tiling | None = None
        self.use_slicing = False

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        *,
        config: AutoencoderConfig | str | Path | None = None,
        weights: str = "ema",
        dtype: torch.dtype | str | None = None,
        torch_dtype: torch.dtype | str | None = None,
        device: str | torch.device = "cpu",
        revision: str | None = None,
        subfolder: str | None = None,
        local_files_only: bool = False,
    ) -> BinaryAutoencoder:
        """Load an autoencoder; either all of it is loaded or nothing.

        Args:
            source: an official file (``.pt`` or ``.safetensors``), whose configuration is read
                from "<name>_config.json" beside it, or told by its shapes; a folder of a training
                run or of a text-to-image release; the source of a ``BitDancePipeline``, whose
                autoencoder is taken; or the id "owner/name" of a Hugging Face repository with such
                a folder, or "owner/name/file" for one file of it (needs
                ``pip install 'bitdance[hub]'``).
            config: shape of the autoencoder, if the file does not tell it: an
                ``AutoencoderConfig``, the name of a preset, or a ``.json`` or ``.toml`` file with
                its fields. A file that tells another is an error.
            weights: "ema" or "model", for files that hold both.
            dtype: dtype of the parameters or its name, by default float32.
            torch_dtype: the older name of `dtype`.
            device: device of the autoencoder.
            revision: revision of a Hugging Face repository.
            subfolder: folder of the autoencoder in `source`.
            local_files_only: use only files that were downloaded before.

        Returns:
            An autoencoder in evaluation mode, whose parameters need no gradients.

        Raises:
            FileNotFoundError: there is no such file, folder or repository.
            CheckpointError: the files are damaged, hold code, or do not fit; nothing is loaded.
            ValueError: an argument is out of range.
        """
        parsed = parse_dtype("from_pretrained", dtype, torch_dtype)
        path = locate(
            source, revision=revision, local_files_only=local_files_only, autoencoder=True,
            subfolder=subfolder,
        )  # fmt: skip
        shape, tensors = read_autoencoder(path, prefer=weights, config=config)
        check_block_counts(tensors, autoencoder_block_counts(shape), cls.__name__, str(source))
        model = build_on_meta(lambda: cls(shape, dtype=parsed, device="meta"), str(source))
        load_weights(model, tensors, str(source))
        return model.to(device).eval().requires_grad_(False)

    def forward(
        self,
        images: torch.Tensor,
        *,
        noise: torch.Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> tuple[torch.Tensor, QuantizerOutput]:
        """Encode, quantize and decode.

        Args:
            images: [B, in_channels, H, W] in [-1, 1].
            noise: as for `decode`.
            generator: as for `decode`.

        Returns:
            The reconstruction [B, out_ch, H, W], and the quantizer's output, with losses in
            training mode.

        Raises:
            TypeError, ValueError: as in `encode` and `decode`.
        """
        quantized = self.quantize(self.features(images), with_losses=self.training)
        return self.decode(quantized.latents, noise=noise, generator=generator), quantized

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """Encoder output before its sign is taken.

        Args:
            images: [B, in_channels, H, W], floating point in [-1, 1].

        Returns:
            [B, z_channels, h, w] of the dtype of the parameters, or of autocast where it is on.

        Raises:
            TypeError: `images` is not floating point.
            ValueError: `images` has another shape, or H or W is not a positive multiple of
                ``downsampling`` (for UniWeTok: of at least twice that).
        """
        config = self.config
        if not images.is_floating_point():
            raise TypeError(f"images must be floating point in [-1, 1], got {images.dtype}")
        if images.dim() != 4 or images.shape[1] != config.in_channels:
            raise ValueError(
                f"images must be [B, {config.in_channels}, H, W], got {list(images.shape)}"
            )
        # UniWeTok's encoder spreads positions from the first cell to the last: one cell has no
        # spread.
        min_side = config.downsampling * (2 if config.architecture == "conv_attention" else 1)
        if any(side % config.downsampling != 0 or side < min_side for side in images.shape[2:]):
            raise ValueError(
                f"images must have height and width that are multiples of {config.downsampling} "
                f"and at least {min_side}, got {list(images.shape[2:])}"
            )
        return self.encoder(images.to(self._dtype))

    def quantize(self, features: torch.Tensor, *, with_losses: bool = False) -> QuantizerOutput:
        """Take the sign of `features` [B, z_channels, h, w]; see `BinaryQuantizer`."""
        return self.quantizer(features, with_losses=with_losses)

    def encode(self, images: torch.Tensor, *, packed: bool = False) -> torch.Tensor:
        """Encode images to binary latents.

        Args:
            images: [B, in_channels, H, W], floating point in [-1, 1].
            packed: return bits instead of +1 and -1.

        Returns:
            [B, z_channels, h, w] of +1 and -1 in the dtype of `features`, or uint8
            [B, h, w, ceil(z_channels / 8)].

        Raises:
            TypeError, ValueError: as in `features`.
        """
        features = self.features(images)
        return pack_latents(features) if packed else self.quantize(features).latents

    def encode_list(
        self, images: Sequence[torch.Tensor], *, patch_size: int = 1, max_batch: int = 32
    ) -> torch.Tensor:
        """Encode images of different sizes into one sequence of tokens.

        Images of one size are encoded together. Within an image the tokens are in patch-raster
        order: patches of `patch_size` x `patch_size` latents row by row, and row by row inside a
        patch.

        Args:
            images: each [in_channels, H, W] or [1, in_channels, H, W], floating point in [-1, 1].
            patch_size: side of a patch, in latents.
            max_batch: maximum number of images that are encoded at a time.

        Returns:
            [tokens of all images, z_channels] of +1 and -1, in the order of `images`.

        Raises:
            TypeError, ValueError: as in `features`; also when `images` is empty, `patch_size` does
                not divide the latents of an image, or `max_batch` is less than 1.
        """
        if not images:
            raise ValueError("images must be a sequence of at least one image, got none")
        for name, value in (("patch_size", patch_size), ("max_batch", max_batch)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        by_size: dict[torch.Size, list[int]] = defaultdict(list)
        flat = [image[0] if image.dim() == 4 and len(image) == 1 else image for image in images]
        for index, image in enumerate(flat):
            by_size[image.shape].append(index)
        tokens: dict[int, torch.Tensor] = {}
        for indices in by_size.values():
            for start in range(0, len(indices), max_batch):
                chunk = indices[start : start + max_batch]
                latents = self.encode(torch.stack([flat[index] for index in chunk]))
                h, w = latents.shape[2:]
                if h % patch_size != 0 or w % patch_size != 0:
                    raise ValueError(
                        f"patch_size must divide height and width of all latents, got {patch_size} "
                        f"for {h} x {w}"
                    )
                order = generation_order((h, w), patch_size**2, "patch", latents.device)
                tokens.update(zip(chunk, latents_to_tokens(latents, 1, order), strict=True))
        return torch.cat([tokens[index] for index in range(len(flat))])

    def decode(
        self,
        latents: torch.Tensor,
        *,
        noise: torch.Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> torch.Tensor:
        """Decode binary latents to images.

        Args:
            latents: [B, z_channels, h, w] of +1 and -1, or packed: uint8
                [B, h, w, ceil(z_channels / 8)].
            noise: [B, z_channels, h, w], standard normal, for a model with ``gan_decoder``; drawn
                where it is None.
            generator: source of the noise.

        Returns:
            [B, out_ch, h * downsampling, w * downsampling] of the dtype of the parameters, or of
            autocast where it is on; nominally in [-1, 1] but not clamped, see `to_uint8`.

        Raises:
            TypeError: `latents` is neither floating point nor uint8.
            ValueError: a wrong shape; noise for a model that takes none; or latents of a single
                position, whose deviation over positions AdaGN cannot take.
        """
        return self.decoder(*self.decoder_inputs(latents, noise=noise, generator=generator))

    def decoder_inputs(
        self,
        latents: torch.Tensor,
        *,
        noise: torch.Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Arguments of ``decoder``, checked: unpacked latents, and noise if the decoder takes any.

        Args:
            latents: as for `decode`.
            noise: as for `decode`.
            generator: as for `decode`.

        Raises:
            TypeError, ValueError: as in `decode`.
        """
        latents = self._unpacked(latents)
        return latents, self._noise(latents, noise, generator)

    def enable_tiling(self, tile_size: int = 512, *, exact: bool = True) -> None:
        """Decode images with more pixels than a tile as ``decode_tiled`` does.

        It is what pipelines, ``bitdance serve`` and ``reconstruct`` do from then on; ``decode``
        itself, which training uses, stays as it is. As many levels run in tiles as it takes for no
        map of the others to be larger than a tile: then memory depends on `tile_size`, and beside
        it only on the image and its latents.

        Args:
            tile_size: side of a tile in pixels, at least ``downsampling``.
            exact: as for ``decode_tiled``.

        Raises:
            TypeError: an argument has another type.
            ValueError: `tile_size` is out of range.
        """
        side = exact_int("enable_tiling", "tile_size", tile_size, self.config.downsampling)
        self.tiling = Tiling(side, bool(exact))

    def disable_tiling(self) -> None:
        """Decode every image whole."""
        self.tiling = None

    def enable_slicing(self) -> None:
        """Decode the images of a batch one after the other, in the memory of one.

        It is what pipelines and ``bitdance serve`` do from then on; images have the same bits.
        """
        self.use_slicing = True

    def disable_slicing(self) -> None:
        """Decode all images of a batch at a time."""
        self.use_slicing = False

    def decode_tiled(
        self,
        latents: torch.Tensor,
        *,
        noise: torch.Tensor | None = None,
        generator: torch.Generator | None = None,
        tile_size: int = 256,
        tiled_levels: int = 1,
        exact: bool = True,
    ) -> torch.Tensor:
        """Decode in bounded memory, without gradients.

        One image at a time, its finest levels in tiles. The coarser levels run on all latents, so
        memory still grows with the image, but ``4 ** tiled_levels`` times more slowly than that of
        `decode`. Convolutions, attention and AdaGN's statistics of the latents are exact in either
        mode, since tiles have borders that cover the receptive field, and all latents are known.
        GroupNorm's statistics run over the whole map:

        * exact: they are gathered norm by norm, in as many passes over the tiles as the tiled
          levels have norms, n. The result equals that of `decode` up to rounding; the tiled levels
          cost about n / 2 + 1 times as much (n is 10 for one level of four residual blocks, 19 for
          two).
        * not exact: they are estimated in one pass in which every tile normalizes itself. The tiled
          levels cost twice as much. There are no seams, but contrast and color can be slightly
          off.

        Args:
            latents: as for `decode`.
            noise: as for `decode`.
            generator: as for `decode`; draws the same noise.
            tile_size: side of a tile in pixels, at least ``2 ** tiled_levels``; rounded down to
                whole cells.
            tiled_levels: levels that run in tiles, counted from the finest.
            exact: see above.

        Returns:
            As `decode`.

        Raises:
            TypeError, ValueError: as in `decode`; also when `tile_size` or `tiled_levels` is out of
                range.
        """
        levels = len(self.config.ch_mult)
        if not 1 <= tiled_levels <= levels:
            raise ValueError(f"tiled_levels must be between 1 and {levels}, got {tiled_levels}")
        if tile_size < 2**tiled_levels:
            raise ValueError(
                f"tile_size must be at least {2**tiled_levels} for {tiled_levels} tiled levels, "
                f"got {tile_size}"
            )
        return decode_tiles(
            self.decoder,
            *self.decoder_inputs(latents, noise=noise, generator=generator),
            tile_size=tile_size,
            tiled_levels=tiled_levels,
            exact=exact,
        )

    @property
    def _dtype(self) -> torch.dtype:
        return self.decoder.conv_in.weight.dtype

    def _unpacked(self, latents: torch.Tensor) -> torch.Tensor:
        """Codes as [B, z_channels, h, w] in the weights' dtype, checked."""
        bits = self.config.z_channels
        if latents.dtype == torch.uint8:
            size = -(-bits // 8)
            if latents.dim() != 4 or latents.shape[-1] != size:
                raise ValueError(
                    f"packed latents must be [B, h, w, {size}], got {list(latents.shape)}"
                )
            latents = unpack_latents(latents, bits, self._dtype)
        elif not latents.is_floating_point():
            raise TypeError(f"latents must be floating point or packed uint8, got {latents.dtype}")
        elif latents.dim() != 4 or latents.shape[1] != bits:
            raise ValueError(f"latents must be [B, {bits}, h, w], got {list(latents.shape)}")
        if latents.shape[2] * latents.shape[3] < 2:
            raise ValueError(
                "latents must have at least 2 positions, over which AdaGN normalizes, got "
                f"h, w = {list(latents.shape[2:])}"
            )
        # One memory layout, so that the same latents give the same image however they came.
        return latents.to(self._dtype).contiguous(memory_format=torch.channels_last)

    def _noise(
        self, latents: torch.Tensor, noise: torch.Tensor | None, generator: torch.Generator | None
    ) -> torch.Tensor | None:
        if not self.config.gan_decoder:
            if noise is not None:
                raise ValueError(
                    "noise must be None: this decoder takes none (gan_decoder is false)"
                )
            return None
        if noise is None:
            device = latents.device if generator is None else generator.device
            # Drawn in float32 on the generator's device: the same for every model dtype and device.
            noise = torch.randn(
                latents.shape, generator=generator, dtype=torch.float32, device=device
            )
        elif noise.shape != latents.shape:
            raise ValueError(
                f"noise must be {list(latents.shape)} like latents, got {list(noise.shape)}"
            )
        return noise.to(latents)


def to_uint8(images: torch.Tensor) -> torch.Tensor:
    """Convert images to 8 bits: clamp(127.5 x + 128, 0, 255), the fraction cut off.

    Args:
        images: any shape, floating point, nominally in [-1, 1].

    Returns:
        uint8, the same shape.

    Raises:
        TypeError: `images` is not floating point.
    """
    if not images.is_floating_point():
        raise TypeError(f"images must be floating point, got {images.dtype}")
    return torch.add(_MIDDLE, images.float(), alpha=127.5).clamp_(0, 255).to(torch.uint8)
