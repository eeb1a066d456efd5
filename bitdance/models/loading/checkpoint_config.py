"""The configuration of a model whose weights come in a file of their own.

It is taken from what the file says about itself, the training arguments of an official ``.pt`` or a
configuration beside it, and compared with the shapes. Where there is nothing, shapes alone identify
a published model.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch

from bitdance.io.files import CheckpointError, NoModelError, one_line, require_file
from bitdance.io.json_files import read_json
from bitdance.io.toml_files import read_toml
from bitdance.io.validation import brief
from bitdance.io.weights import split_prefix
from bitdance.models.config import AUTOENCODER_PRESETS, PRESETS, AutoencoderConfig, ModelConfig
from bitdance.models.loading.meta_device import count
from bitdance.models.presets import expand_model

__all__ = [
    "Claim",
    "arguments_of",
    "claims_of_arguments",
    "infer_autoencoder_config",
    "infer_config",
    "read_claim",
    "read_section",
]

# Arguments of the authors' training scripts that define a model -> fields of ModelConfig.
_ARGUMENTS = {
    "image_size": "resolution",
    **{
        name: name
        for name in (
            "down_size", "patch_size", "num_classes", "cls_token_num", "latent_dim",
            "diff_batch_mul", "perturb_rate", "time_schedule", "time_shift", "parallel_num",
            "parallel_mode", "P_mean", "P_std",
        )
    },
}  # fmt: skip
_SIZE = ("dim", "n_layer", "n_head", "diff_layers", "diff_dim", "diff_adanln_layers")
# Fields without effect on the images: those of the file may differ from a preset's.
_TRAINING_FIELDS = {
    "diff_batch_mul", "perturb_rate", "class_dropout_prob", "time_schedule", "P_mean", "P_std",
}  # fmt: skip
_HEAD_DIM = 64  # in all published transformers
_GROUP_BITS = 8  # in all published autoencoders
_CLASS_EMBEDDING = "cls_embedding.weight"
_DECIDED_BY = {"tokens": "resolution", "token_bits": "latent_dim"}

T = TypeVar("T")


class Claim(NamedTuple):
    """Fields of a ``ModelConfig`` and where they come from.

    Attributes:
        source: the source in a form that can be the subject of "say".
        fields: some or all fields.
    """

    source: str
    fields: Mapping[str, Any]


class _FromShape(NamedTuple):
    value: int
    where: str


def infer_config(
    tensors: Mapping[str, torch.Tensor], claims: Iterable[Claim], path: Path
) -> ModelConfig:
    """The configuration of a class-conditional model.

    Args:
        tensors: tensors of the whole model.
        claims: known fields; all others are taken from the shapes.
        path: path of the file, for errors.

    Raises:
        CheckpointError: claims and shapes contradict each other, or do not identify the model.
    """
    shapes = _read_shapes(tensors)
    if _CLASS_EMBEDDING not in tensors:
        raise NoModelError(f"{path} has no model: it lacks {_CLASS_EMBEDDING}")
    merged: dict[str, tuple[Any, str]] = {}
    for source, fields in claims:
        for name, value in fields.items():
            if name == "autoencoder" and not isinstance(value, AutoencoderConfig):
                value = _call(path, source, functools.partial(AutoencoderConfig.from_dict, value))
            earlier, other = merged.setdefault(name, (value, source))
            if earlier is not value and earlier != value and name not in _TRAINING_FIELDS:
                raise CheckpointError(
                    f"{path}: {other} say {name} = {brief(earlier)}, but {source} say "
                    f"{brief(value)}"
                )
    if not merged:
        return _find_preset(shapes, path)
    sources = " and ".join(dict.fromkeys(source for _, source in merged.values()))
    known = {name: value for name, (value, _) in merged.items()}
    config = _call(path, sources, lambda: _complete(known, shapes, tensors))
    for name, (value, where) in shapes.items():
        expected, field = getattr(config, name), _DECIDED_BY.get(name, name)
        if expected != value:
            cause = "" if field == name else f" ({field} = {brief(getattr(config, field))})"
            raise CheckpointError(
                f"{path}: {sources} say {name} = {brief(expected)}{cause}, but {where} has {value}"
            )
    return config


def claims_of_arguments(arguments: Mapping[str, Any] | None) -> list[Claim]:
    """The fields in arguments of the authors' training scripts; none for other scripts."""
    arguments = arguments or {}
    fields = {ours: arguments[name] for name, ours in _ARGUMENTS.items() if name in arguments}
    if not fields:
        return []
    name = str(arguments.get("model")).removeprefix("BitDance-")
    for preset, config in PRESETS.items():
        if preset.startswith(f"{name}-"):
            fields |= {field: getattr(config, field) for field in _SIZE}
            break
    return [Claim("its training arguments", fields)]


