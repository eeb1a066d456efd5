"""BitDance, an autoregressive image generator whose tokens are bits.

``BitDancePipeline`` generates images of classes, ``BitDanceT2IPipeline`` images of prompts. The
folders: ``pipelines``, ``models`` (the networks), ``sampling`` (the loop over AR steps and the
denoising of a patch), ``training``, ``data``, ``evaluation``, ``io``, ``integrations``, ``cli``.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bitdance.integrations.official.patch import PatchError, patch_official, unpatch_official
    from bitdance.io.files import CheckpointError
    from bitdance.io.image_files import ImageError
    from bitdance.models.autoencoder.autoencoder import BinaryAutoencoder
    from bitdance.models.config import (
        AUTOENCODER_PRESETS,
        PRESETS,
        AutoencoderConfig,
        HeadConfig,
        ModelConfig,
    )
    from bitdance.models.text_to_image_config import TextToImageConfig
    from bitdance.pipelines.base import GenerationCancelled
    from bitdance.pipelines.class_conditional import BitDancePipeline
    from bitdance.pipelines.text_to_image import BitDanceT2IPipeline
    from bitdance.sampling.finite import NotFiniteError
    from bitdance_kernels import __version__

__all__ = [
    "AUTOENCODER_PRESETS",
    "PRESETS",
    "AutoencoderConfig",
    "BinaryAutoencoder",
    "BitDancePipeline",
    "BitDanceT2IPipeline",
    "CheckpointError",
    "GenerationCancelled",
    "HeadConfig",
    "ImageError",
    "ModelConfig",
    "NotFiniteError",
    "PatchError",
    "TextToImageConfig",
    "__version__",
    "patch_official",
    "unpatch_official",
]

_HOMES = {
    "bitdance.models.autoencoder.autoencoder": ("BinaryAutoencoder",),
    "bitdance.pipelines.base": ("GenerationCancelled",),
    "bitdance.models.config": (
        "AUTOENCODER_PRESETS", "PRESETS", "AutoencoderConfig", "HeadConfig", "ModelConfig",
    ),
    "bitdance.sampling.finite": ("NotFiniteError",),
    "bitdance.io.image_files": ("ImageError",),
    "bitdance.integrations.official.patch": ("PatchError", "patch_official", "unpatch_official"),
    "bitdance.pipelines.class_conditional": ("BitDancePipeline",),
    "bitdance.models.text_to_image_config": ("TextToImageConfig",),
    "bitdance.pipelines.text_to_image": ("BitDanceT2IPipeline",),
    "bitdance.io.weights": ("CheckpointError",),
    "bitdance_kernels": ("__version__",),
}  # fmt: skip
"""Home of each name. PyTorch is imported with the first of them, not with the package."""
_MODULES = {name: module for module, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        value = getattr(importlib.import_module(_MODULES[name]), name)
        globals()[name] = value
        return value
    if not name.startswith("_"):
        try:
            return importlib.import_module(f"bitdance.{name}")
        except ModuleNotFoundError as error:
            if error.name != f"bitdance.{name}":
                raise
    raise AttributeError(f"module 'bitdance' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
