"""Images that are read once and kept in memory."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from bitdance.data.crops import CropDraw
from bitdance.data.images import LabeledImages

__all__ = ["CachedImages"]

_AT_ONCE = 1024  # images of a call while they are read


class CachedImages:
    """A data set of images, read when it is made and kept in memory: 3 size^2 bytes an image.

    Decoding small files in every epoch keeps a card waiting. Each process keeps its own copy.
    Random crops need the files, so they are refused.

    Args:
        images: the data set.

    Raises:
        ImageError: an image cannot be read.
    """

    def __init__(self, images: LabeledImages) -> None:
        self._identity = images.identity()
        self.labels: np.ndarray = images.labels
        self.classes, self.size, self.source = images.classes, images.size, images.source
        shape = len(images), 3, images.size, images.size
        self._pixels = torch.empty(shape, dtype=torch.uint8, device="cpu")
        for items in np.split(np.arange(len(images)), range(_AT_ONCE, len(images), _AT_ONCE)):
            self._pixels[items[0] : items[-1] + 1] = images.take(items)

    def __len__(self) -> int:
        return len(self._pixels)

    def identity(self) -> str:
        """A checksum of the images."""
        return self._identity

    def take(
        self, indices: np.ndarray, crops: Sequence[CropDraw | None] | None = None
    ) -> torch.Tensor:
        """Images by number, uint8 [n, 3, size, size]; see ``LabeledImages``.

        Raises:
            ValueError: there are random crops.
        """
        if crops is not None and any(crop is not None for crop in crops):
            raise ValueError("CachedImages.take: crops must be None, since the files are not kept")
        return self._pixels[torch.from_numpy(np.ascontiguousarray(indices))]
