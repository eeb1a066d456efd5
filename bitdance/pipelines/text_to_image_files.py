"""Released folders of text-to-image models; either all of one is loaded or nothing."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import nn

from bitdance.io import weights
from bitdance.io.files import CheckpointError, one_line, write_text
from bitdance.io.json_files import read_json
from bitdance.io.settings import Count, Number, parse, settings
from bitdance.io.state_names import normalize_names
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
from bitdance.models.qwen3 import Qwen3Config, Qwen3ForCausalLM
from bitdance.models.text_to_image import TextToImageModel
from bitdance.models.text_to_image_config import TextToImageConfig

__all__ = [
    "SamplingConfig",
    "load_release",
    "read_language_model",
    "read_release",
    "read_sampling",
    "save_release",
]

_SAMPLING = "sampling_config.json"


@settings
class SamplingConfig:
    """Sampling by default; the authors' where a release says nothing.

    Args:
        height: pixels vertically.
        width: pixels horizontally.
        num_inference_steps: denoising steps per patch.
        guidance_scale: guidance scale of all AR steps.
    """

    height: Count = 1024
    width: Count = 1024
    num_inference_steps: Count = 50
    guidance_scale: Number = 7.5


def read_sampling(folder: Path) -> SamplingConfig:
    """What a folder says of sampling.

    Raises:
        CheckpointError: its file is damaged.
    """
    path = folder / _SAMPLING
    if not path.exists():
        return SamplingConfig()
    try:
        return parse(SamplingConfig, read_json(path))
    except ValueError as error:
        raise CheckpointError(f"{path}: {one_line(error)}") from error


def load_release(
    folder: Path, dtype: torch.dtype, device: torch.device | str, *, autoencoder: Path | None = None
) -> TextToImageModel:
    """Load a released folder; see ``BitDanceT2IPipeline.from_pretrained``.

    Raises:
        FileNotFoundError: a file is missing.
        CheckpointError: a file is damaged, or does not fit the configuration.
    """
    config = _read_config(folder)
    # Mapped, not read: names and shapes are compared first, of all files.
    files = {"language model": read_language_model(folder, config.llm)}
    for name in ("vision_head.safetensors", "projector.safetensors"):
        files[name] = weights.read_weights(folder / name)
    if autoencoder is None:
        files["ae.safetensors"] = weights.read_weights(folder / "ae.safetensors")
    else:
        found, files["ae.safetensors"] = read_autoencoder(autoencoder)
        try:
            config = dataclasses.replace(config, autoencoder=found)
        except ValueError as error:
            raise CheckpointError(f"{autoencoder} does not fit {folder}: {error}") from error
    layers = config.llm.num_hidden_layers
    counted: dict[str, tuple[type[nn.Module], Iterable[BlockCount]]] = {
        "language model": (
            Qwen3ForCausalLM, [BlockCount("model.layers.", layers, "num_hidden_layers")],
        ),
        "vision_head.safetensors": (DiffusionHead, head_block_counts(config.head)),
        "ae.safetensors": (BinaryAutoencoder, autoencoder_block_counts(config.autoencoder)),
    }  # fmt: skip
    for name, (kind, repeats) in counted.items():
        check_block_counts(files[name], repeats, kind.__name__, f"{folder}: {name}")
    model = build_on_meta(lambda: TextToImageModel(config, dtype=dtype, device="meta"), str(folder))
    parts: dict[str, nn.Module] = {
        "language model": model.llm_model,
        "vision_head.safetensors": model.vision_head,
        "ae.safetensors": model.ae,
        "projector.safetensors": model.embed_vision_mlp,
    }
    for name, part in parts.items():
        weights.check_weights(part, files[name], f"{folder}: {name}", values=False)
    for name, part in parts.items():  # one at a time, so that there is memory for it
        weights.load_weights(part, files.pop(name), f"{folder}: {name}")
        part.to(device)
    return model


_PARTS = {
    "vision_head.": "vision_head.safetensors",
    "embed_vision_mlp.": "projector.safetensors",
    "ae.": "ae.safetensors",
}
"""Files of a release, besides those of the language model, by prefix of the parameters in them."""


def read_release(folder: Path) -> weights.Tensors:
    """All tensors of a release by the names of the model, unchecked.

    A language model alone is a release, too, that lacks the rest.

    Raises:
        FileNotFoundError: a file is missing.
        CheckpointError: a file is damaged.
    """
    try:
        config = Qwen3Config.from_dict(read_json(folder / "config.json"))
    except (TypeError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{folder}: {one_line(error)}") from error
    model = read_language_model(folder, config)
    tensors = {f"llm_model.{name}": tensor for name, tensor in model.items()}
    if not (folder / "vision_head_config.json").exists():
        return tensors
    for prefix, name in _PARTS.items():
        part = weights.read_weights(folder / name)
        tensors |= {f"{prefix}{key}": tensor for key, tensor in part.items()}
    return tensors


def save_release(model: TextToImageModel, sampling: SamplingConfig, folder: Path) -> None:
    """Write a model in the form of a release into a folder that exists.

    Raises:
        OSError: the disk is full, or the folder cannot be written.
    """
    config, head = model.config, dataclasses.asdict(model.config.head)
    del head["architecture"]
    configs = {
        "config.json": {"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"],
                        **config.llm.to_dict()},
        "vision_head_config.json": {**head, "parallel_num": config.parallel_num},
        "ae_config.json": config.autoencoder.to_dict(),
        _SAMPLING: dataclasses.asdict(sampling),
    }  # fmt: skip
    state = model.state_dict()
    for prefix, name in {"llm_model.": "model.safetensors", **_PARTS}.items():
        weights.write_tensors(folder / name, weights.split_prefix(state, prefix)[0])
    for name, content in configs.items():
        write_text(folder / name, json.dumps(content, indent=1) + "\n")


def _read_config(folder: Path) -> TextToImageConfig:
    names = ("config.json", "vision_head_config.json", "ae_config.json")
    files = [read_json(folder / name) for name in names]
    try:
        return TextToImageConfig.from_dicts(*files)
    except (TypeError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{folder}: {one_line(error)}") from error


def read_language_model(folder: Path, config: Qwen3Config) -> weights.Tensors:
    """All tensors of a language model, from one file or from the parts that an index names.

    Raises:
        FileNotFoundError: a file is missing.
        CheckpointError: a file is damaged.
    """
    index = folder / "model.safetensors.index.json"
    if not index.exists():
        tensors = weights.read_weights(folder / "model.safetensors")
    else:
        names = read_json(index).get("weight_map")
        files = list(names.values()) if isinstance(names, dict) else []
        if not files or any(not isinstance(n, str) or Path(n).name != n or not n for n in files):
            raise CheckpointError(f"{index} must map tensors to files beside it")
        stored: weights.Tensors = {}
        for name in sorted(set(files)):
            weights.check_checksum(folder / name)
            part = weights.read_tensors(folder / name)
            twice = sorted(part.keys() & stored.keys())
            if twice:
                raise CheckpointError(f"{folder / name} has {twice[0]}, which another part has too")
            stored |= part
        tensors = normalize_names(stored, "ema", str(index))
    if config.tie_word_embeddings:
        tensors.pop("lm_head.weight", None)  # the input's once more
    return tensors
