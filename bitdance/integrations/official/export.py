"""Models and autoencoders as the files that the authors' code reads."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from bitdance.io.files import publish, temporary_file, write_text
from bitdance.io.weights import write_tensors
from bitdance.models.autoencoder.autoencoder import BinaryAutoencoder
from bitdance.models.class_conditional import BitDanceModel
from bitdance.models.config import AutoencoderConfig
from bitdance.models.loading.checkpoint_config import arguments_of

__all__ = ["write_official"]

_MODEL, _AUTOENCODER = "model.pt", "autoencoder.pt"
_WEIGHTS, _CONFIG = "ae.safetensors", "ae_config.json"


def write_official(
    folder: Path, autoencoder: BinaryAutoencoder, model: BitDanceModel | None = None
) -> list[Path]:
    """Write what the authors' scripts load, under the official names of parameters.

    ``model.pt`` is for ``--ckpt`` of their ImageNet scripts and has the arguments of the model;
    ``autoencoder.pt`` is for ``--trained-vae``; ``ae.safetensors`` and ``ae_config.json`` are those
    of a text-to-image release.

    Args:
        folder: made where it does not exist.
        autoencoder: the autoencoder.
        model: the class-conditional model, if there is one.

    Returns:
        The files.

    Raises:
        FileExistsError: one of them exists.
        OSError: the folder cannot be written.
    """
    names = [*([_MODEL] if model else []), _AUTOENCODER, _WEIGHTS, _CONFIG]
    for name in names:
        if (folder / name).exists():
            raise FileExistsError(f"{folder / name} exists")
    folder.mkdir(parents=True, exist_ok=True)
    state = {name: tensor.detach().cpu() for name, tensor in autoencoder.state_dict().items()}
    if model is not None:
        own = {name: tensor.detach().cpu() for name, tensor in model.state_dict().items()}
        arguments = argparse.Namespace(**arguments_of(model.config))
        _save(folder / _MODEL, {"model": own, "ema": own, "args": arguments})
    _save(folder / _AUTOENCODER, {"state_dict": state})
    write_tensors(folder / _WEIGHTS, state)
    write_text(folder / _CONFIG, json.dumps(_official_config(autoencoder.config), indent=2) + "\n")
    return [folder / name for name in names]


def _save(path: Path, content: Mapping[str, Any]) -> None:
    with temporary_file(path) as temporary:
        try:
            torch.save(content, temporary)
        except RuntimeError as error:  # as PyTorch reports a full disk
            raise OSError(f"cannot write {path}: {error}") from error
        publish(temporary, path)


def _official_config(config: AutoencoderConfig) -> dict[str, Any]:
    values = config.to_dict()
    attention: dict[str, Any] = {
        name: values[name] for name in ("attn_blocks", "n_heads") if name in values
    }
    if attention:  # an argument of theirs without an effect
        attention["resolution"] = 256
    names = ("z_channels", "in_channels", "out_ch", "ch", "ch_mult", "num_res_blocks")
    return {
        "ddconfig": {"double_z": False, **{name: values[name] for name in names}, **attention},
        "gan_decoder": config.gan_decoder,
        "num_codebooks": config.num_codebooks,
    }
