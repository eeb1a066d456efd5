"""Classes with few images in an epoch more often."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from bitdance.data.crops import CropDraw
from bitdance.data.images import LabeledImages

__all__ = ["BalancedImages", "repeat_classes"]


def repeat_classes(labels: np.ndarray, balance: float) -> np.ndarray:
    """Numbers of the items of an epoch, int64 [M]; those of small classes are repeated.

    Args:
        labels: int64 [N], classes of the items.
        balance: 0: each item once; 1: as many items of each class as the largest has. Between them
            a class of n items gets n^(1 - balance) m^balance, where m are those of the largest.

    Returns:
        Every item at least once, and the items of a class equally often, to within one.

    Example:
        >>> repeat_classes(np.array([0, 0, 0, 0, 1]), 0.5)
        array([0, 1, 2, 3, 4, 4])
    """
    classes, counts = np.unique(labels, return_counts=True)
    parts = []
    for label, count in zip(classes.tolist(), counts.tolist(), strict=True):
        wanted = round(count ** (1 - balance) * counts.max() ** balance)
        parts.append(np.resize(np.flatnonzero(labels == label), max(count, wanted)))
    return np.concatenate(parts).astype(np.int64)


class BalancedImages:
    """A data set of images whose small classes are repeated; see ``repeat_classes``.

    A repetition is an item of its own, with its own draws.
    """

    def __init__(self, images: LabeledImages, balance: float) -> None:
        self._images, self._items = images, repeat_classes(images.labels, balance)
        self.labels: np.ndarray = images.labels[self._items]
        self.classes, self.size, self.source = images.classes, images.size, images.source

    def __len__(self) -> int:
        return len(self._items)

    def identity(self) -> str:
        """A checksum of the images, each once."""
        return self._images.identity()

    def take(
        self, indices: np.ndarray, crops: Sequence[CropDraw | None] | None = None
    ) -> torch.Tensor:
        """Images by number, uint8 [n, 3, size, size]; see ``LabeledImages``."""
        return self._images.take(self._items[indices], crops)
