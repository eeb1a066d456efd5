"""Training of the autoencoder: reconstruct images from codes that are decided and evenly used."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from bitdance.data.images import LabeledImages, to_float
from bitdance.distributed import World
from bitdance.io import weights
from bitdance.io.files import write_text
from bitdance.io.image_grid import grid, to_images
from bitdance.io.outputs import save_image
from bitdance.models.autoencoder.autoencoder import BinaryAutoencoder, to_uint8
from bitdance.models.autoencoder.blocks import ResBlock
from bitdance.models.autoencoder.quantizer import BinaryQuantizer
from bitdance.training.adversarial import Adversary
from bitdance.training.config import AutoencoderRun
from bitdance.training.datasets import augmentation, open_training_images
from bitdance.training.draws import Draws, Purpose
from bitdance.training.losses import ExtraLoss, call_loss, chroma_error, import_loss

__all__ = ["CONFIG", "WEIGHTS", "AutoencoderTask"]

WEIGHTS, CONFIG = "autoencoder.safetensors", "autoencoder.json"
_EXAMPLES, _COLUMNS = 32, 8


class AutoencoderTask:
    """Train a ``BinaryAutoencoder`` on images.

    The loss is l1 |x - y| + l2 (x - y)^2 + chroma (Cb, Cr of x - y)^2 + entropy
    (sample_entropy E[H] - codebook_entropy H[E]) + commitment |f - q|^2 plus the extra and
    adversarial terms, each with its weight; see ``LossConfig`` and ``AdversarialConfig``.

    Args:
        config: configuration of the run.
        images: images to train on, by default those that ``config.data`` names.
        extra: further terms and their weights by name, by default those of ``config.loss.extra``.
        device: device of the model.
    """

    no_decay: tuple[str, ...] = ()
    exports: tuple[str, ...] = (WEIGHTS, CONFIG)

    def __init__(
        self,
        config: AutoencoderRun,
        *,
        images: LabeledImages | None = None,
        extra: Mapping[str, tuple[ExtraLoss, float]] | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        self._config, self._device = config, torch.device(device)
        self.images = images or open_training_images(config.data, labeled=False)
        self.size, self.identity = len(self.images), self.images.identity()
        self._augmentation = augmentation(config)
        if extra is None:
            torch.manual_seed(config.optim.seed)  # what they draw is the same in all processes
            extra = {name: (import_loss(name), w) for name, w in config.loss.extra.items()}
        self._extra = dict(extra)
        for function, _ in self._extra.values():
            if isinstance(function, nn.Module):
                function.to(device)
        quantizer = BinaryQuantizer(
            config.autoencoder.z_channels,
            config.autoencoder.num_codebooks,
            sample_weight=config.loss.sample_entropy,
            codebook_weight=config.loss.codebook_entropy,
            temperature=config.loss.temperature,
            per_group=config.loss.per_group,
        )
        torch.manual_seed(config.optim.seed)
        self.module: BinaryAutoencoder = BinaryAutoencoder(
            config.autoencoder, quantizer=quantizer, dtype=torch.float32, device="cpu"
        ).to(device)
        self.network: nn.Module = self.module
        last = self.module.decoder.conv_out.weight
        adversarial = config.adversarial.weight > 0
        self._adversary = Adversary(config, last, self._device) if adversarial else None
        self.columns = (
            "l1", "l2", *(("chroma",) if config.loss.chroma else ()), "sample_entropy",
            "codebook_entropy", "commitment", *self._extra,
            *(self._adversary.columns if self._adversary else ()),
        )  # fmt: skip
        self.blocks: Sequence[nn.Module] = [
            m for m in self.module.modules() if isinstance(m, ResBlock)
        ]

    def join(self, world: World) -> None:
        """Take the codebook entropy and the adaptive weight over the batch of all processes."""
        self.module.quantizer.process_group = world.group
        if self._adversary:
            self._adversary.world = world

    def load(self, items: np.ndarray, step: int) -> torch.Tensor:
        """Images of a batch, augmented, uint8."""
        return self._augmentation.take(self.images, items, step)

    def loss(
        self, batch: torch.Tensor, draws: Draws
    ) -> tuple[torch.Tensor, Mapping[str, torch.Tensor]]:
        """Loss of a batch and its terms."""
        weight = self._config.loss
        x = to_float(batch).to(self._device)
        y, quantized = self.network(x, noise=self._noise(x, draws))
        error = x - y.float()
        losses = quantized.losses
        terms = {
            "l1": error.abs().mean(),
            "l2": error.square().mean(),
            "sample_entropy": losses.per_sample_entropy,
            "codebook_entropy": losses.codebook_entropy,
            "commitment": losses.commitment,
        }
        reconstruction = weight.l1 * terms["l1"] + weight.l2 * terms["l2"]
        if weight.chroma:
            terms["chroma"] = chroma_error(error)
            reconstruction = reconstruction + weight.chroma * terms["chroma"]
        for name, (function, factor) in self._extra.items():
            terms[name] = call_loss(name, function, x, y)
            reconstruction = reconstruction + factor * terms[name]
        loss = (
            reconstruction + weight.entropy * losses.entropy + weight.commitment * losses.commitment
        )
        if self._adversary:
            term, values = self._adversary.loss(draws.step, x, y, reconstruction)
            loss = loss + term
            terms |= values
        return loss, terms

    def end_step(self, step: int) -> None:
        """Train the discriminator, if there is one."""
        if self._adversary:
            self._adversary.step(step)

    def _noise(self, x: torch.Tensor, draws: Draws) -> torch.Tensor | None:
        """Input noise of a decoder that takes some."""
        config = self.module.config
        if not config.gan_decoder:
            return None
        sides = [side // config.downsampling for side in x.shape[2:]]
        return draws.normal(Purpose.DECODER, config.z_channels, *sides)

    def save_samples(self, path: Path) -> None:
        """Write a grid of images, each row above its reconstructions."""
        count = min(_EXAMPLES, self.size)
        pixels = self.images.take(np.linspace(0, self.size - 1, count, dtype=np.int64))
        decoded = self.module.decode(self.module.encode(to_float(pixels).to(self._device)))
        pairs = zip(pixels.split(_COLUMNS), to_uint8(decoded).cpu().split(_COLUMNS), strict=True)
        rows = [row for pair in pairs for row in pair]
        save_image(grid(to_images(torch.cat(rows)), _COLUMNS), path)

    def export(self, folder: Path) -> None:
        """Write ``autoencoder.safetensors``, its checksum and ``autoencoder.json``."""
        weights.write_tensors(folder / WEIGHTS, self.module.state_dict())
        write_text(folder / CONFIG, json.dumps(self.module.config.to_dict(), indent=2) + "\n")

    def extra_state(self) -> dict[str, Any]:
        """States of the discriminator, and of the extra terms that have one."""
        return {
            name: part.state_dict() for name, part in self._parts() if hasattr(part, "state_dict")
        }

    def _parts(self) -> Iterator[tuple[str, Any]]:
        for name, (function, _) in self._extra.items():  # named module:function
            yield name, function
        if self._adversary:
            yield "adversary", self._adversary

    def load_extra_state(self, state: Mapping[str, Any]) -> None:
        """Restore these states."""
        parts = dict(self._parts())
        for name, values in state.items():
            parts[name].load_state_dict(values)
