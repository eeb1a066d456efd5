"""What a model is trained for: to denoise the bits of the next patch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bitdance.data.images import augment, to_float
from bitdance.data.packed_dataset import PackedDataset, is_packed
from bitdance.io import weights
from bitdance.io.image_grid import grid
from bitdance.models.autoencoder.quantizer import unpack_codes
from bitdance.models.class_conditional import BitDanceModel
from bitdance.pipelines.class_conditional import BitDance
from bitdance.training.autoencoder import load_autoencoder
from bitdance.training.config import RunConfig
from bitdance.training.datasets import open_codes, open_training_images

__all__ = ["ClassConditionalTask"]

_EACH = 8  # sample pictures of a class
_CLASSES = 10  # classes shown


class ClassConditionalTask:
    """Train a ``BitDanceModel`` on packed codes, or on images that are encoded on the way.

    Args:
        config: of the run.
        device: for the model.

    Raises:
        FileNotFoundError: there is no data, or no autoencoder.
        ValueError: autoencoder, data and model do not fit.
    """

    columns: tuple[str, ...] = ()
    exports: tuple[str, ...] = ("model",)
    no_decay: tuple[str, ...] = ("proj_in.", "cls_embedding.", "query_token")

    def __init__(self, config: RunConfig, *, device: torch.device | str = "cpu") -> None:
        autoencoder = load_autoencoder(config.autoencoder_path)
        self._config, self._device = config, torch.device(device)
        data = config.data
        self._packed: PackedDataset | None = None
        if is_packed(data.path):
            self._packed, classes = open_codes(data)
            self.labels, self.identity = self._packed.labels, self._packed.identity
        else:
            self._images = open_training_images(data)
            self.labels, classes = self._images.labels, self._images.classes
            self.identity = self._images.identity()
        self.size = len(self.labels)
        torch.manual_seed(config.optim.seed)
        model_config = config.model_config(autoencoder.config)
        self.module = BitDanceModel(model_config, dtype=torch.float32, device="cpu")
        self.module.vae.load_state_dict(autoencoder.state_dict())
        self.module.to(device)
        self.classes = tuple(classes) or ("",) * model_config.num_classes
        if len(self.classes) != model_config.num_classes:
            raise ValueError(
                f"model.num_classes must be the data's {len(self.classes)}, got "
                f"{model_config.num_classes}"
            )
        cells = (config.data.size // autoencoder.config.downsampling) ** 2
        bits = autoencoder.config.z_channels
        if self._packed and (self._packed.tokens, self._packed.channels) != (cells, bits):
            raise ValueError(
                f"{data.path} must hold {cells} codes of {bits} bits an image as the autoencoder "
                f"makes them, got {self._packed.tokens} of {self._packed.channels}"
            )

    def loss(self, items: np.ndarray) -> tuple[torch.Tensor, Mapping[str, torch.Tensor]]:
        """Loss of a batch; it has no terms."""
        labels = torch.from_numpy(np.ascontiguousarray(self.labels[items])).to(self._device)
        return self.module(self._tokens(items), labels), {}

    def _tokens(self, items: np.ndarray) -> torch.Tensor:
        """Tokens [n, N, C] in generation order."""
        data = self._config.data
        if self._packed is None:
            pixels = augment(self._images.take(items), flip=data.flip, shift=data.shift)
            return self.module.encode(to_float(pixels).to(self._device))
        packed, _ = self._packed.take(items)
        side = data.size // self.module.vae.config.downsampling
        maps = packed.to(self._device).unflatten(1, (side, side))
        return self.module.to_tokens(unpack_codes(maps, self._packed.channels))

    def pictures(self, path: Path) -> None:
        """Samples, a class a row."""
        pipeline = self._pipeline()
        shown = range(min(len(self.classes), _CLASSES))
        images = pipeline.generate([c for c in shown for _ in range(_EACH)], progress=False)
        with weights.replace_file(path) as temporary:
            grid(images, _EACH).save(temporary, format="PNG")

    def export(self, folder: Path) -> None:
        """Write a folder that ``BitDance.from_pretrained`` reads."""
        self._pipeline().save_pretrained(folder / "model")

    def _pipeline(self) -> BitDance:
        return BitDance(self.module, self.classes, steps=self._config.sample_steps)

    def extra_state(self) -> dict[str, Any]:
        """Nothing."""
        return {}

    def load_extra_state(self, state: Mapping[str, Any]) -> None:
        """Nothing."""
