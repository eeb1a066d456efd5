"""What a server needs of the two kinds of pipelines: requests to images for slots, and back."""

from __future__ import annotations

import io
import secrets
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from PIL import Image

from bitdance.integrations.serving.requests import ApiError, ImagesRequest, parse_size
from bitdance.pipelines.base import BasePipeline
from bitdance.pipelines.class_conditional import BitDancePipeline
from bitdance.pipelines.text_to_image import BitDanceT2IPipeline
from bitdance.sampling.ar_sampler import guidance_at
from bitdance.sampling.slot_sequences import ClassSlots, Prompt, SlotSequence, TextSlots
from bitdance.sampling.slots import Slot, SlotDecoder, SlotImage

__all__ = ["Kind", "Limits", "Plan", "ServedModel", "serve_model"]


@dataclass(frozen=True)
class Limits:
    """What a request may ask for.

    Attributes:
        max_inference_steps: denoising steps per patch.
        max_prompt_chars: characters of a prompt.
        max_prompt_tokens: tokens of a prompt, of a text-to-image model.
        max_pixels: pixels of an image of a text-to-image model; by default its own size.
    """

    max_inference_steps: int = 250
    max_prompt_chars: int = 8000
    max_prompt_tokens: int = 1024
    max_pixels: int | None = None


class Kind(NamedTuple):
    """What images that share a batch have in common."""

    guided: bool
    num_inference_steps: int


@dataclass(frozen=True)
class Plan:
    """What a request asks for.

    Attributes:
        kind: of all its images.
        images: images to sample.
        size: height and width in pixels.
        format: "png", "jpeg" or "webp".
        compression: quality of JPEG and WebP, 0 to 100.
        partial_images: previews of each image.
        stream: whether events are sent.
    """

    kind: Kind
    images: tuple[SlotImage[Any], ...]
    size: tuple[int, int]
    format: str
    compression: int
    partial_images: int
    stream: bool

    @property
    def seed(self) -> int:
        """Seed of all images, whose sample ids are 0, 1, 2, ..."""
        return self.images[0].seed


class ServedModel(ABC):
    """A pipeline as a server uses it.

    Args:
        pipeline: the pipeline.
        name: name of the model in answers.
        sequence: the model, as slots see it.
        limits: what a request may ask for.
    """

    def __init__(
        self, pipeline: BasePipeline, name: str, sequence: SlotSequence[Any], limits: Limits
    ) -> None:
        self.pipeline, self.name, self.limits = pipeline, name, limits
        self._sequence = sequence

    @property
    def device(self) -> torch.device:
        """Device of the model."""
        return self.pipeline.device

    def decoder(self, kind: Kind, slots: int) -> SlotDecoder[Any]:
        """Slots for images of a kind."""
        return SlotDecoder(
            self._sequence, guided=kind.guided, num_inference_steps=kind.num_inference_steps,
            slots=slots,
        )  # fmt: skip

    def plan(self, request: ImagesRequest) -> Plan:
        """What `request` asks for.

        Raises:
            ApiError: the request cannot be fulfilled.
        """
        limits = self.limits
        if request.model not in (None, self.name):
            raise ApiError(
                f"model must be {self.name!r}, the one that is served", status=404,
                param="model", code="model_not_found",
            )  # fmt: skip
        for name in ("prompt", "negative_prompt"):
            length = len(getattr(request, name) or "")
            if length > limits.max_prompt_chars:
                raise ApiError(
                    f"{name} must have at most {limits.max_prompt_chars} characters, got {length}",
                    param=name, code="string_above_max_length",
                )  # fmt: skip
        if (request.num_inference_steps or 1) > limits.max_inference_steps:
            raise ApiError(
                f"num_inference_steps must be at most {limits.max_inference_steps}, got "
                f"{request.num_inference_steps}",
                param="num_inference_steps", code="invalid_value",
            )  # fmt: skip
        if request.partial_images and not request.stream:
            raise ApiError(
                "partial_images needs stream", param="partial_images", code="invalid_value"
            )
        try:
            kind, start, guidance, size = self._start(request)
            ar_steps = self._sequence.ar_steps(start)
        except ValueError as error:
            raise ApiError(str(error), code="invalid_value") from None
        # A float of JSON holds it exactly.
        seed = secrets.randbits(53) if request.seed is None else request.seed
        images = tuple(
            SlotImage(start, guidance[:ar_steps], seed, number) for number in range(request.n)
        )
        compression = 95 if request.output_compression is None else request.output_compression
        return Plan(
            kind, images, size, request.output_format or "png", compression,
            request.partial_images or 0, bool(request.stream),
        )  # fmt: skip

    @abstractmethod
    def _start(
        self, request: ImagesRequest
    ) -> tuple[Kind, Any, tuple[float, ...], tuple[int, int]]:
        """Kind, start and guidance of an image, and its size in pixels."""

    def encode(self, plan: Plan, slot: Slot[Any], packed: torch.Tensor, step: int) -> bytes:
        """The file of an image of which `step` patches are sampled.

        Raises:
            NotFiniteError: the decoder computes NaN or infinity.
        """
        image: Image.Image = self._decode(plan, slot, packed, step * self._sequence.patch_shape[0])
        file, options = io.BytesIO(), {}
        if plan.format != "png":
            options["quality"] = plan.compression
        image.save(file, plan.format, **options)
        return file.getvalue()

    @abstractmethod
    def _decode(self, plan: Plan, slot: Slot[Any], packed: torch.Tensor, tokens: int) -> Any:
        """The image of packed latents [N, ceil(C / 8)]; the first `tokens` are sampled."""


