"""What an autoencoder is trained for: to give images back, with codes that are decided and used."""

from __future__ import annotations

import importlib
import inspect
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from bitdance.data.images import LabelledImages, augment, to_float
from bitdance.io import weights
from bitdance.io.image_grid import grid
from bitdance.io.validation import shown
from bitdance.models.autoencoder.autoencoder import BinaryAutoencoder, to_uint8
from bitdance.training.config import RunConfig
from bitdance.training.datasets import open_training_images

__all__ = ["AutoencoderTask", "load_autoencoder"]

ExtraLoss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
WEIGHTS, CONFIG = "autoencoder.safetensors", "autoencoder.json"
_SHOWN = 32


class AutoencoderTask:
    """Train a ``BinaryAutoencoder`` on images.

    The loss is l1 |x - y| + l2 (x - y)^2 + entropy (sample_entropy E[H] - codebook_entropy H[E]) +
    commitment |f - q|^2 plus the extra terms, each with its weight; see ``LossConfig``.

    Args:
        config: of the run.
        images: by default what ``config.data`` names.
        extra: further terms by name, instead of what ``config.loss.extra`` names.
        device: for the model.
    """

    no_decay: tuple[str, ...] = ()
    exports: tuple[str, ...] = (WEIGHTS, CONFIG)

    def __init__(
        self,
        config: RunConfig,
        *,
        images: LabelledImages | None = None,
        extra: Mapping[str, tuple[ExtraLoss, float]] | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        assert config.autoencoder is not None
        self.images = images or open_training_images(config.data, labelled=False)
        self.size, self.identity = len(self.images), self.images.identity()
        torch.manual_seed(config.optim.seed)
        own = BinaryAutoencoder(config.autoencoder, dtype=torch.float32, device="cpu")
        self.module = own.to(device)
        quantizer = self.module.quantizer
        quantizer.sample_weight = config.loss.sample_entropy
        quantizer.codebook_weight = config.loss.codebook_entropy
        quantizer.temperature = config.loss.temperature
        quantizer.per_group = config.loss.per_group
        if extra is None:
            extra = {name: (_find(name), w) for name, w in config.loss.extra.items()}
        self._extra = dict(extra)
        self.columns = (
            "l1", "l2", "sample_entropy", "codebook_entropy", "commitment", *self._extra
        )  # fmt: skip
        self._config, self._device = config, torch.device(device)

    def loss(self, items: np.ndarray) -> tuple[torch.Tensor, Mapping[str, torch.Tensor]]:
        """Loss of a batch and its terms."""
        data, weight = self._config.data, self._config.loss
        pixels = augment(self.images.take(items), flip=data.flip, shift=data.shift)
        x = to_float(pixels).to(self._device)
        y, quantized = self.module(x)
        error = x - y.float()
        losses = quantized.losses
        terms = {
            "l1": error.abs().mean(),
            "l2": error.square().mean(),
            "sample_entropy": losses.per_sample_entropy,
            "codebook_entropy": losses.codebook_entropy,
            "commitment": losses.commitment,
        }
        loss = (
            weight.l1 * terms["l1"]
            + weight.l2 * terms["l2"]
            + weight.entropy * losses.entropy
            + weight.commitment * losses.commitment
        )
        for name, (function, factor) in self._extra.items():
            terms[name] = _term(name, function, x, y)
            loss = loss + factor * terms[name]
        return loss, terms

    def pictures(self, path: Path) -> None:
        """Images of the data set above their reconstructions."""
        count = min(_SHOWN, self.size)
        pixels = self.images.take(np.linspace(0, self.size - 1, count, dtype=np.int64))
        decoded = self.module.decode(self.module.encode(to_float(pixels).to(self._device)))
        again = to_uint8(decoded).cpu()
        rows = [
            part[i : i + 8] for i in range(0, count, 8) for part in (pixels, again)
        ]  # originals and reconstructions in turns
        shown = torch.cat(rows).permute(0, 2, 3, 1).contiguous().numpy()
        sheet = grid([Image.fromarray(p) for p in shown], 8)
        with weights.replace_file(path) as temporary:
            sheet.save(temporary, format="PNG")

    def export(self, folder: Path) -> None:
        """Write ``autoencoder.safetensors``, its checksum and ``autoencoder.json``."""
        weights.write_tensors(folder / WEIGHTS, self.module.state_dict())
        text = json.dumps(self.module.config.to_dict(), indent=2)
        weights.write_text(folder / CONFIG, text + "\n")

    def extra_state(self) -> dict[str, Any]:
        """States of the extra terms that have one."""
        states = ((name, getattr(f, "state_dict", None)) for name, (f, _) in self._extra.items())
        return {name: state() for name, state in states if state is not None}

    def load_extra_state(self, state: Mapping[str, Any]) -> None:
        """Put them back."""
        for name, values in state.items():
            self._extra[name][0].load_state_dict(values)  # type: ignore[attr-defined]


def load_autoencoder(source: str | Path) -> BinaryAutoencoder:
    """The autoencoder of a run's folder, or whatever ``BinaryAutoencoder.from_pretrained`` takes.

    Raises:
        FileNotFoundError: there is none; a run has not ended.
        CheckpointError: the files are damaged or do not fit each other.
    """
    return BinaryAutoencoder.from_pretrained(source)


def _term(name: str, function: ExtraLoss, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    try:
        term: Any = function(x, y)
    except (RuntimeError, MemoryError, OSError):  # PyTorch's, whose kind tells what to do
        raise
    except Exception as error:
        raise ValueError(f"loss.extra: {name!r} raises {type(error).__name__}: {error}") from error
    if isinstance(term, torch.Tensor) and term.numel() == 1 and term.is_floating_point():
        return term.reshape(())
    raise ValueError(f"loss.extra: {name!r} must return a scalar tensor, got {shown(term)}")


def _find(name: str) -> ExtraLoss:
    """The callable "module:function"; a class is called without arguments to make one."""
    module, _, attribute = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute)
        found = found() if isinstance(found, type) else found
    except Exception as error:  # whatever importing and calling somebody's code may raise
        raise ValueError(
            f"loss.extra: {name!r} is not module:function: {type(error).__name__}: {error}"
        ) from error
    if not callable(found):
        raise ValueError(f"loss.extra: {name!r} must be a function or a class, got {shown(found)}")
    try:
        signature = inspect.signature(found)
    except ValueError:  # functions in C may tell none
        return found
    try:
        signature.bind(None, None)
    except TypeError as error:
        raise ValueError(
            f"loss.extra: {name!r} must take images and reconstructions: {error}"
        ) from error
    return found