def arguments_of(config: ModelConfig) -> dict[str, Any]:
    """Arguments of the authors' training scripts for a model, as their checkpoints have them."""
    arguments = {name: getattr(config, field) for name, field in _ARGUMENTS.items()}
    sizes = [getattr(config, name) for name in _SIZE]
    for preset, known in PRESETS.items():
        if sizes == [getattr(known, name) for name in _SIZE]:
            arguments["model"] = f"BitDance-{preset.partition('-')[0]}"
            break
    return arguments


def read_claim(path: Path) -> Claim:
    """Fields of a ``ModelConfig`` in a JSON or TOML file, at the top level or in "model".

    Raises:
        CheckpointError: the file is neither, or names a preset that there is not.
        FileNotFoundError: there is no such file.
    """
    fields = read_section(path, "model")
    source = f"the settings of {path}"
    return Claim(source, _call(path, source, lambda: expand_model(fields)))


def read_section(path: Path, section: str) -> dict[str, Any]:
    """A section of a JSON or TOML file, or all of a file without it.

    Raises:
        CheckpointError: the file is neither, or the section is none.
        FileNotFoundError: there is no such file.
    """
    if path.suffix == ".toml":
        require_file(path)
        try:
            content = read_toml(path)
        except (OSError, ValueError) as error:
            raise CheckpointError(f"no usable TOML: {one_line(error)}") from error
    else:
        content = read_json(path)
    fields = content.get(section, content)
    if not isinstance(fields, dict):
        raise CheckpointError(f"{path}: {section} must be a section, got {brief(fields)}")
    return fields


