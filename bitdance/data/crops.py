"""Square crops of images, with the pixels of ADM's preprocessing, which ImageNet results share."""

from __future__ import annotations

import math
from typing import NamedTuple

from PIL import Image

from bitdance.io.image_files import crop_center, scaled

__all__ = ["CropDraw", "center_crop", "random_crop"]


class CropDraw(NamedTuple):
    """What decides a random crop: three numbers in [0, 1), whatever the image's size.

    Attributes:
        min_crop: smallest share of the shorter side that the crop has.
        scale: draw of that share.
        top: draw of the first row.
        left: draw of the first column.
    """

    min_crop: float
    scale: float
    top: float
    left: float


def center_crop(image: Image.Image, size: int) -> Image.Image:
    """The middle of an image whose shorter side is resized to `size` pixels."""
    return crop_center(_resize(image, size), size, size)


def random_crop(image: Image.Image, size: int, draw: CropDraw) -> Image.Image:
    """A square of an image, which is resized to a drawn size first.

    The shorter side gets `size` to ``size / min_crop`` pixels, each number equally likely, so the
    square has a share of it from 1 to ``min_crop``; its place is drawn too.
    """
    sides = math.ceil(size / draw.min_crop) - size + 1
    resized = _resize(image, size + int(draw.scale * sides))
    top = int(draw.top * (resized.height - size + 1))
    left = int(draw.left * (resized.width - size + 1))
    return resized.crop((left, top, left + size, top + size))


def _resize(image: Image.Image, size: int) -> Image.Image:
    """Resize the shorter side to `size`: halved by averages of 2 x 2, then bicubic."""
    width, height = scaled(image.size, size)
    if width * height > (Image.MAX_IMAGE_PIXELS or math.inf):
        # A long strip is cropped first: resized as a whole, it would have too many pixels.
        side = 3 * min(image.size)
        image = crop_center(image, side, side)
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    return image.resize(scaled(image.size, size), Image.Resampling.BICUBIC)
