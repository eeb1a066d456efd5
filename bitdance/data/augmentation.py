"""Random crops, flips and translations of training items, a function of (seed, step, item)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from bitdance.data.crops import CropDraw
from bitdance.data.images import LabeledImages
from bitdance.data.packed_dataset import Variants
from bitdance_kernels import noise_words

__all__ = ["Augmentation"]

_STREAM = 2**32 - 1  # of the counter's words: no step of a sampler is as high
_DRAWS = 7


@dataclass(frozen=True)
class Augmentation:
    """Random changes of the items of a data set.

    What happens to an item in a step is a function of the seed, the step and the item's number, so
    it is the same whichever process or thread loads it.

    Args:
        seed: seed of the draws.
        flip: mirror half of the items.
        shift: largest translation in pixels; the edge is repeated.
        min_crop: smallest share of the shorter side that a random crop has; 1 crops the middle.
        crop_decay: steps between which the share of items with a random crop falls from 1 to 0;
            empty: it stays 1.
    """

    seed: int = 0
    flip: bool = False
    shift: int = 0
    min_crop: float = 1.0
    crop_decay: tuple[int, ...] = ()

    def cropped_share(self, step: int) -> float:
        """Share of the items of a step that get a random crop."""
        if self.min_crop == 1:
            return 0.0
        if not self.crop_decay:
            return 1.0
        start, end = self.crop_decay
        return min(1.0, max(0.0, (end - step) / (end - start)))

    def take(self, images: LabeledImages, items: np.ndarray, step: int) -> torch.Tensor:
        """Images of a batch, augmented: uint8 [n, 3, size, size].

        Args:
            images: the data set.
            items: int64 [n], numbers of the images.
            step: number of the step.

        Raises:
            ImageError: an image cannot be read.
        """
        draws = self._draws(items, step)
        if self.min_crop == 1:
            pixels = images.take(items)
        else:
            crops = [
                CropDraw(self.min_crop, *draw) if chosen else None
                for chosen, draw in zip(
                    self._cropped(draws, step), draws[:, 1:4].tolist(), strict=True
                )
            ]
            pixels = images.take(items, crops)
        if self.flip:
            mirrored = torch.from_numpy(self._flipped(draws))
            pixels = torch.where(mirrored[:, None, None, None], pixels.flip(-1), pixels)
        return _translate(pixels, self.shift, draws[:, 5:7]) if self.shift else pixels

    def choose(self, variants: Variants, items: np.ndarray, step: int) -> np.ndarray:
        """Number of the variant of each item in a data set of codes, int64 [n].

        Args:
            variants: the variants that it has.
            items: int64 [n], numbers of the images.
            step: number of the step.
        """
        draws = self._draws(items, step)
        crop = np.where(self._cropped(draws, step), 1 + draws[:, 1] * variants.crops, 0)
        mirrored = self.flip & self._flipped(draws)
        return crop.astype(np.int64) * (1 + variants.flips) + mirrored

    def _cropped(self, draws: np.ndarray, step: int) -> np.ndarray:
        return np.asarray(draws[:, 0] < self.cropped_share(step))

    def _flipped(self, draws: np.ndarray) -> np.ndarray:
        return np.asarray(draws[:, 4] < 0.5)

    def _draws(self, items: np.ndarray, step: int) -> np.ndarray:
        """float64 [n, _DRAWS] in [0, 1)."""
        seed = self.seed - 2**64 if self.seed >= 2**63 else self.seed
        numbers = torch.from_numpy(np.ascontiguousarray(items, np.int64))
        keys = torch.stack(
            [torch.full_like(numbers, seed), torch.full_like(numbers, _STREAM), numbers], dim=1
        )
        return noise_words(keys, step, _DRAWS).double().numpy() * 2.0**-32


def _translate(images: torch.Tensor, shift: int, draws: np.ndarray) -> torch.Tensor:
    """Translate images [B, 3, H, W] by up to `shift` pixels in each direction."""
    height, width = images.shape[2:]
    padded = F.pad(images.float(), (shift,) * 4, mode="replicate").to(images.dtype)
    offsets = (draws * (2 * shift + 1)).astype(np.int64).tolist()
    moved = [p[:, y : y + height, x : x + width] for p, (y, x) in zip(padded, offsets, strict=True)]
    return torch.stack(moved)
