"""Pipelines of this library whose parameters diffusers moves between devices."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from bitdance.pipelines.base import BasePipeline
from bitdance.pipelines.class_conditional import BitDancePipeline
from bitdance.pipelines.text_to_image import BitDanceT2IPipeline

__all__ = ["MovedClassPipeline", "MovedT2IPipeline"]


class _Moved(BasePipeline):
    """A pipeline that runs where it is told, and tells when it is about to decode.

    Attributes:
        execution_device: device of a call, None for that of the parameters.
        before_decoding: called between the last AR step and decoding.
    """

    execution_device: torch.device | None = None
    before_decoding: Callable[[], None] | None = None

    @property
    def device(self) -> torch.device:
        """Device of a call."""
        return super().device if self.execution_device is None else self.execution_device

    def _decode(self, *args: Any, **kwargs: Any) -> Any:
        if self.before_decoding is not None:
            self.before_decoding()
        return super()._decode(*args, **kwargs)


class MovedClassPipeline(_Moved, BitDancePipeline):
    """``BitDancePipeline`` for diffusers."""


class MovedT2IPipeline(_Moved, BitDanceT2IPipeline):
    """``BitDanceT2IPipeline`` for diffusers."""
