"""Grids of images."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from PIL import Image

__all__ = ["grid", "grid_size", "to_images"]

_GAP = 2  # pixels between images


def grid(
    images: Sequence[Image.Image], columns: int, zoom: int = 1, *, gap: int = _GAP
) -> Image.Image:
    """Images of one size in rows of `columns`, each enlarged `zoom` times."""
    width, height = (side * zoom for side in images[0].size)
    size = grid_size(len(images), columns, width, height, gap=gap)
    sheet = Image.new("RGB", size, "white")
    for i, image in enumerate(images):
        if zoom > 1:
            image = image.resize((width, height), Image.Resampling.NEAREST)
        sheet.paste(image, (i % columns * (width + gap), i // columns * (height + gap)))
    return sheet


def grid_size(
    count: int, columns: int, width: int, height: int | None = None, *, gap: int = _GAP
) -> tuple[int, int]:
    """Width and height of a grid of `count` images, which are square unless `height` is given."""
    rows = math.ceil(count / columns)
    return columns * (width + gap) - gap, rows * ((height or width) + gap) - gap


def to_images(pixels: torch.Tensor) -> list[Image.Image]:
    """PIL images of uint8 [N, 3, H, W]."""
    arrays = pixels.cpu().permute(0, 2, 3, 1).contiguous().numpy()
    return [Image.fromarray(array) for array in arrays]
