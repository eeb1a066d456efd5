"""Sheets of pictures."""

from __future__ import annotations

import math
from collections.abc import Sequence

from PIL import Image

__all__ = ["grid"]


def grid(images: Sequence[Image.Image], columns: int, zoom: int = 1) -> Image.Image:
    """Images of one size in rows of `columns`, two pixels apart, each enlarged `zoom` times."""
    width, height = (side * zoom for side in images[0].size)
    rows = math.ceil(len(images) / columns)
    gap = 2
    size = (columns * (width + gap) - gap, rows * (height + gap) - gap)
    sheet = Image.new("RGB", size, "white")
    for i, image in enumerate(images):
        if zoom > 1:
            image = image.resize((width, height), Image.Resampling.NEAREST)
        sheet.paste(image, (i % columns * (width + gap), i // columns * (height + gap)))
    return sheet
