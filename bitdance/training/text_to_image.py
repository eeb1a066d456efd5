"""Training of the text-to-image model: bits of the next patch, and words, of packed documents."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from bitdance.data.captioned_dataset import CaptionedDataset
from bitdance.data.packing import DocumentPacker
from bitdance.distributed import World
from bitdance.io.files import CheckpointError, one_line
from bitdance.io.image_grid import grid as image_grid
from bitdance.io.json_files import read_json
from bitdance.io.outputs import save_image
from bitdance.io.validation import brief
from bitdance.models.autoencoder.autoencoder import BinaryAutoencoder
from bitdance.models.packed_batch import PackedBatch, PackedDraws
from bitdance.models.qwen3 import Qwen3Config
from bitdance.models.text_to_image import TextToImageModel
from bitdance.models.token_order import generation_order
from bitdance.pipelines.prompts import TextTokenizer, load_tokenizer
from bitdance.pipelines.text_to_image import BitDanceT2IPipeline
from bitdance.pipelines.text_to_image_files import SamplingConfig
from bitdance.training.documents import DocumentMaker, TextSegment, add_image_tokens, pack_documents
from bitdance.training.draws import Draws, Purpose
from bitdance.training.initial_weights import locate_init
from bitdance.training.text_to_image_config import TextToImageRun

__all__ = ["TextToImageTask"]

_SAMPLES = 8  # images while training, where the run has no prompts
_CAPTIONS = 2**18  # different captions whose token ids are kept

Batch = list[tuple[PackedBatch, np.ndarray]]


class TextToImageTask:
    """Train a ``TextToImageModel`` on packed codes with captions.

    An item is a pack of documents. Caption and dropout of a document, and all random numbers of its
    image, are functions of the seed, the step and the number of the image.

    Args:
        config: configuration of the run.
        device: device of the model.
        tokenizer: text tokenizer, by default that of the configuration.

    Raises:
        FileNotFoundError: there is no data, no autoencoder or no language model.
        ValueError: autoencoder, data, tokenizer and model do not fit each other.
    """

    columns: tuple[str, ...] = ("text", "vision")
    exports: tuple[str, ...] = ("model",)
    unit = "packs"

    def __init__(
        self, config: TextToImageRun, *, device: torch.device | str = "cpu",
        tokenizer: TextTokenizer | None = None,
    ) -> None:  # fmt: skip
        self._config, self._device = config, torch.device(device)
        self._shape = shape = config.text_to_image
        autoencoder = BinaryAutoencoder.from_pretrained(config.autoencoder_path)
        self._data = CaptionedDataset(config.data.path)
        self.identity = self._data.identity
        bits = autoencoder.config.z_channels
        if self._data.channels != bits:
            raise ValueError(
                f"{config.data.path} must hold codes of {bits} bits, as the autoencoder makes "
                f"them, got {self._data.channels}"
            )
        init = locate_init(config.init, TextToImageModel) if config.init else None
        if tokenizer is None:
            tokenizer = _tokenizer(config, init)
        grids = [(int(h), int(w)) for h, w in np.unique(self._data.grids, axis=0)]
        for grid in grids:
            generation_order(grid, shape.parallel_num, "patch")  # of whole patches
        add_image_tokens(tokenizer, grids, shape.parallel_num)
        self._tokenizer = tokenizer
        text_loss = shape.text_weight > 0
        self._documents = DocumentMaker(tokenizer, shape.parallel_num, text_loss=text_loss)
        self._segment = lru_cache(_CAPTIONS)(self._documents.caption)
        lengths, vocabulary = self._measure()
        self._packer = DocumentPacker(
            lengths, config.data.max_tokens, seed=config.optim.seed % 2**63
        )
        self.size = len(self._packer)
        torch.manual_seed(config.optim.seed)
        llm = _language_model(config, init, vocabulary)
        model_config = config.model_config(llm, autoencoder.config)
        self.module = TextToImageModel(model_config, dtype=torch.float32, device="cpu")
        self.module.ae.load_state_dict(autoencoder.state_dict())
        self.module.ae.requires_grad_(False)
        self.module.to(device)
        self.network: nn.Module = self.module
        self.blocks: Sequence[nn.Module] = [
            *self.module.llm_model.model.layers, *self.module.vision_head.net.res_blocks
        ]  # fmt: skip
        embeddings = "llm_model.model.embed_tokens."
        # Without a loss of words their weights have no gradient, and shall stay as they are.
        self.no_decay: tuple[str, ...] = (
            (embeddings,) if text_loss else (embeddings, "llm_model.lm_head.")
        )

    def _caption(self, image: int, text: str) -> TextSegment:
        try:
            return self._segment(text)
        except ValueError as error:
            name = brief(self._data.id(image))
            raise ValueError(f"{self._config.data.path}: image {name}: {error}") from error

    def _grid(self, image: int) -> tuple[int, int]:
        height, width = self._data.grids[image].tolist()
        return height, width

    def _measure(self) -> tuple[list[int], int]:
        """Tokens of every document with its longest caption, and the size of the vocabulary."""
        lengths, largest, budget = [], 0, self._config.data.max_tokens
        for image in range(len(self._data)):
            grid = self._grid(image)
            texts = [self._caption(image, text) for text in self._data.captions(image)]
            lengths.append(max(self._documents.length(text, grid) for text in texts))
            largest = max(largest, *(max(text.ids) for text in texts))
            largest = max(largest, *self._documents.prefix(grid))
            if lengths[-1] > budget:
                raise ValueError(
                    f"data.max_tokens must be at least {lengths[-1]}, the tokens of image "
                    f"{brief(self._data.id(image))} with its longest caption, got {budget}"
                )
        return lengths, 1 + max(largest, *self._documents.ends)

    def load(self, items: np.ndarray, step: int) -> Batch:
        """Packs of documents, with the numbers of their images."""
        per_epoch = self.size // self._config.optim.batch_size
        packs = []
        for number in items.tolist():
            images = self._packer.pack(step // per_epoch, number)
            packs.append((self._pack(images, step), images))
        return packs

    def _pack(self, images: np.ndarray, step: int) -> PackedBatch:
        drawn = Draws(self._config.optim.seed, step, images).uniform(Purpose.DROP, 2).tolist()
        documents = []
        for image, (drop, choice) in zip(images.tolist(), drawn, strict=True):
            text = None
            if drop >= self._config.data.text_dropout:
                count = self._data.caption_count(image)
                chosen = self._data.caption(image, min(int(choice * count), count - 1))
                text = self._caption(image, chosen)
            grid, codes = self._grid(image), self._data.codes(image)
            documents.append(self._documents.document(text, grid, codes, image))
        return pack_documents(documents, self._shape.parallel_num)

    def join(self, world: World) -> None:
        """Do nothing: the loss of a pack does not depend on the others."""

    def loss(self, batch: Batch, draws: Draws) -> tuple[torch.Tensor, Mapping[str, torch.Tensor]]:
        """Weighted losses of packs, and the means of both."""
        packs = [pack.to(self._device) for pack, _ in batch]
        drawn = [self._draws(images, draws.step) for _, images in batch]
        shape = self._shape
        means = self.network(
            packs, drawn, perturb_rate=shape.perturb_rate, repeats=shape.diff_batch_mul
        )
        text, vision = means.mean(0)
        loss = shape.text_weight * text + shape.vision_weight * vision
        return loss, {"text": text, "vision": vision}

    def _draws(self, images: np.ndarray, step: int) -> PackedDraws:
        """Random numbers of a pack's images, of each by its number."""
        P, repeats = self._shape.parallel_num, self._shape.diff_batch_mul
        bits, counts = self._data.channels, self._data.grids[images].prod(1)
        parts: dict[int, list[torch.Tensor]] = {}
        for count in np.unique(counts).tolist():
            places = np.flatnonzero(counts == count)
            draws = Draws(self._config.optim.seed, step, images[places], self._device)
            normal = self.module.config.head.time_schedule == "logit_normal"
            times = draws.normal if normal else draws.uniform
            rows = (
                draws.uniform(Purpose.FLIPS, 2, count, bits),
                times(Purpose.TIME, repeats, count // P),
                draws.normal(Purpose.NOISE, repeats, count // P, P, bits),
            )
            parts |= {place: row for place, *row in zip(places.tolist(), *rows, strict=True)}
        of_pack = [
            torch.cat(part, 1) for part in zip(*(parts[i] for i in sorted(parts)), strict=True)
        ]
        flips, time, noise = of_pack
        return PackedDraws((flips[0], flips[1]), time.flatten(), noise.flatten(0, 1))

    def end_step(self, step: int) -> None:
        """Do nothing: all that is trained is in the module."""

    def save_samples(self, path: Path) -> None:
        """Write a grid of images of prompts."""
        images = self._pipeline()(self._prompts(), seed=0).images
        save_image(image_grid(images, min(len(images), _SAMPLES)), path)

    def _prompts(self) -> list[str]:
        if self._config.prompts:
            return list(self._config.prompts)
        count = min(len(self._data), _SAMPLES)
        return [self._data.captions(i * len(self._data) // count)[0] for i in range(count)]

    def export(self, folder: Path) -> None:
        """Write a folder that ``BitDanceT2IPipeline.from_pretrained`` reads."""
        self._pipeline().save_pretrained(folder / "model")

    def _pipeline(self) -> BitDanceT2IPipeline:
        # The size that most images have.
        grids, counts = np.unique(self._data.grids, axis=0, return_counts=True)
        factor = self.module.config.autoencoder.downsampling
        height, width = (grids[counts.argmax()] * factor).tolist()
        config = self._config
        sampling = SamplingConfig(height, width, config.num_inference_steps, config.guidance_scale)
        pipeline = BitDanceT2IPipeline(self.module, self._tokenizer, sampling)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    def extra_state(self) -> dict[str, Any]:
        """An empty dict: there is no state besides the module."""
        return {}

    def load_extra_state(self, state: Mapping[str, Any]) -> None:
        """Do nothing."""


def _tokenizer(config: TextToImageRun, init: Path | None) -> TextTokenizer:
    if config.tokenizer_path:
        return load_tokenizer(Path(config.tokenizer_path))
    assert init is not None  # the configuration asks for one of both
    return load_tokenizer(_release(init))


def _release(folder: Path) -> Path:
    """The folder of a language model: a release, or what a run exported in its folder."""
    inside = folder / "model"
    return inside if (inside / "config.json").is_file() else folder


def _language_model(config: TextToImageRun, init: Path | None, vocabulary: int) -> Qwen3Config:
    """Shape of the language model, with room for `vocabulary` tokens.

    Raises:
        ValueError: ``llm`` has fewer.
    """
    if config.llm is not None:
        if config.llm.vocab_size < vocabulary:
            raise ValueError(
                f"llm.vocab_size must be at least {vocabulary} with this tokenizer, got "
                f"{config.llm.vocab_size}"
            )
        return config.llm
    assert init is not None
    try:
        found = Qwen3Config.from_dict(read_json(_release(init) / "config.json"))
    except (TypeError, ValueError, RecursionError) as error:
        raise CheckpointError(f"init: {init}: {one_line(error)}") from error
    return dataclasses.replace(found, vocab_size=max(vocabulary, found.vocab_size))