def infer_autoencoder_config(tensors: Mapping[str, torch.Tensor], path: Path) -> AutoencoderConfig:
    """The configuration of an autoencoder, which shapes decide except for UniWeTok's heads.

    Args:
        tensors: tensors of the autoencoder.
        path: path of the file, for errors.

    Raises:
        CheckpointError: they are not those of an autoencoder.
    """
    try:
        ch, in_channels = tensors["encoder.conv_in.weight"].shape[:2]
        bits = len(tensors["encoder.conv_out.weight"])
        widths = [
            len(tensors[f"encoder.down.{level}.block.0.conv2.weight"])
            for level in range(count(tensors, "encoder.down."))
        ]
        fields: dict[str, Any] = {
            "ch": ch,
            "ch_mult": tuple(width // ch for width in widths),
            "num_res_blocks": count(tensors, "encoder.down.0.block."),
            "z_channels": bits,
            "in_channels": in_channels,
            "out_ch": len(tensors["decoder.conv_out.weight"]),
            "num_codebooks": bits // _GROUP_BITS if bits % _GROUP_BITS == 0 else 1,
            "gan_decoder": tensors["decoder.conv_in.weight"].shape[1] == 2 * bits,
        }
        if "encoder.register_token.weight" in tensors:
            blocks = count(tensors, "encoder.mid_attn_blocks.")
            fields |= {"architecture": "conv_attention", "attn_blocks": blocks}
        return AutoencoderConfig(**fields)
    except KeyError as error:
        raise CheckpointError(f"{path} has no autoencoder: {error.args[0]} is missing") from error
    except (TypeError, ValueError, IndexError, ZeroDivisionError) as error:
        raise CheckpointError(f"{path} has no autoencoder: {one_line(error)}") from error


def _call(path: Path, source: str, make: Callable[[], T]) -> T:
    try:
        return make()
    except (TypeError, ValueError, OverflowError, ZeroDivisionError) as error:
        raise CheckpointError(f"{path}: {source} say: {one_line(error)}") from error


def _complete(
    known: Mapping[str, Any], shapes: Mapping[str, _FromShape], tensors: Mapping[str, torch.Tensor]
) -> ModelConfig:
    """The known fields, completed by those from shapes or common to all published models."""
    fields: dict[str, Any] = {name: value for name, (value, _) in shapes.items()} | dict(known)
    tokens, bits = fields.pop("tokens", 0), fields.pop("token_bits", 0)
    if "dim" in fields:
        fields.setdefault("n_head", max(1, fields["dim"] // _HEAD_DIM))
    fields.setdefault("patch_size", 1)
    fields.setdefault("latent_dim", bits // fields["patch_size"] ** 2)
    if "autoencoder" not in fields:
        vae, _ = split_prefix(dict(tensors), "vae.")
        if vae:
            fields["autoencoder"] = infer_autoencoder_config(vae, Path("the file"))
        else:  # that of the authors' scripts; its weights are missing, which is refused later
            official = AUTOENCODER_PRESETS["d16c32"].to_dict()
            own = {"z_channels": fields["latent_dim"], "num_codebooks": 1}
            fields["autoencoder"] = AutoencoderConfig.from_dict({**official, **own})
    fields.setdefault("down_size", fields["autoencoder"].downsampling)
    side = fields["down_size"] * fields["patch_size"]
    fields.setdefault("resolution", math.isqrt(tokens) * side)
    if "cfg_scale" not in fields:  # the authors' recommendation, where they published such a model
        size = {name: fields.get(name) for name in (*_SIZE, "parallel_num")}
        for preset in PRESETS.values():
            if all(getattr(preset, name) == value for name, value in size.items()):
                fields["cfg_scale"] = preset.cfg_scale
    return ModelConfig.from_dict({**fields, "autoencoder": fields["autoencoder"].to_dict()})


def _find_preset(shapes: Mapping[str, _FromShape], path: Path) -> ModelConfig:
    """The published model with these shapes."""

    def differing(preset: ModelConfig) -> list[str]:
        return [name for name, (value, _) in shapes.items() if getattr(preset, name) != value]

    nearest = min(PRESETS, key=lambda name: len(differing(PRESETS[name])))
    if not differing(PRESETS[nearest]):
        return PRESETS[nearest]
    text = ", ".join(f"{name} {value}" for name, (value, _) in shapes.items())
    raise CheckpointError(
        f"{path} has no configuration, and its shapes match no preset ({', '.join(PRESETS)}; "
        f"nearest: {nearest}): {text}; give config=... (--config)"
    )


def _read_shapes(tensors: Mapping[str, torch.Tensor]) -> dict[str, _FromShape]:
    """Attributes of a ``ModelConfig`` that the shapes of the existing tensors decide."""
    seen: dict[str, _FromShape] = {}

    def take(attribute: str, name: str, axis: int, divisor: int = 1, more: int = 0) -> None:
        tensor = tensors.get(name)
        if tensor is not None and tensor.dim() > axis and divisor:
            value, where = tensor.shape[axis] // divisor + more, f"{name} {list(tensor.shape)}"
            seen[attribute] = _FromShape(value, where)

    take("dim", "norm.weight", 0)
    take("num_classes", _CLASS_EMBEDDING, 0, more=-1)
    if "dim" in seen:
        take("cls_token_num", _CLASS_EMBEDDING, 1, seen["dim"].value)
    take("tokens", "pos_for_diff.weight", 0)
    take("token_bits", "proj_in.w1.weight", 1)
    take("diff_dim", "head.net.input_proj.weight", 0)
    take("parallel_num", "query_token", 1, more=1)
    if seen and "parallel_num" not in seen:
        seen["parallel_num"] = _FromShape(1, "a file without query_token")
    for attribute, prefix in (
        ("n_layer", "layers."),
        ("diff_layers", "head.net.res_blocks."),
        ("diff_adanln_layers", "head.net.ada_ln_blocks."),
    ):
        if seen:
            seen[attribute] = _FromShape(count(tensors, prefix), f"{prefix}* of the file")
    return seen
