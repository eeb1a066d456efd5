"""Configuration and weights of an autoencoder, from released files and saved folders."""

from __future__ import annotations

from pathlib import Path

from bitdance.io import files, weights
from bitdance.io.files import CheckpointError, one_line
from bitdance.io.json_files import read_json
from bitdance.models.config import AutoencoderConfig
from bitdance.models.loading.checkpoint_config import infer_autoencoder_config
from bitdance.models.loading.model_folder import open_folder, read_consistently

__all__ = ["autoencoder_tensors", "read_autoencoder"]

_PARTS = ("encoder.", "decoder.")
# Weights and configuration in the folder of a training run, and of a text-to-image release.
_PAIRS = (("autoencoder.safetensors", "autoencoder.json"), ("ae.safetensors", "ae_config.json"))


def read_autoencoder(
    path: Path, *, prefer: str = "ema"
) -> tuple[AutoencoderConfig, weights.Tensors]:
    """Configuration and weights of the autoencoder in a file or folder.

    The configuration of a file is read from "<name>_config.json" or "<name>.json" beside it, or
    inferred from its shapes. A model's file or folder gives the autoencoder inside.

    Args:
        path: the file or folder.
        prefer: "ema" or "model", for files that contain both.

    Raises:
        FileNotFoundError: there is nothing.
        CheckpointError: the files are damaged, or contain no autoencoder.
    """
    if not path.is_dir():
        return _read_file(path, prefer)
    for file, config in _PAIRS:
        if (path / config).exists():
            return _read_file(path / file, prefer, path / config)
    if (path / "config.json").exists():
        return read_consistently(path, lambda: _read_model(path))
    known = " or ".join(config for _, config in (*_PAIRS, ("", "config.json")))
    raise FileNotFoundError(f"{path} has no trained autoencoder ({known})")


def autoencoder_tensors(tensors: weights.Tensors) -> weights.Tensors:
    """The autoencoder in a checkpoint, without discriminator, perceptual loss or model."""
    inner, _ = weights.split_prefix(tensors, "vae.")
    return {k: t for k, t in (inner or tensors).items() if k.startswith(_PARTS)}


def _read_file(
    path: Path, prefer: str, config: Path | None = None
) -> tuple[AutoencoderConfig, weights.Tensors]:
    tensors = autoencoder_tensors(weights.read_weights(path, prefer=prefer))
    candidates = [path.with_name(f"{path.stem}{end}") for end in ("_config.json", ".json")]
    for settings in [config] if config is not None else candidates:
        if settings.exists():
            content = read_json(settings)
            try:
                return AutoencoderConfig.from_dict(content), tensors
            except (TypeError, ValueError, RecursionError) as error:
                raise CheckpointError(f"{settings} is damaged: {one_line(error)}") from error
    return infer_autoencoder_config(tensors, path), tensors


def _read_model(folder: Path) -> tuple[AutoencoderConfig, weights.Tensors]:
    found = open_folder(folder)
    if files.sha256(found.file) != found.digest:
        raise CheckpointError(
            f"{found.file} is altered: its checksum differs from {folder}/config.json"
        )
    return found.config.autoencoder, autoencoder_tensors(weights.read_tensors(found.file))
