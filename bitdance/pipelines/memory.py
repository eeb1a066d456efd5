"""Memory that generating needs, from a configuration alone: no weights, and no card."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from bitdance.io.validation import exact_int
from bitdance.models.autoencoder.autoencoder import BinaryAutoencoder
from bitdance.models.class_conditional import BitDanceModel
from bitdance.models.config import ModelConfig
from bitdance.models.loading.meta_device import build_on_meta
from bitdance.models.quantization import check_quantization
from bitdance.models.text_to_image import TextToImageModel
from bitdance.models.text_to_image_config import TextToImageConfig
from bitdance.pipelines.live_memory import LiveMemory
from bitdance.sampling.image_decoder import ImageDecoder
from bitdance.sampling.text_to_image import cache_tokens

__all__ = ["CARDS", "RESERVED", "MemoryEstimate", "estimate_memory"]

GIB = 1 << 30
CARDS = (24, 48, 80)
"""Memory of usual cards in GiB."""
RESERVED = GIB
"""Bytes of a card that CUDA and its libraries take."""

_PREFIX = 3  # <|vision_start|>, height and width; P - 1 queries follow
_ACTIVATIONS = 32  # buffers of an AR step that exist at a time, of the width of the trunk


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes that generating needs.

    Attributes:
        weights: parameters and buffers by part of the model, "autoencoder" among them.
        cache: keys and values.
        sampling: buffers of an AR step, roughly.
        decoding: maps of the decoder: the largest number of bytes at a time.
    """

    weights: Mapping[str, int]
    cache: int
    sampling: int
    decoding: int

    @property
    def resident(self) -> int:
        """Bytes with all parts on one device."""
        work = max(self.sampling, self.decoding)
        return sum(self.weights.values()) + self.cache + work

    @property
    def offloaded(self) -> int:
        """Bytes on the device if the autoencoder and all else are there in turns."""
        own = self.weights["autoencoder"]
        others = sum(self.weights.values()) - own
        return self.cache + max(others + self.sampling, own + self.decoding)

    def fits(self, gib: float) -> str | None:
        """How a model fits on a card: "resident", "offloaded", or None if it does not.

        Args:
            gib: memory of the card in GiB, of which ``RESERVED`` bytes are not available.
        """
        available = gib * GIB - RESERVED
        if self.resident <= available:
            return "resident"
        return "offloaded" if self.offloaded <= available else None

    def to_dict(self) -> dict[str, Any]:
        """All numbers as JSON can hold them, in bytes."""
        return {
            "weights": dict(self.weights), "cache": self.cache, "sampling": self.sampling,
            "decoding": self.decoding, "resident": self.resident, "offloaded": self.offloaded,
            "cards": {str(gib): self.fits(gib) for gib in CARDS},
        }  # fmt: skip


def estimate_memory(
    config: TextToImageConfig | ModelConfig,
    *,
    dtype: torch.dtype = torch.float32,
    quantization: str | None = None,
    batch_size: int = 1,
    height: int = 1024,
    width: int = 1024,
    guided: bool = True,
    prompt_tokens: int = 256,
) -> MemoryEstimate:
    """The memory that generating needs on a device.

    Weights and cache are exact. The decoder runs on the meta device, where its maps are counted;
    what a convolution of a library needs inside is not known. Buffers of an AR step are estimated
    from the widths, and are small beside all else.

    Args:
        config: configuration of the model.
        dtype: dtype of the parameters.
        quantization: as ``BasePipeline.quantize`` takes it, or None.
        batch_size: images at a time.
        height: pixels vertically, of a text-to-image model.
        width: pixels horizontally.
        guided: whether rows without a prompt or class are needed too.
        prompt_tokens: tokens of the longest prompt.

    Raises:
        TypeError, ValueError: an argument is out of range.
    """
    function = "estimate_memory"
    images = exact_int(function, "batch_size", batch_size, 1)
    if quantization is not None:
        check_quantization(function, quantization)
    if isinstance(config, ModelConfig):
        cost = _class_conditional(config, dtype)
    else:
        sides = [
            exact_int(function, name, pixels, config.autoencoder.downsampling)
            for name, pixels in (("height", height), ("width", width))
        ]
        longest = exact_int(function, "prompt_tokens", prompt_tokens, 1)
        cost = _text_to_image(config, dtype, (sides[0], sides[1]), longest)
    weights = {name: _bytes(part) for name, part in cost.parts.items()}
    if quantization is not None:
        for name, blocks in cost.blocks.items():
            weights[name] -= _saved(blocks)
    rows = 2 * images if guided else images
    decoder, bits = cost.parts["autoencoder"], config.autoencoder.z_channels
    return MemoryEstimate(
        weights,
        cache=rows * cost.cached * dtype.itemsize,
        sampling=rows * cost.width * _ACTIVATIONS * dtype.itemsize,
        decoding=_decoding(decoder, (images, bits, *cost.grid)),
    )


