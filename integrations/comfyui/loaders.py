"""Nodes that load models."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any, ClassVar

from bitdance import BitDancePipeline, BitDanceT2IPipeline

from .devices import DEVICES, DTYPES, choose_device, choose_dtype, make_room
from .model_folders import CLASSES, TEXT, fingerprint, model_names, model_path

__all__ = ["BitDanceLoadClassModel", "BitDanceLoadTextModel"]

_QUANTIZATIONS = ["none", "fp8_weight_only", "fp8", "int8_weight_only"]
_HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*(/\w[\w./-]*)?")


class _Loader:
    """What both nodes share."""

    _kind: ClassVar[str]
    _bundled: ClassVar[str]
    _pipeline: ClassVar[type[BitDancePipeline] | type[BitDanceT2IPipeline]]

    FUNCTION = "load"
    CATEGORY = "BitDance"
    RETURN_NAMES = ("model", "vae")
    OUTPUT_TOOLTIPS = ("The model, for a sampler.", "Its autoencoder, to decode and encode.")

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Inputs of the node."""
        names = [cls._bundled, *(n for n in model_names(cls._kind) if n != cls._bundled)]
        return {
            "required": {
                "model": (names, {
                    "default": cls._bundled,
                    "tooltip": f"{cls._bundled!r} is part of the package bitdance-models; the "
                    "others are in models/bitdance.",
                }),
                "dtype": (DTYPES, {"default": "auto", "tooltip": "Dtype of the weights."}),
                "device": (DEVICES, {
                    "default": "default", "tooltip": "The device that ComfyUI uses, or the CPU.",
                }),
                "quantization": (_QUANTIZATIONS, {
                    "default": "none", "tooltip": "Rounds weights, for less memory.",
                }),
            },
            "optional": {
                "hub_id": ("STRING", {
                    "default": "",
                    "tooltip": "owner/name of a Hugging Face repository, in place of the model "
                    "above; it is downloaded.",
                }),
            },
        }  # fmt: skip

    @classmethod
    def VALIDATE_INPUTS(cls, hub_id: str = "") -> bool | str:
        """Whether `hub_id` is empty or the id of a repository; else what is wrong with it."""
        if hub_id and (not _HUB_ID.fullmatch(hub_id) or ".." in hub_id or Path(hub_id).exists()):
            return f"hub_id must be owner/name of a Hugging Face repository, got {hub_id!r}"
        return True

    @classmethod
    def IS_CHANGED(
        cls, model: str, dtype: str, device: str, quantization: str, hub_id: str = ""
    ) -> str:
        """Text that is another one when the files of the model have changed."""
        if hub_id or model == cls._bundled:
            return ""
        return fingerprint(model_path(cls._kind, model))

    def load(
        self, model: str, dtype: str, device: str, quantization: str, hub_id: str = ""
    ) -> tuple[Any, Any]:
        """The pipeline of a model, as model and as autoencoder.

        Raises:
            CheckpointError: the files do not fit, or are damaged.
            FileNotFoundError: there is no such model.
            ValueError: `hub_id` is no id, or the model cannot be quantized.
        """
        reason = self.VALIDATE_INPUTS(hub_id)
        if reason is not True:
            raise ValueError(reason)
        source: str | Path = hub_id or model
        size: float = math.inf if hub_id else 0
        if not hub_id and model != self._bundled:
            source = model_path(self._kind, model)
            files = [source] if source.is_file() else list(source.rglob("*"))
            size = sum(path.stat().st_size for path in files)
        chosen = choose_device(device)
        make_room(chosen, size)
        pipeline = self._pipeline.from_pretrained(
            source, dtype=choose_dtype(dtype, chosen), device=chosen,
            quantization=None if quantization == "none" else quantization,
        )  # fmt: skip
        return pipeline, pipeline


class BitDanceLoadClassModel(_Loader):
    """Loads a model of classes."""

    _kind, _bundled, _pipeline = CLASSES, "fashion", BitDancePipeline
    RETURN_TYPES = ("BITDANCE_CLASS_MODEL", "BITDANCE_VAE")
    DESCRIPTION = "Loads a BitDance model that draws images of classes."


class BitDanceLoadTextModel(_Loader):
    """Loads a model of texts."""

    _kind, _bundled, _pipeline = TEXT, "emoji", BitDanceT2IPipeline
    RETURN_TYPES = ("BITDANCE_TEXT_MODEL", "BITDANCE_VAE")
    DESCRIPTION = "Loads a BitDance model that draws images of prompts."
