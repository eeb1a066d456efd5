"""The interface between the trainer and what it trains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn

from bitdance.distributed import World
from bitdance.training.draws import Draws

__all__ = ["Task"]


class Task(Protocol):
    """A module, its data and its loss.

    Attributes:
        network: what `loss` calls in place of the module, which it is at first; with several
            processes the trainer replaces it by what averages the gradients.
        blocks: parts of the module that are divided, compiled and computed again one by one.
        columns: names of the terms that `loss` returns.
        size: number of items in the data set.
        identity: checksum of the data, which a resumed run must have too, wherever they are; may be
            left out.
        unit: what an item is, in the plural; may be left out, then "images".
        exports: names of the files and folders that `export` writes; may be left out.
        no_decay: prefixes of parameters without weight decay; vectors never have any.
    """

    network: nn.Module
    blocks: Sequence[nn.Module]
    columns: tuple[str, ...]
    size: int
    no_decay: tuple[str, ...]
    identity: str
    exports: tuple[str, ...]

    @property
    def module(self) -> nn.Module:
        """The module; parameters that require gradients are trained.

        Where it is divided among processes, the trainer replaces it by a whole one for
        `save_samples` and `export`, which rank 0 alone calls.
        """
        ...

    def load(self, items: np.ndarray, step: int) -> Any:
        """The batch of these items; called in another thread, beside the step before.

        It is a function of its arguments and leaves the module alone.
        """
        ...

    def join(self, world: World) -> None:
        """Prepare for a world of processes, before the first loss."""
        ...

    def loss(self, batch: Any, draws: Draws) -> tuple[torch.Tensor, Mapping[str, torch.Tensor]]:
        """Loss of a loaded batch and its terms, means over its items.

        Random numbers come from `draws`, so that they do not depend on the other items.
        """
        ...

    def end_step(self, step: int) -> None:
        """Called after the optimizer's step, for what else is trained; may be left out."""
        ...

    def save_samples(self, path: Path) -> None:
        """Write an image of what the module, with averaged weights, generates."""
        ...

    def export(self, folder: Path) -> None:
        """Write the module, with averaged weights, for use."""
        ...

    def extra_state(self) -> dict[str, Any]:
        """State that is not part of the module, for checkpoints."""
        ...

    def load_extra_state(self, state: Mapping[str, Any]) -> None:
        """Restore that state."""
        ...
