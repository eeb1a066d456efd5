"""Initial weights of a run: those of another run, or exported or official ones."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bitdance.io import weights
from bitdance.io.files import CheckpointError
from bitdance.models.autoencoder.autoencoder import BinaryAutoencoder
from bitdance.models.loading.autoencoder_files import autoencoder_tensors, read_autoencoder
from bitdance.models.loading.hub import locate
from bitdance.models.text_to_image import TextToImageModel
from bitdance.pipelines.class_conditional import BitDancePipeline
from bitdance.pipelines.release import locate_release, read_release
from bitdance.training import checkpoint
from bitdance.training.autoencoder import CONFIG

__all__ = ["load_initial_weights", "locate_init"]


def load_initial_weights(module: nn.Module, source: str) -> None:
    """Load the weights of `source` into the module that is to be trained.

    Args:
        module: an autoencoder, or a model that already has its frozen autoencoder.
        source: a run's folder, whose newest averaged weights are used; what a run exported; an
            official file; or the id of a Hugging Face repository. An autoencoder takes its own
            part of a model. A text-to-image model takes a language model alone, too, and keeps
            the weights that it has of all else, and of tokens that the other does not know.

    Raises:
        FileNotFoundError: there is nothing.
        CheckpointError: it is damaged, or does not fit the module, which is unchanged.
    """
    alone = isinstance(module, BinaryAutoencoder)
    path = locate_init(source, module)
    if isinstance(module, TextToImageModel):
        tensors = _read_text_to_image(path, module)
    else:
        tensors = _read(path, alone)
    if alone:
        tensors = autoencoder_tensors(tensors)
    for name, own in module.named_parameters():
        if not own.requires_grad and not _same(tensors.setdefault(name, own), own):
            raise CheckpointError(
                f"init: {source} was trained on another autoencoder than that of autoencoder_path "
                f"({name} differs)"
            )
    weights.load_weights(module, tensors, f"init: {source}")


def locate_init(source: str, module: nn.Module | type[nn.Module]) -> Path:
    """The file or folder of initial weights; see ``load_initial_weights``.

    Raises:
        FileNotFoundError: there is none.
    """
    kind = module if isinstance(module, type) else type(module)
    try:
        if issubclass(kind, TextToImageModel):
            return locate_release(source)
        return locate(source, autoencoder=issubclass(kind, BinaryAutoencoder))
    except FileNotFoundError as error:
        raise FileNotFoundError(f"init: {error}") from error


def _same(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.shape == b.shape and torch.equal(a.to(b.device, b.dtype), b)


def _check_sections(state: Mapping[str, Any]) -> None:
    for name in ("module", "average"):
        if not isinstance(state.get(name), Mapping):
            raise CheckpointError(f"the checkpoint has no {name}")


def _read_text_to_image(path: Path, module: TextToImageModel) -> weights.Tensors:
    state = checkpoint.newest(path, _check_sections)
    if state is not None:
        return {**state["module"], **state["average"]}
    tensors = read_release(path)
    for name in ("llm_model.model.embed_tokens.weight", "llm_model.lm_head.weight"):
        own, given = module.state_dict().get(name), tensors.get(name)
        if own is None or given is None or given.shape[1:] != own.shape[1:]:
            continue
        if len(given) < len(own):  # tokens were added
            tensors[name] = torch.cat([given.to(own.device, own.dtype), own[len(given) :]])
    if not any(name.startswith("vision_head.") for name in tensors):
        tensors = {**module.state_dict(), **tensors}
    return tensors


def _read(path: Path, autoencoder: bool) -> weights.Tensors:
    if path.is_file():
        return weights.read_weights(path)
    state = checkpoint.newest(path, _check_sections)
    if state is not None:
        return {**state["module"], **state["average"]}
    if autoencoder or (path / CONFIG).is_file():
        return read_autoencoder(path)[1]
    return BitDancePipeline.from_pretrained(path).model.state_dict()
