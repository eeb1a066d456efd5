"""A visitor's picture through the autoencoder and back."""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from typing import IO

import numpy as np
from PIL import Image

from bitdance.evaluation.reconstruction import reconstruct_image
from bitdance.integrations.demo.bit_map import unpack_bits
from bitdance.integrations.demo.models import DemoModel, InputError
from bitdance.io.image_files import ImageError, crop_center, decode_image, resize_shorter

__all__ = ["MAX_FILE_BYTES", "MAX_PIXELS", "Rebuilt", "read_picture", "rebuild", "sides"]

MAX_FILE_BYTES = 20 << 20
"""Size of a file."""
MAX_PIXELS = 50_000_000
"""Pixels of a picture, before it is made smaller."""
_MAX_SIDE = 1024  # shorter side of what is encoded, unless the model's own images are larger
_MAX_RATIO = 2  # of the sides; the ends of longer pictures are cut off


@dataclass(frozen=True)
class Rebuilt:
    """A picture that was encoded and decoded.

    Attributes:
        original: what was encoded: the middle of the picture, resized.
        image: the reconstruction.
        packed: its bits, uint8 [h, w, ceil(C / 8)].
        bits: the same as uint8 [h, w, C] of 0 and 1.
        psnr_db: peak signal-to-noise ratio in dB; infinity where no pixel differs.
        kept: share of the bits that are the same when the reconstruction is encoded again.
    """

    original: Image.Image
    image: Image.Image
    packed: np.ndarray
    bits: np.ndarray
    psnr_db: float
    kept: float


def read_picture(file: IO[bytes], name: str) -> Image.Image:
    """The picture in a file that a visitor sends, upright, opaque, RGB.

    Args:
        file: the file.
        name: its name, for messages.

    Raises:
        InputError: it is too large, damaged, or no picture.
    """
    content = file.read(MAX_FILE_BYTES + 1)
    if len(content) > MAX_FILE_BYTES:
        raise InputError(
            f"{name} is too large; files of at most {MAX_FILE_BYTES >> 20} MiB can be read."
        )
    if _pixels(content) > MAX_PIXELS:
        raise InputError(
            f"{name} has too many pixels; pictures of at most {MAX_PIXELS // 10**6} million can be "
            "read."
        )
    try:
        return decode_image(content, name)
    except ImageError as error:
        raise InputError(f"{error}.") from error


def sides(model: DemoModel) -> tuple[int, ...]:
    """Shorter sides in pixels to choose from: that of the model's images, twice, four times."""
    own = min(model.size)
    return tuple(own * factor for factor in (1, 2, 4) if factor == 1 or own * factor <= _MAX_SIDE)


def rebuild(model: DemoModel, picture: Image.Image, side: object) -> Rebuilt:
    """Encode a picture and decode it again.

    Args:
        model: whose autoencoder to use.
        picture: an RGB image.
        side: pixels of the shorter side that it is resized to, one of ``sides``.

    Raises:
        InputError: `side` is another.
        NotFiniteError: the autoencoder computes NaN or infinity.
    """
    if side not in sides(model):
        raise InputError("Choose one of the sizes.")
    assert isinstance(side, int)
    autoencoder = model.autoencoder
    factor = autoencoder.config.downsampling
    longest = _MAX_RATIO * min(picture.size)
    picture = resize_shorter(crop_center(picture, longest, longest), side, Image.Resampling.BICUBIC)
    width, height = (pixels // factor * factor for pixels in picture.size)
    original = crop_center(picture, width, height)
    result = reconstruct_image(autoencoder, original)
    channels = autoencoder.config.z_channels
    bits = unpack_bits(result.packed.numpy(), channels)
    again = unpack_bits(reconstruct_image(autoencoder, result.image).packed.numpy(), channels)
    return Rebuilt(
        original, result.image, result.packed.numpy(), bits, result.psnr_db,
        kept=float(np.mean(bits == again)),
    )  # fmt: skip


def _pixels(content: bytes) -> float:
    """Number of pixels, told by the beginning of a file; 0 if that does not tell."""
    try:
        with Image.open(io.BytesIO(content)) as image:
            return image.width * image.height
    except Image.DecompressionBombError:
        return math.inf
    except Exception:  # ``decode_image`` says why
        return 0
