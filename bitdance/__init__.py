"""BitDance, an autoregressive image generator whose tokens are bits.

``BitDance.from_pretrained(...).generate(labels)`` is the way from a checkpoint to pictures; the
modules below are its parts: ``autoencoder`` (the binary tokenizer), ``transformer``,
``diffusion_head``, ``sampler``, ``model`` (all of them together), ``weights`` and ``pipeline``.
``TextToImage`` is the same for texts: ``qwen``, ``text_to_image`` and ``text_to_image_pipeline``.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bitdance.autoencoder import BinaryAutoencoder
    from bitdance.batches import GenerationCancelled
    from bitdance.config import (
        AUTOENCODER_PRESETS,
        PRESETS,
        AutoencoderConfig,
        HeadConfig,
        ModelConfig,
    )
    from bitdance.finite import NotFiniteError
    from bitdance.image_files import ImageError
    from bitdance.patch_official import PatchError, patch_official, unpatch_official
    from bitdance.pipeline import BitDance
    from bitdance.text_to_image_config import TextToImageConfig
    from bitdance.text_to_image_pipeline import TextToImage
    from bitdance.weights import CheckpointError
    from bitdance_kernels import __version__

__all__ = [
    "AUTOENCODER_PRESETS",
    "PRESETS",
    "AutoencoderConfig",
    "BinaryAutoencoder",
    "BitDance",
    "CheckpointError",
    "GenerationCancelled",
    "HeadConfig",
    "ImageError",
    "ModelConfig",
    "NotFiniteError",
    "PatchError",
    "TextToImage",
    "TextToImageConfig",
    "__version__",
    "patch_official",
    "unpatch_official",
]

_HOMES = {
    "bitdance.autoencoder": ("BinaryAutoencoder",),
    "bitdance.batches": ("GenerationCancelled",),
    "bitdance.config": (
        "AUTOENCODER_PRESETS", "PRESETS", "AutoencoderConfig", "HeadConfig", "ModelConfig",
    ),
    "bitdance.finite": ("NotFiniteError",),
    "bitdance.image_files": ("ImageError",),
    "bitdance.patch_official": ("PatchError", "patch_official", "unpatch_official"),
    "bitdance.pipeline": ("BitDance",),
    "bitdance.text_to_image_config": ("TextToImageConfig",),
    "bitdance.text_to_image_pipeline": ("TextToImage",),
    "bitdance.weights": ("CheckpointError",),
    "bitdance_kernels": ("__version__",),
}  # fmt: skip
"""Where the names are from: PyTorch is imported with the first of them, not with the package."""
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
