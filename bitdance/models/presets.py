"""Configurations that begin with a published one, by its name."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from bitdance.io.settings import invalid_value
from bitdance.models.config import AUTOENCODER_PRESETS, PRESETS, ModelShape

__all__ = ["expand_autoencoder", "expand_model", "expand_shape"]

_PRESET = "preset"  # names a published configuration, beside fields that replace its own


def expand_autoencoder(values: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of an ``AutoencoderConfig`` for values that may name a preset.

    Raises:
        ValueError: there is no such preset.
    """
    return _expand(values, {name: c.to_dict() for name, c in AUTOENCODER_PRESETS.items()})


def expand_model(values: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of a ``ModelConfig`` for values that may name a preset.

    Raises:
        ValueError: there is no such preset.
    """
    return _expand(values, {name: config.to_dict() for name, config in PRESETS.items()})


def expand_shape(values: Mapping[str, Any]) -> dict[str, Any]:
    """The same without the fields that an autoencoder and images decide: a ``ModelShape``.

    Raises:
        ValueError: there is no such preset.
    """
    names = [field.name for field in dataclasses.fields(ModelShape)]
    return _expand(values, {name: {n: getattr(c, n) for n in names} for name, c in PRESETS.items()})


def _expand(values: Mapping[str, Any], presets: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    own = {name: value for name, value in values.items() if name != _PRESET}
    if _PRESET not in values:
        return own
    name = values[_PRESET]
    if not isinstance(name, str) or name not in presets:
        raise invalid_value(_PRESET, f"one of {', '.join(presets)}", name)
    return {**presets[name], **own}
