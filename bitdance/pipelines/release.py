"""Text-to-image models as they are published, in a folder or a repository.

A model is opened first: its small files are there, its configuration is judged. Its weights are
fetched and loaded afterwards; either all of it is loaded or nothing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from functools import cached_property
from pathlib import Path

import torch
from torch import nn

from bitdance.io import weights
from bitdance.io.files import CheckpointError, one_line
from bitdance.io.json_files import read_json
from bitdance.models.autoencoder.autoencoder import BinaryAutoencoder
from bitdance.models.diffusion_head import DiffusionHead
from bitdance.models.loading.autoencoder_files import read_autoencoder
from bitdance.models.loading.meta_device import (
    BlockCount,
    autoencoder_block_counts,
    build_on_meta,
    check_block_counts,
    head_block_counts,
)
from bitdance.models.loading.model_files import Folder, ModelFiles, open_files
from bitdance.models.loading.part_files import ScaledTensors, read_part, select_part, weight_files
from bitdance.models.loading.release_layout import (
    MODEL_INDEX,
    Part,
    language_model_part,
    release_layout,
    tokenizer_files,
)
from bitdance.models.quantization import check_blocks
from bitdance.models.qwen3 import Qwen3Config, Qwen3ForCausalLM
from bitdance.models.streamed_weights import stream_weights
from bitdance.models.text_to_image import TextToImageModel
from bitdance.models.text_to_image_config import TextToImageConfig
from bitdance.pipelines.release_shapes import infer_release_config
from bitdance.pipelines.text_to_image_files import (
    SAMPLING_FILE,
    SamplingConfig,
    parse_sampling,
    read_sampling,
)

__all__ = ["Release", "locate_release", "locate_tokenizer", "read_release"]

_COMPONENTS = ("text_encoder", "diffusion_head", "projector", "autoencoder")


class Release:
    """A text-to-image model whose small files have been fetched, and whose weights have not.

    Args:
        files: files of the model.
        with_tokenizer: whether the text tokenizer is among the small files.

    Attributes:
        layout: layout of the files.
        folder: the local folder with the small files.

    Raises:
        FileNotFoundError: a file is missing.
        CheckpointError: the files are of something else.
    """

    def __init__(self, files: ModelFiles, *, with_tokenizer: bool = True) -> None:
        layout = release_layout(files.names, files.source)
        if layout is None:
            raise CheckpointError(
                f"{files.source} has no vision_head_config.json and no {MODEL_INDEX}: it is not a "
                "text-to-image release"
            )
        self.layout, self._files = layout, files
        self._small = [*layout.settings, *_present(files, SAMPLING_FILE)]
        if with_tokenizer:
            self._small += tokenizer_files(files.names, layout.tokenizer)
        if layout.kind == "diffusers":
            _check_components(files.fetch([MODEL_INDEX]) / MODEL_INDEX)
        self.folder = files.fetch(self._small)

    @classmethod
    def open(
        cls, source: str | Path, *, revision: str | None = None, local_files_only: bool = False,
        subfolder: str | None = None, with_tokenizer: bool = True,
    ) -> Release:  # fmt: skip
        """Open a folder or a repository; see ``BitDanceT2IPipeline.from_pretrained``."""
        files = open_files(
            source, revision=revision, local_files_only=local_files_only, subfolder=subfolder
        )
        return cls(files, with_tokenizer=with_tokenizer)

    @property
    def tokenizer_folder(self) -> Path:
        """Local folder of the text tokenizer."""
        return self.folder / self.layout.tokenizer

    @cached_property
    def sampling(self) -> SamplingConfig:
        """Sampling by default; the authors' where the model says nothing.

        Raises:
            CheckpointError: its file is damaged.
        """
        if self.layout.kind == "diffusers":
            path = self.folder / MODEL_INDEX
            if (given := read_json(path).get("sampling")) is not None:
                return parse_sampling(given, path)
        return read_sampling(self.folder)

    def config(self, count_queries: Callable[[], int]) -> TextToImageConfig:
        """The configuration, before any weights are fetched.

        Args:
            count_queries: returns the number of query tokens that the text tokenizer knows; called
                where no file says how many tokens there are per step.

        Raises:
            FileNotFoundError: a file is missing.
            CheckpointError: a file is damaged, or the configuration is not of such a model.
        """
        layout, source = self.layout, self._files.source
        if layout.kind == "files":
            language_model, main, autoencoder = (
                self._files.tensors(part.weights)
                for part in (layout.language_model, layout.head, layout.autoencoder)
            )
            return infer_release_config(
                select_part(language_model, layout.language_model, source)[0],
                select_part(main, layout.head, source)[0],
                select_part(autoencoder, layout.autoencoder, source)[0],
                1 + count_queries(),
                source,
            )
        parts = (layout.language_model, layout.head, layout.autoencoder)
        contents = [read_json(self.folder / (part.config or "")) for part in parts]
        try:
            return TextToImageConfig.from_dicts(*contents)
        except (TypeError, ValueError, RecursionError) as error:
            raise CheckpointError(f"{source}: {one_line(error)}") from error

    def fetch(self, *, autoencoder: bool = True) -> Path:
        """Fetch the weights; returns the local folder with all files.

        Args:
            autoencoder: whether that of the model is needed.

        Raises:
            FileNotFoundError: a file is missing.
            CheckpointError: an index is damaged.
        """
        layout = self.layout
        parts = [layout.language_model, layout.head, layout.projector]
        parts += [layout.autoencoder] if autoencoder else []
        names = self._files.names
        needed = [file for part in parts for file in weight_files(self.folder, part, names)]
        return self._files.fetch([*self._small, *needed])

    def load(
        self,
        config: TextToImageConfig,
        dtype: torch.dtype,
        device: torch.device | str,
        *,
        autoencoder: Path | None = None,
        quantization: str | None = None,
    ) -> TextToImageModel:
        """Fetch the weights and load the model.

        Args:
            config: its configuration, of ``config``.
            dtype: dtype of the parameters.
            device: device of the model.
            autoencoder: file or folder of another autoencoder.
            quantization: see ``BitDanceT2IPipeline.from_pretrained``.

        Raises:
            FileNotFoundError: a file is missing.
            CheckpointError: a file is damaged, or does not fit the configuration.
            ValueError: the model cannot be quantized.
        """
        source, layout = self._files.source, self.layout
        if autoencoder is not None:
            found, tensors = read_autoencoder(autoencoder)
            try:
                config = dataclasses.replace(config, autoencoder=found)
            except ValueError as error:
                raise CheckpointError(f"{autoencoder} does not fit {source}: {error}") from error
        folder = self.fetch(autoencoder=autoencoder is None)
        # Mapped, not read: names and shapes are compared first, of all files.
        llm, head, projector, ae = "language model", "diffusion head", "projector", "autoencoder"
        files = {
            llm: _untied(read_part(folder, layout.language_model), config.llm),
            head: read_part(folder, layout.head),
            projector: read_part(folder, layout.projector),
            ae: read_part(folder, layout.autoencoder) if autoencoder is None else (tensors, {}),
        }
        places = {
            llm: f"{source}: {llm}",
            head: f"{source}: {layout.head.weights}",
            projector: f"{source}: {layout.projector.weights}",
            ae: str(autoencoder or f"{source}: {layout.autoencoder.weights}"),
        }
        layers = config.llm.num_hidden_layers
        counted: dict[str, tuple[type[nn.Module], Iterable[BlockCount]]] = {
            llm: (Qwen3ForCausalLM, [BlockCount("model.layers.", layers, "num_hidden_layers")]),
            head: (DiffusionHead, head_block_counts(config.head)),
            ae: (BinaryAutoencoder, autoencoder_block_counts(config.autoencoder)),
        }
        for name, (kind, repeats) in counted.items():
            check_block_counts(files[name][0], repeats, kind.__name__, places[name])
        model = build_on_meta(lambda: TextToImageModel(config, dtype=dtype, device="meta"), source)
        parts: dict[str, nn.Module] = {
            llm: model.llm_model,
            head: model.vision_head,
            projector: model.embed_vision_mlp,
            ae: model.ae,
        }
        for name, part in parts.items():
            weights.check_weights(part, files[name][0], places[name], values=False)
        if quantization is not None:
            check_blocks("from_pretrained", model.blocks, quantization)
        trunk, branches = model.blocks
        blocks = {llm: [trunk], head: [branches]}
        for name, part in parts.items():
            own, scales = files.pop(name)
            stream_weights(
                part, own, places[name], scales=scales, device=device,
                quantization=quantization, blocks=blocks.get(name, ()),
            )  # fmt: skip
        return model


def locate_release(
    source: str | Path, *, revision: str | None = None, local_files_only: bool = False
) -> Path:
    """The folder of a text-to-image model or of a language model; a repository is downloaded.

    Its configuration is judged before its weights are downloaded.

    Args:
        source: folder, or the id "owner/name" of a repository.
        revision: revision of the repository.
        local_files_only: use only files that were downloaded before.

    Raises:
        FileNotFoundError: there is no such folder or repository.
        CheckpointError: the repository contains something else.
    """
    path = Path(source)
    if path.exists():
        return path
    files = open_files(source, revision=revision, local_files_only=local_files_only)
    if release_layout(files.names, files.source) is not None:
        return Release(files).fetch()
    part = language_model_part(files.names)
    if part is None:
        raise CheckpointError(f"{files.source} has no config.json: it is not a language model")
    small = [*part.settings, *tokenizer_files(files.names, "")]
    folder = files.fetch(small)
    _language_model_config(folder, part)
    return files.fetch([*small, *weight_files(folder, part, files.names)])


def locate_tokenizer(source: str | Path, *, local_files_only: bool = False) -> Path:
    """The folder of a text tokenizer; of a repository nothing else is downloaded.

    Args:
        source: folder of a tokenizer or of a model, or the id "owner/name" of a repository.
        local_files_only: use only files that were downloaded before.

    Raises:
        FileNotFoundError: there is no such folder or repository, or it has no tokenizer.
    """
    files = open_files(source, local_files_only=local_files_only)
    for folder in ("tokenizer", ""):
        names = tokenizer_files(files.names, folder)
        if names:
            return files.fetch(names) / folder
    raise FileNotFoundError(f"{files.source} has no text tokenizer")


def read_release(folder: Path) -> weights.Tensors:
    """All tensors of a text-to-image model by the names of its parameters, unchecked.

    A language model alone will do, too.

    Raises:
        FileNotFoundError: a file is missing.
        CheckpointError: a file is damaged, or stored in float8.
    """
    files = Folder(folder)
    layout = release_layout(files.names, files.source)
    part = language_model_part(files.names) if layout is None else layout.language_model
    if part is None or part.config is None:
        raise FileNotFoundError(f"{folder} has no config.json of a language model")
    parts = {"llm_model.": _untied(read_part(folder, part), _language_model_config(folder, part))}
    if layout is not None:
        parts["vision_head."] = read_part(folder, layout.head)
        parts["embed_vision_mlp."] = read_part(folder, layout.projector)
        parts["ae."] = read_part(folder, layout.autoencoder)
    scaled = [name for _, scales in parts.values() for name in scales]
    if scaled:
        raise CheckpointError(f"{folder} has float8 weights with scales, such as {scaled[0]}")
    return {
        f"{prefix}{name}": tensor
        for prefix, (tensors, _) in parts.items()
        for name, tensor in tensors.items()
    }


def _present(files: ModelFiles, *names: str) -> list[str]:
    return [name for name in names if name in files.names]


def _check_components(path: Path) -> None:
    """Refuse the index of another pipeline."""
    content = read_json(path)
    missing = [name for name in _COMPONENTS if not isinstance(content.get(name), list)]
    if missing:
        kind = content.get("_class_name")
        raise CheckpointError(
            f"{path}: components must be {', '.join(_COMPONENTS)}, {missing[0]} is missing"
            + (f" (it belongs to a {kind})" if isinstance(kind, str) else "")
        )


def _language_model_config(folder: Path, part: Part) -> Qwen3Config:
    try:
        return Qwen3Config.from_dict(read_json(folder / (part.config or "")))
    except (TypeError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{folder}: {one_line(error)}") from error


def _untied(found: ScaledTensors, config: Qwen3Config) -> ScaledTensors:
    """Without the output projection, if it is the input's."""
    tensors, scales = found
    if config.tie_word_embeddings:
        tensors.pop("lm_head.weight", None)
        scales.pop("lm_head.weight", None)
    return tensors, scales