class _ClassModel(ServedModel):
    pipeline: BitDancePipeline

    def __init__(self, pipeline: BitDancePipeline, name: str, limits: Limits) -> None:
        super().__init__(pipeline, name, ClassSlots(pipeline.model), limits)

    def _start(
        self, request: ImagesRequest
    ) -> tuple[Kind, Any, tuple[float, ...], tuple[int, int]]:
        config, side = self.pipeline.config, self.pipeline.config.resolution
        if request.negative_prompt:
            raise ApiError(
                "negative_prompt must be left out for a model of classes",
                param="negative_prompt", code="invalid_value",
            )  # fmt: skip
        size = parse_size(request.size)
        if size not in (None, (side, side)):
            raise ApiError(
                f"size must be '{side}x{side}', got '{request.size}'",
                param="size", code="invalid_value",
            )  # fmt: skip
        steps = request.num_inference_steps or self.pipeline.num_inference_steps
        scale = config.cfg_scale if request.guidance_scale is None else request.guidance_scale
        guidance = tuple(
            guidance_at(i, config.ar_steps, scale, "linear") for i in range(config.ar_steps)
        )
        try:
            label = self.pipeline.label(request.prompt)
        except ValueError as error:
            text = f"prompt must be a class: {error}"
            raise ApiError(text, param="prompt", code="invalid_value") from None
        return Kind(scale > 1, steps), label, guidance, (side, side)

    def _decode(self, plan: Plan, slot: Slot[Any], packed: torch.Tensor, tokens: int) -> Any:
        image = slot.image
        return self.pipeline.preview(
            packed[None, :tokens], seed=image.seed, sample_ids=[image.sample_id]
        )[0]


class _TextModel(ServedModel):
    pipeline: BitDanceT2IPipeline

    def __init__(self, pipeline: BitDanceT2IPipeline, name: str, limits: Limits) -> None:
        own, config = pipeline.sampling, pipeline.config
        self._max_pixels = pixels = limits.max_pixels or own.height * own.width
        around = config.parallel_num + 2  # size, start and queries
        sequence = TextSlots(
            pipeline.model,
            max_prompt_tokens=limits.max_prompt_tokens + around,
            max_image_tokens=pixels // config.autoencoder.downsampling**2,
        )
        super().__init__(pipeline, name, sequence, limits)

    def _start(
        self, request: ImagesRequest
    ) -> tuple[Kind, Any, tuple[float, ...], tuple[int, int]]:
        pipeline, own = self.pipeline, self.pipeline.sampling
        size = parse_size(request.size) or (own.height, own.width)
        grid = pipeline.grid(*size)
        if size[0] * size[1] > self._max_pixels:
            raise ApiError(
                f"size must be of at most {self._max_pixels} pixels, got {size[1]}x{size[0]}",
                param="size", code="invalid_value",
            )  # fmt: skip
        steps = request.num_inference_steps or own.num_inference_steps
        scale = own.guidance_scale if request.guidance_scale is None else request.guidance_scale
        guided = scale > 1
        prefix, prompts, negatives = pipeline.token_ids(
            [request.prompt], [request.negative_prompt or ""], grid
        )
        rows = pipeline.sampler.token_rows(
            prompts, prefix, grid=grid, negative_prompts=negatives, guided=guided
        )
        ar_steps = grid[0] * grid[1] // pipeline.config.parallel_num
        guidance = (guidance_at(0, ar_steps, scale, "constant"),) * ar_steps
        return Kind(guided, steps), Prompt(tuple(rows), grid), guidance, size

    def _decode(self, plan: Plan, slot: Slot[Any], packed: torch.Tensor, tokens: int) -> Any:
        image, (height, width) = slot.image, plan.size
        return self.pipeline.preview(
            packed[None, :tokens], height=height, width=width, seed=image.seed,
            sample_ids=[image.sample_id],
        )[0]  # fmt: skip


def serve_model(
    pipeline: BitDancePipeline | BitDanceT2IPipeline, name: str, limits: Limits | None = None
) -> ServedModel:
    """A pipeline as a server uses it.

    Args:
        pipeline: the pipeline; its weights must stay as they are while it is served.
        name: name of the model in answers.
        limits: what a request may ask for.

    Raises:
        RuntimeError: the pipeline is offloaded: slots sample and decode in every step.
    """
    pipeline._refuse_offloaded("serve_model")
    limits = limits or Limits()
    if isinstance(pipeline, BitDancePipeline):
        return _ClassModel(pipeline, name, limits)
    return _TextModel(pipeline, name, limits)
