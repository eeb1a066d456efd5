"""Models and autoencoders as the files that the authors' code reads."""

from __future__ import annotations

import argparse
import contextlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from bitdance.io.files import locked, publish, temporary_file
from bitdance.io.weights import publish_tensors, save_tensors
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
    paths = [folder / name for name in (_MODEL, _AUTOENCODER, _WEIGHTS, _CONFIG)]
    paths = paths if model else paths[1:]
    _refuse_existing(paths)
    folder.mkdir(parents=True, exist_ok=True)
    state = {name: tensor.detach().cpu() for name, tensor in autoencoder.state_dict().items()}
    config = json.dumps(_official_config(autoencoder.config), indent=2) + "\n"
    with contextlib.ExitStack() as stack:
        fresh = {path.name: stack.enter_context(temporary_file(path)) for path in paths}
        if model is not None:
            own = {name: tensor.detach().cpu() for name, tensor in model.state_dict().items()}
            arguments = argparse.Namespace(**arguments_of(model.config))
            _save(fresh[_MODEL], {"model": own, "ema": own, "args": arguments})
        _save(fresh[_AUTOENCODER], {"state_dict": state})
        save_tensors(fresh[_WEIGHTS], state)
        fresh[_CONFIG].write_text(config, encoding="utf-8")
        with locked(folder):  # one writer at a time
            _refuse_existing(paths)
            for path in paths:
                put = publish_tensors if path.name == _WEIGHTS else publish
                put(fresh[path.name], path)
    return paths


def _refuse_existing(paths: Iterable[Path]) -> None:
    for path in paths:
        if path.exists():
            raise FileExistsError(f"{path} exists")


def _save(path: Path, content: Mapping[str, Any]) -> None:
    try:
        torch.save(content, path)
    except RuntimeError as error:  # as PyTorch reports a full disk
        raise OSError(f"cannot write {path}: {error}") from error


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
