"""Detection of NaN and infinity in predictions: on the device, reported once per batch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch

__all__ = ["NotFiniteError", "check_predictions", "largest"]


class NotFiniteError(RuntimeError):
    """A model computed NaN or infinity in place of an image.

    Attributes:
        images: number of every image concerned, and the first AR step whose prediction is not
            finite, or None if it is the decoder's result.
    """

    def __init__(self, function: str, images: Mapping[int, int | None]) -> None:
        self.function, self.images = function, dict(images)
        named = [
            f"{image} (the decoder)" if step is None else f"{image} (from AR step {step})"
            for image, step in list(self.images.items())[:8]
        ]
        more = f" and {len(self.images) - len(named)} more" if len(self.images) > 8 else ""
        super().__init__(
            f"{function}: predictions must be finite, got NaN or infinity in image "
            f"{', '.join(named)}{more}; look for NaN in the weights, or for an overflow of float16"
        )

    def numbered(self, function: str, images: Sequence[int]) -> NotFiniteError:
        """The same error with number `images[i]` in place of each i."""
        return NotFiniteError(function, {images[i]: step for i, step in self.images.items()})


def largest(x: torch.Tensor) -> torch.Tensor:
    """Largest magnitude of each row of `x` [B, ...], float32 [B]; NaN in a row that has one."""
    return torch.linalg.vector_norm(x.float(), math.inf, dim=tuple(range(1, x.dim())))


def check_predictions(function: str, predictions: torch.Tensor, count: int) -> None:
    """Raise NotFiniteError if a prediction is not finite. Waits for the device.

    Args:
        function: function that was called, for the error.
        predictions: predictions of every AR step, [steps, rows, P, C].
        count: number of images; row r belongs to image r % count.
    """
    if predictions.is_meta or not predictions.numel():  # the meta device has no values
        return
    steps, rows = predictions.shape[:2]
    peaks = largest(predictions.flatten(0, 1)).view(steps, rows).cpu()
    first: dict[int, int] = {}
    for step, row in (~peaks.isfinite()).nonzero().tolist():  # in order of the steps
        first.setdefault(row % count, step)
    if first:
        raise NotFiniteError(function, {image: first[image] for image in sorted(first)})
