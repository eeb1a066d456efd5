"""Progress, previews and cancelling of a call of a pipeline."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from comfy import model_management
from comfy.utils import ProgressBar

__all__ = ["Progress"]

_LATENTS = "generated_latents"
_PREVIEW_PIXELS = 512  # ComfyUI shows previews of this size


class Progress:
    """The callback of a pipeline's call, which moves the progress bar of the running node.

    Args:
        previews: previews of the first image during the call, evenly spread over its steps.
        seed: seed of the call.
        size: height and width as ``pipeline.preview`` takes them, if it does.
    """

    def __init__(self, previews: int, seed: int, size: Mapping[str, int]) -> None:
        self._previews, self._seed, self._size = previews, seed, size
        self._bar = ProgressBar(1)  # the first step tells how many there are

    @property
    def tensor_inputs(self) -> list[str]:
        """Tensors that the pipeline gives to the callback."""
        return [_LATENTS] if self._previews else []

    def __call__(
        self, pipeline: Any, step: int, timestep: int, tensors: dict[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        """Report a step; raise ComfyUI's exception if the user has cancelled the workflow."""
        model_management.throw_exception_if_processing_interrupted()
        done, total = step + 1, step + 1 + timestep
        preview = None
        if self._is_due(done, total):
            image = pipeline.preview(tensors[_LATENTS][:1], seed=self._seed, **self._size)[0]
            preview = ("JPEG", image.convert("RGB"), _PREVIEW_PIXELS)
        self._bar.update_absolute(done, total, preview)
        return tensors

    def _is_due(self, done: int, total: int) -> bool:
        """Whether a preview follows this step; none follows the last, which ends the image."""
        parts = self._previews + 1
        return done < total and done * parts // total > (done - 1) * parts // total
