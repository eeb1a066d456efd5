"""Memory that generating needs, from a configuration alone: no weights, and no card."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from bitdance.io.validation import exact_int
from bitdance.models.autoencoder.autoencoder import BinaryAutoencoder
from bitdance.models.class_conditional import BitDanceModel
from bitdance.models.config import ModelConfig
from bitdance.models.diffusion_head import HeadNetwork
from bitdance.models.live_memory import LiveMemory
from bitdance.models.loading.meta_device import build_on_meta
from bitdance.models.quantization import check_quantization, quantize_blocks
from bitdance.models.text_to_image import TextToImageModel
from bitdance.models.text_to_image_config import TextToImageConfig
from bitdance.models.transformer import Transformer
from bitdance.pipelines.arguments import inference_steps
from bitdance.sampling.ar_sampler import ARSampler, StepResult
from bitdance.sampling.class_conditional import ClassConditionalSampler
from bitdance.sampling.image_decoder import ImageDecoder
from bitdance.sampling.panel_memory import panel_bytes
from bitdance.sampling.text_to_image import TextToImageSampler, room_for_prompts

__all__ = ["CARDS", "RESERVED", "MemoryEstimate", "estimate_memory"]

GIB = 1 << 30
CARDS = (24, 48, 80)
"""Memory of usual cards in GiB."""
RESERVED = GIB
"""Bytes of a card that CUDA and its libraries take."""

_PROMPT_TOKENS = 256
_PREFIX = 2  # tokens between a prompt and an image, beside the queries of its first patch
_SCALE = 2.0  # any guidance scale that makes rows without a prompt or class


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes that generating needs.

    Attributes:
        weights: parameters and buffers by part of the model, "autoencoder" among them.
        cache: keys and values.
        buffers: what sampling keeps from step to step, copies of weights in another form included.
        sampling: the largest number of bytes of other tensors at a time while sampling.
        decoding: the same while decoding.
        panels: copies of weights in float32 that products on a CPU read.
    """

    weights: Mapping[str, int]
    cache: int
    buffers: int
    sampling: int
    decoding: int
    panels: int

    @property
    def resident(self) -> int:
        """Bytes with all parts on one card."""
        work = max(self.sampling, self.decoding)
        return sum(self.weights.values()) + self.cache + self.buffers + work

    @property
    def on_cpu(self) -> int:
        """Bytes on a CPU."""
        return self.resident + self.panels

    @property
    def offloaded(self) -> int:
        """Bytes on the device if the autoencoder and all else are there in turns."""
        own = self.weights["autoencoder"]
        others = sum(self.weights.values()) - own + self.cache + self.buffers
        return max(others + self.sampling, own + self.decoding)

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
            "weights": dict(self.weights), "cache": self.cache, "buffers": self.buffers,
            "sampling": self.sampling, "decoding": self.decoding, "panels": self.panels,
            "resident": self.resident, "offloaded": self.offloaded, "on_cpu": self.on_cpu,
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
    prompt_tokens: int | None = None,
    num_inference_steps: int = 50,
    tile_size: int | None = None,
    slicing: bool = False,
) -> MemoryEstimate:
    """The memory that generating needs on a device.

    An AR step and the decoder run on the meta device, where tensors have sizes and no memory, and
    what exists at a time is counted. What kernels and libraries use inside of an operator is not
    known, nor are the copies that plans other than "library" make of weights.

    Args:
        config: configuration of the model.
        dtype: dtype of the parameters.
        quantization: as ``BasePipeline.quantize`` takes it, or None.
        batch_size: images at a time.
        height: pixels vertically, of a text-to-image model.
        width: pixels horizontally.
        guided: whether rows without a prompt or class are needed too.
        prompt_tokens: tokens of each prompt; by default 256, or what the model has room for.
        num_inference_steps: denoising steps per patch.
        tile_size: as ``enable_vae_tiling`` takes it; None for no tiles.
        slicing: whether images are decoded one by one, as with ``enable_vae_slicing``.

    Raises:
        TypeError, ValueError: an argument is out of range.
    """
    function = "estimate_memory"
    images = exact_int(function, "batch_size", batch_size, 1)
    steps = inference_steps(function, num_inference_steps)
    if quantization is not None:
        check_quantization(function, quantization)
    if isinstance(config, ModelConfig):
        model = _class_conditional(config, dtype, guided)
    else:
        sides = [
            exact_int(function, name, pixels, config.autoencoder.downsampling)
            for name, pixels in (("height", height), ("width", width))
        ]
        longest = _prompt_tokens(config, sides, prompt_tokens)
        model = _text_to_image(config, dtype, (sides[0], sides[1]), longest, guided)
    if quantization is not None:
        quantize_blocks(function, model.blocks, quantization)
    autoencoder = model.parts["autoencoder"]
    assert isinstance(autoencoder, BinaryAutoencoder)
    if tile_size is not None:  # one pass has the maps of many
        autoencoder.enable_tiling(tile_size, exact=False)
    autoencoder.use_slicing = slicing
    cache, buffers, sampling = _sampling(model, images, steps)
    rows = images * (2 if guided else 1) * model.patch
    return MemoryEstimate(
        {name: _bytes(part) for name, part in model.parts.items()},
        cache,
        buffers,
        sampling,
        decoding=_decoding(autoencoder, (images, config.autoencoder.z_channels, *model.grid)),
        panels=panel_bytes(model.network, model.layers, rows, dtype),
    )


