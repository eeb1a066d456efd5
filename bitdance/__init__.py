"""BitDance, an autoregressive image generator whose tokens are bits.

``BitDance.from_pretrained(...).generate(labels)`` is the way from a checkpoint to pictures; the
modules below are its parts: ``autoencoder`` (the binary tokenizer), ``transformer``,
``diffusion_head``, ``sampler``, ``model`` (all of them together), ``weights`` and ``pipeline``.
``TextToImage`` is the same for texts: ``qwen``, ``text_to_image`` and ``text_to_image_pipeline``.
"""

from bitdance.batches import GenerationCancelled
from bitdance.config import AUTOENCODER_PRESETS, PRESETS, AutoencoderConfig, HeadConfig, ModelConfig
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
