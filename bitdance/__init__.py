"""BitDance, an autoregressive image generator whose tokens are bits.

``BitDancePipeline`` generates images of classes, ``BitDanceT2IPipeline`` images of prompts. The
folders: ``pipelines``, ``models`` (the networks), ``sampling`` (the loop over AR steps and the
denoising of a patch), ``training``, ``data``, ``evaluation``, ``io``, ``integrations``, ``cli``.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

# Public names by module. PyTorch is imported with the first of them, not with the package.
_MODULES = {
    "bitdance.integrations.official.patch": "PatchError patch_official unpatch_official",
    "bitdance.io.files": "CheckpointError",
    "bitdance.io.image_files": "ImageError",
    "bitdance.models.autoencoder.autoencoder": "BinaryAutoencoder",
    "bitdance.models.config": (
        "AUTOENCODER_PRESETS PRESETS AutoencoderConfig HeadConfig ModelConfig"
    ),
    "bitdance.models.text_to_image_config": "TextToImageConfig",
    "bitdance.pipelines.base": "GenerationCancelled ImagePipelineOutput",
    "bitdance.pipelines.class_conditional": "BitDancePipeline",
    "bitdance.pipelines.text_to_image": "BitDanceT2IPipeline",
    "bitdance.sampling.finite": "NotFiniteError",
    "bitdance_kernels": "__version__",
}
_HOMES = {name: module for module, names in _MODULES.items() for name in names.split()}
__all__ = sorted(_HOMES)

if TYPE_CHECKING:
    from bitdance.integrations.official.patch import PatchError as PatchError
    from bitdance.integrations.official.patch import patch_official as patch_official
    from bitdance.integrations.official.patch import unpatch_official as unpatch_official
    from bitdance.io.files import CheckpointError as CheckpointError
    from bitdance.io.image_files import ImageError as ImageError
    from bitdance.models.autoencoder.autoencoder import BinaryAutoencoder as BinaryAutoencoder
    from bitdance.models.config import AUTOENCODER_PRESETS as AUTOENCODER_PRESETS
    from bitdance.models.config import PRESETS as PRESETS
    from bitdance.models.config import AutoencoderConfig as AutoencoderConfig
    from bitdance.models.config import HeadConfig as HeadConfig
    from bitdance.models.config import ModelConfig as ModelConfig
    from bitdance.models.text_to_image_config import TextToImageConfig as TextToImageConfig
    from bitdance.pipelines.base import GenerationCancelled as GenerationCancelled
    from bitdance.pipelines.base import ImagePipelineOutput as ImagePipelineOutput
    from bitdance.pipelines.class_conditional import BitDancePipeline as BitDancePipeline
    from bitdance.pipelines.text_to_image import BitDanceT2IPipeline as BitDanceT2IPipeline
    from bitdance.sampling.finite import NotFiniteError as NotFiniteError
    from bitdance_kernels import __version__ as __version__


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        value = getattr(importlib.import_module(_HOMES[name]), name)
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