@dataclass(frozen=True)
class _Cost:
    """What an image needs.

    Attributes:
        parts: parts of the model, on the meta device.
        blocks: what is quantized of some parts.
        grid: cells of the latent map.
        cached: elements of keys and values of a row.
        width: elements of a row in an AR step: tokens times channels.
    """

    parts: Mapping[str, nn.Module]
    blocks: Mapping[str, nn.Module]
    grid: tuple[int, int]
    cached: int
    width: int


def _class_conditional(config: ModelConfig, dtype: torch.dtype) -> _Cost:
    model = build_on_meta(
        lambda: BitDanceModel(config, dtype=dtype, device="meta"), "estimate_memory"
    )
    side = config.resolution // config.autoencoder.downsampling
    autoencoder, head, layers = model.vae, model.head, model.layers
    del model.vae, model.head
    return _Cost(
        {"transformer": model, "head": head, "autoencoder": autoencoder},
        {"transformer": layers, "head": head.net.res_blocks},
        (side, side),
        len(layers) * len(model.freqs) * 2 * config.dim,
        config.parallel_num * max(config.dim, config.diff_dim),
    )


def _text_to_image(
    config: TextToImageConfig, dtype: torch.dtype, pixels: tuple[int, int], prompt_tokens: int
) -> _Cost:
    model = build_on_meta(
        lambda: TextToImageModel(config, dtype=dtype, device="meta"), "estimate_memory"
    )
    P, llm, factor = config.parallel_num, config.llm, config.autoencoder.downsampling
    grid = (pixels[0] // factor, pixels[1] // factor)
    _, tokens = cache_tokens(prompt_tokens + _PREFIX + P - 1, grid, P)
    return _Cost(
        {
            "language model": model.llm_model, "head": model.vision_head,
            "projector": model.embed_vision_mlp, "autoencoder": model.ae,
        },
        {
            "language model": model.llm_model.model.layers,
            "head": model.vision_head.net.res_blocks,
        },
        grid,
        llm.num_hidden_layers * tokens * 2 * llm.num_key_value_heads * llm.head_dim,
        P * max(llm.hidden_size, config.head.ch_latent),
    )  # fmt: skip


def _bytes(module: nn.Module) -> int:
    tensors = [*module.parameters(), *module.buffers()]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _saved(blocks: nn.Module) -> int:
    """Bytes by which quantization makes layers smaller: an element takes a byte, a row a scale."""
    layers = [layer for layer in blocks.modules() if isinstance(layer, nn.Linear)]
    return sum(
        layer.weight.numel() * (layer.weight.element_size() - 1) - 4 * layer.out_features
        for layer in layers
    )


def _decoding(autoencoder: nn.Module, shape: tuple[int, int, int, int]) -> int:
    """Largest number of bytes of the maps that exist at a time."""
    assert isinstance(autoencoder, BinaryAutoencoder)
    decode = ImageDecoder(autoencoder.eval())
    latents = torch.empty(shape, dtype=torch.float32, device="meta")
    noise = torch.empty_like(latents) if autoencoder.config.gan_decoder else None
    with LiveMemory() as memory:
        decode(latents, noise=noise)
    return memory.peak
