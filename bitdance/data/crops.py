"""Crops of images, with the pixels of ADM's preprocessing, which ImageNet results share."""

from __future__ import annotations

import math
from typing import NamedTuple

from PIL import Image

from bitdance.io.image_files import crop_center

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


def center_crop(image: Image.Image, height: int, width: int) -> Image.Image:
    """The middle of an image that is resized until it just covers `height` x `width` pixels."""
    return crop_center(_resize(image, height, width), width, height)


def random_crop(image: Image.Image, size: int, draw: CropDraw) -> Image.Image:
    """A square of an image, which is resized to a drawn size first.

    The shorter side gets `size` to ``size / min_crop`` pixels, each number equally likely, so the
    square has a share of it from 1 to ``min_crop``; its place is drawn too.
    """
    sides = math.ceil(size / draw.min_crop) - size + 1
    side = size + int(draw.scale * sides)
    resized = _resize(image, side, side)
    top = int(draw.top * (resized.height - size + 1))
    left = int(draw.left * (resized.width - size + 1))
    return resized.crop((left, top, left + size, top + size))


def _resize(image: Image.Image, height: int, width: int) -> Image.Image:
    """Resize to cover `height` x `width` pixels: halved by averages of 2 x 2, then bicubic."""
    columns, rows = _covering(image.size, height, width)
    if columns * rows > (Image.MAX_IMAGE_PIXELS or math.inf):
        # A long strip is cropped first: resized as a whole, it would have too many pixels.
        scale = 3 * min(image.width / width, image.height / height)
        image = crop_center(image, math.ceil(scale * width), math.ceil(scale * height))
    while image.width >= 2 * width and image.height >= 2 * height:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    return image.resize(_covering(image.size, height, width), Image.Resampling.BICUBIC)


def _covering(size: tuple[int, int], height: int, width: int) -> tuple[int, int]:
    """Width and height of an image of `size` that is scaled to cover `height` x `width` pixels."""
    scale = max(width / size[0], height / size[1])
    return max(width, round(size[0] * scale)), max(height, round(size[1] * scale))
