"""Training of the class-conditional model: denoise the bits of the next patch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from bitdance.data.images import to_float
from bitdance.data.packed_dataset import PackedDataset, is_packed
from bitdance.distributed import World
from bitdance.io.image_grid import grid
from bitdance.io.outputs import save_image
from bitdance.models.autoencoder.autoencoder import BinaryAutoencoder
from bitdance.models.autoencoder.quantizer import unpack_latents
from bitdance.models.class_conditional import BitDanceModel, TrainingDraws
from bitdance.models.config import ModelConfig
from bitdance.pipelines.class_conditional import BitDancePipeline
from bitdance.training.config import ClassConditionalRun
from bitdance.training.datasets import augmentation, open_codes, open_training_images
from bitdance.training.draws import Draws, Purpose

__all__ = ["ClassConditionalTask"]

_COLUMNS = 8  # sample images per class
_MAX_CLASSES = 10  # classes in the sample images


class ClassConditionalTask:
    """Train a ``BitDanceModel`` on packed codes, or on images that are encoded in each step.

    Args:
        config: configuration of the run.
        device: device of the model.

    Raises:
        FileNotFoundError: there is no data, or no autoencoder.
        ValueError: autoencoder, data and model do not fit each other.
    """

    columns: tuple[str, ...] = ()
    exports: tuple[str, ...] = ("model",)
    no_decay: tuple[str, ...] = ("proj_in.", "cls_embedding.", "query_token")

    def __init__(
        self, config: ClassConditionalRun, *, device: torch.device | str = "cpu"
    ) -> None:  # fmt: skip
        autoencoder = BinaryAutoencoder.from_pretrained(config.autoencoder_path)
        self._config, self._device = config, torch.device(device)
        data = config.data
        self._augmentation = augmentation(config)
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
        self.network: nn.Module = self.module
        self.blocks: Sequence[nn.Module] = [*self.module.layers, *self.module.head.net.res_blocks]
        self.classes = tuple(classes) or ("",) * model_config.num_classes
        if len(self.classes) != model_config.num_classes:
            raise ValueError(
                f"model.num_classes must be the data's {len(self.classes)}, got "
                f"{model_config.num_classes}"
            )
        count = (data.size // autoencoder.config.downsampling) ** 2
        bits = autoencoder.config.z_channels
        if self._packed and (self._packed.tokens, self._packed.channels) != (count, bits):
            raise ValueError(
                f"{data.path} must hold {count} codes of {bits} bits per image, as the autoencoder "
                f"makes them, got {self._packed.tokens} of {self._packed.channels}"
            )

    def load(self, items: np.ndarray, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Packed codes or augmented images of a batch, uint8, and labels."""
        if self._packed is not None:
            variants = self._augmentation.choose(self._packed.variants, items, step)
            return self._packed.take(items, variants)
        labels = torch.from_numpy(np.ascontiguousarray(self.labels[items]))
        return self._augmentation.take(self._images, items, step), labels

    def join(self, world: World) -> None:
        """Do nothing: the loss of an item does not depend on the others."""

    def loss(
        self, batch: tuple[torch.Tensor, torch.Tensor], draws: Draws
    ) -> tuple[torch.Tensor, Mapping[str, torch.Tensor]]:
        """Loss of a batch; it has no terms."""
        values, labels = batch
        drawn = _training_draws(self.module.config, draws)
        return self.network(self._tokens(values), labels.to(self._device), drawn), {}

    def _tokens(self, values: torch.Tensor) -> torch.Tensor:
        """Tokens [n, N, C] in generation order, of packed codes or images."""
        data = self._config.data
        if self._packed is None:
            return self.module.encode(to_float(values).to(self._device))
        side = data.size // self.module.vae.config.downsampling
        maps = values.to(self._device).unflatten(1, (side, side))
        return self.module.to_tokens(unpack_latents(maps, self._packed.channels))

    def end_step(self, step: int) -> None:
        """Do nothing: all that is trained is in the module."""

    def save_samples(self, path: Path) -> None:
        """Write a grid of samples with a row per class."""
        classes = range(min(len(self.classes), _MAX_CLASSES))
        labels = [label for label in classes for _ in range(_COLUMNS)]
        images = self._pipeline()(labels).images
        save_image(grid(images, _COLUMNS), path)

    def export(self, folder: Path) -> None:
        """Write a folder that ``BitDancePipeline.from_pretrained`` reads."""
        self._pipeline().save_pretrained(folder / "model")

    def _pipeline(self) -> BitDancePipeline:
        steps = self._config.num_inference_steps
        pipeline = BitDancePipeline(self.module, self.classes, num_inference_steps=steps)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    def extra_state(self) -> dict[str, Any]:
        """An empty dict: there is no state besides the module."""
        return {}

    def load_extra_state(self, state: Mapping[str, Any]) -> None:
        """Do nothing."""


def _training_draws(config: ModelConfig, draws: Draws) -> TrainingDraws:
    """What the model draws for a batch: its rows are repetition, image, AR step in this order."""
    rows = (config.diff_batch_mul, config.ar_steps)
    draw = draws.normal if config.head.time_schedule == "logit_normal" else draws.uniform
    patch = (
        (config.token_bits,)
        if config.parallel_num == 1
        else (config.parallel_num, config.token_bits)
    )
    noise = draws.normal(Purpose.NOISE, *rows, *patch)
    return TrainingDraws(
        flips=draws.seeds(Purpose.FLIPS),
        drop=draws.uniform(Purpose.DROP).view(-1),
        time=draw(Purpose.TIME, *rows).transpose(0, 1).reshape(-1),
        noise=noise.transpose(0, 1).reshape(-1, *patch),
    )