def _prompt_tokens(config: TextToImageConfig, sides: Sequence[int], given: int | None) -> int:
    """Tokens of a prompt, once it is clear that the model has positions for them and the image."""
    height, width = sides
    grid = (height // config.autoencoder.downsampling, width // config.autoencoder.downsampling)
    room = room_for_prompts(config, grid)
    if room < 1:
        raise ValueError(
            "estimate_memory: height and width must be those of an image that "
            f"{config.llm.max_position_embeddings} positions have room for, got {height} x {width} "
            f"pixels, which are {math.prod(grid)} tokens"
        )
    if given is None:
        return min(_PROMPT_TOKENS, room)
    longest = exact_int("estimate_memory", "prompt_tokens", given, 1)
    if longest > room:
        raise ValueError(
            f"estimate_memory: prompt_tokens must be at most {room} beside an image of {height} x "
            f"{width} pixels, got {longest}"
        )
    return longest


@dataclass(frozen=True)
class _Model:
    """A model on the meta device.

    Attributes:
        parts: parts of the model that have weights, once each.
        blocks: what is quantized.
        network: network of the head.
        layers: the transformer of a class-conditional model.
        sampler: its sampler.
        sample: begins to sample so many images with so many steps.
        grid: cells of the latent map.
        patch: tokens of an AR step.
    """

    parts: Mapping[str, nn.Module]
    blocks: tuple[nn.Module, nn.Module]
    network: HeadNetwork
    layers: Transformer | None
    sampler: ARSampler[Any]
    sample: Callable[[int, int], Any]
    grid: tuple[int, int]
    patch: int


def _class_conditional(config: ModelConfig, dtype: torch.dtype, guided: bool) -> _Model:
    model = build_on_meta(
        lambda: BitDanceModel(config, dtype=dtype, device="meta"), "estimate_memory"
    )
    sampler, side = ClassConditionalSampler(model.eval()), config.grid

    def sample(images: int, steps: int) -> None:
        sampler.sample(
            torch.zeros(images, dtype=torch.int64, device="cpu"), num_inference_steps=steps,
            guidance_scale=_SCALE if guided else 1.0, seeds=range(images), on_step=_stop,
        )  # fmt: skip

    rest = nn.ModuleList(
        child for name, child in model.named_children() if name not in ("vae", "head")
    )
    rest.extra = nn.ParameterList(model.parameters(recurse=False))
    return _Model(
        {"transformer": rest, "head": model.head, "autoencoder": model.vae},
        model.blocks, model.head.net, model.layers, sampler, sample, (side, side),
        config.parallel_num,
    )  # fmt: skip


def _text_to_image(
    config: TextToImageConfig,
    dtype: torch.dtype,
    pixels: tuple[int, int],
    prompt_tokens: int,
    guided: bool,
) -> _Model:
    model = build_on_meta(
        lambda: TextToImageModel(config, dtype=dtype, device="meta"), "estimate_memory"
    )
    P, factor = config.parallel_num, config.autoencoder.downsampling
    grid = (pixels[0] // factor, pixels[1] // factor)
    sampler = TextToImageSampler(model.eval())

    def sample(images: int, steps: int) -> None:
        # Prompts that differ, since equal ones are computed once.
        prompts = [[*[0] * (prompt_tokens - 1), i % config.llm.vocab_size] for i in range(images)]
        sampler.sample(
            prompts, [0] * (P + _PREFIX), grid=grid, negative_prompts=[1] * prompt_tokens,
            num_inference_steps=steps, guidance_scale=_SCALE if guided else 1.0,
            seeds=range(images), on_step=_stop,
        )  # fmt: skip

    return _Model(
        {
            "language model": model.llm_model, "head": model.vision_head,
            "projector": model.embed_vision_mlp, "autoencoder": model.ae,
        },
        model.blocks, model.vision_head.net, None, sampler, sample, grid, P,
    )  # fmt: skip


class _Enough(Exception):  # noqa: N818  (ends a run on the meta device, is never seen outside)
    pass


def _stop(result: StepResult) -> None:
    """No later AR step needs more than the first, by whose end all buffers exist."""
    raise _Enough


def _sampling(model: _Model, images: int, steps: int) -> tuple[int, int, int]:
    """Bytes of the cache, of buffers that stay, and of the largest other tensors at a time."""
    with torch.no_grad(), LiveMemory() as memory, contextlib.suppress(_Enough):
        model.sample(images, steps)
    (workspace,) = model.sampler.workspaces.idle
    assert workspace.cache is not None
    cache = sum(tensor.nbytes for pair in workspace.cache.layers for tensor in pair)
    return cache, memory.live - cache, memory.peak - memory.live


def _decoding(autoencoder: BinaryAutoencoder, shape: tuple[int, int, int, int]) -> int:
    """Largest number of bytes of the maps that exist at a time."""
    decode = ImageDecoder(autoencoder.eval())
    latents = torch.empty(shape, dtype=torch.float32, device="meta")
    noise = torch.empty_like(latents) if autoencoder.config.gan_decoder else None
    with LiveMemory() as memory:
        decode(latents, noise=noise)
    return memory.peak


def _bytes(module: nn.Module) -> int:
    tensors = [*module.parameters(), *module.buffers()]
    return sum(tensor.nbytes for tensor in tensors)
