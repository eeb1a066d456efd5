"""What the page needs of the two kinds of pipelines: a visitor's settings to pictures and bits."""

from __future__ import annotations

import math
import re
import secrets
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from PIL import Image

from bitdance.io.validation import brief, exact_int, finite_number
from bitdance.models.autoencoder.autoencoder import BinaryAutoencoder
from bitdance.pipelines.base import BasePipeline, Callback
from bitdance.pipelines.class_conditional import BitDancePipeline
from bitdance.pipelines.prompts import image_prefix
from bitdance.pipelines.text_to_image import BitDanceT2IPipeline
from bitdance_kernels import unpack_signs

__all__ = ["DemoModel", "InputError", "Limits", "Picture", "Settings", "demo_model"]

_MAX_SEED = 2**64 - 1
_RANDOM_SEED_BITS = 32  # short enough to write down


class InputError(ValueError):
    """What a visitor has entered cannot be used.

    Args:
        message: a sentence for the visitor.
        field: argument of ``DemoModel.settings`` that it is about.
    """

    def __init__(self, message: str, field: str | None = None) -> None:
        super().__init__(message)
        self.field = field


@dataclass(frozen=True)
class Limits:
    """What a visitor may ask for.

    Attributes:
        max_images: images of a run, which are sampled in one batch.
        max_inference_steps: denoising steps per patch.
        max_guidance_scale: guidance scale.
        max_prompt_chars: characters of a prompt.
        max_pixels: pixels of an image of a text-to-image model; by default its own size.
    """

    max_images: int = 8
    max_inference_steps: int = 250
    max_guidance_scale: float = 20.0
    max_prompt_chars: int = 2000
    max_pixels: int | None = None


@dataclass(frozen=True)
class Settings:
    """What a run draws, checked.

    Attributes:
        subject: the prompt, or the name or number of the class.
        negative_prompt: text that guidance leads away from; empty for none.
        seed: seed of all images, whose sample ids are 0, 1, 2, ...
        guidance_scale: guidance scale.
        num_inference_steps: denoising steps per patch.
        num_images: number of images.
        size: height and width in pixels.
    """

    subject: str
    negative_prompt: str
    seed: int
    guidance_scale: float
    num_inference_steps: int
    num_images: int
    size: tuple[int, int]


@dataclass(frozen=True)
class Picture:
    """An image with what it was drawn from.

    Attributes:
        settings: settings of its run.
        sample_id: its number in the run.
        image: the pixels.
        packed: its bits, uint8 [N, ceil(C / 8)] in generation order.
    """

    settings: Settings
    sample_id: int
    image: Image.Image
    packed: np.ndarray

    @property
    def num_bytes(self) -> int:
        """Memory of pixels and bits."""
        return self.image.width * self.image.height * len(self.image.getbands()) + self.packed.size


class DemoModel(ABC):
    """A pipeline as the page uses it.

    Args:
        pipeline: the pipeline.
        name: name of the model.
        limits: what a visitor may ask for.

    Attributes:
        subjects: classes to choose from, by name or, without one, by number; empty for a
            text-to-image model, whose subjects are prompts.
        heights: heights in pixels to choose from.
        widths: widths in pixels to choose from.
        size: height and width by default.
        guidance_scale: guidance scale by default.
        num_inference_steps: denoising steps by default.
    """

    subjects: tuple[str, ...] = ()
    heights: tuple[int, ...]
    widths: tuple[int, ...]
    size: tuple[int, int]
    guidance_scale: float
    num_inference_steps: int
    _token_bits: int  # C

    def __init__(self, pipeline: BasePipeline, name: str, limits: Limits) -> None:
        pipeline.set_progress_bar_config(disable=True)  # the page has its own
        self.pipeline, self.name, self.limits = pipeline, name, limits

    @property
    @abstractmethod
    def autoencoder(self) -> BinaryAutoencoder:
        """The model's autoencoder."""

    def settings(
        self,
        subject: object,
        *,
        negative_prompt: object = "",
        seed: object = "",
        guidance_scale: object = None,
        num_inference_steps: object = None,
        num_images: object = 1,
        height: object = None,
        width: object = None,
    ) -> Settings:
        """The settings that a visitor has entered; None stands for a default.

        Args:
            subject: the prompt, or the class.
            negative_prompt: text that guidance leads away from.
            seed: digits; empty for a random seed.
            guidance_scale: guidance scale.
            num_inference_steps: denoising steps per patch.
            num_images: number of images.
            height: height in pixels.
            width: width in pixels.

        Raises:
            InputError: something cannot be used.
        """
        limits, size = self.limits, self.size
        settings = Settings(
            subject=self._text("class" if self.subjects else "prompt", "subject", subject),
            negative_prompt=self._text("negative prompt", "negative_prompt", negative_prompt),
            seed=_seed(seed),
            guidance_scale=_guidance(
                self.guidance_scale if guidance_scale is None else guidance_scale,
                limits.max_guidance_scale,
            ),
            num_inference_steps=_count(
                "number of steps",
                "num_inference_steps",
                self.num_inference_steps if num_inference_steps is None else num_inference_steps,
                limits.max_inference_steps,
            ),
            num_images=_count("number of images", "num_images", num_images, limits.max_images),
            size=(
                _choice("height", size[0] if height is None else height, self.heights),
                _choice("width", size[1] if width is None else width, self.widths),
            ),
        )
        self._check(settings)
        return settings

    def _text(self, name: str, field: str, given: object) -> str:
        text = "" if given is None else given
        if not isinstance(text, str):
            raise InputError(f"The {name} must be text, got {brief(given)}.", field)
        limit = self.limits.max_prompt_chars
        if len(text) > limit:
            raise InputError(
                f"The {name} has {len(text):,} characters; at most {limit:,} can be used.", field
            )
        return text.strip()

    @abstractmethod
    def _check(self, settings: Settings) -> None:
        """Raise InputError if the model cannot draw that."""

    @abstractmethod
    def sample(self, settings: Settings, callback: Callback) -> torch.Tensor:
        """Packed latents uint8 [n, N, ceil(C / 8)] of the images.

        Args:
            settings: what to draw.
            callback: called after every AR step with "generated_latents"; see the pipelines.

        Raises:
            NotFiniteError: the model computes NaN or infinity.
        """

    @abstractmethod
    def decode(self, packed: torch.Tensor, settings: Settings) -> list[Image.Image]:
        """The images of packed latents that ``sample`` has returned."""

    @abstractmethod
    def preview(self, packed: torch.Tensor, settings: Settings) -> list[Image.Image]:
        """The images of the first tokens; patches that are not drawn yet are gray."""

    def pictures(self, packed: torch.Tensor, settings: Settings) -> list[Picture]:
        """The finished pictures of a run."""
        arrays = packed.numpy()
        return [
            Picture(settings, number, image, arrays[number].copy())
            for number, image in enumerate(self.decode(packed, settings))
        ]

    def bits(self, picture: Picture) -> np.ndarray:
        """The bits of a picture where they lie in it: uint8 [h, w, z_channels] of 0 and 1."""
        tokens = unpack_signs(torch.from_numpy(picture.packed)[None])[..., : self._token_bits]
        latents = self._to_latents(tokens, picture.settings.size)
        return (latents[0] > 0).permute(1, 2, 0).to(torch.uint8).numpy()

    @abstractmethod
    def _to_latents(self, tokens: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        """Tokens [B, N, C] to maps [B, C, h, w] of an image of `size` pixels."""


class _ClassModel(DemoModel):
    pipeline: BitDancePipeline

    def __init__(self, pipeline: BitDancePipeline, name: str, limits: Limits) -> None:
        super().__init__(pipeline, name, limits)
        side = pipeline.config.resolution
        self.size, self.heights, self.widths = (side, side), (side,), (side,)
        self.subjects = tuple(name or str(i) for i, name in enumerate(pipeline.classes))
        self._token_bits = pipeline.config.token_bits
        self.guidance_scale = pipeline.config.cfg_scale
        self.num_inference_steps = pipeline.num_inference_steps

    @property
    def autoencoder(self) -> BinaryAutoencoder:
        return self.pipeline.model.vae

    def _check(self, settings: Settings) -> None:
        if not settings.subject:
            raise InputError("Choose a class.", "subject")
        if settings.negative_prompt:
            raise InputError("A model of classes takes no negative prompt.", "negative_prompt")
        try:
            self.pipeline.label(settings.subject)
        except ValueError:
            name = brief(settings.subject)
            raise InputError(f"The model has no class {name}.", "subject") from None

    def sample(self, settings: Settings, callback: Callback) -> torch.Tensor:
        return self.pipeline(
            settings.subject,
            num_inference_steps=settings.num_inference_steps,
            guidance_scale=settings.guidance_scale,
            num_images_per_prompt=settings.num_images,
            seed=settings.seed,
            output_type="latent",
            callback_on_step_end=callback,
            callback_on_step_end_tensor_inputs=["generated_latents"],
        ).images

    def decode(self, packed: torch.Tensor, settings: Settings) -> list[Image.Image]:
        return cast("list[Image.Image]", self.pipeline.decode(packed, seed=settings.seed))

    def preview(self, packed: torch.Tensor, settings: Settings) -> list[Image.Image]:
        return cast("list[Image.Image]", self.pipeline.preview(packed, seed=settings.seed))

    def _to_latents(self, tokens: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        return self.pipeline.model.to_latents(tokens)


class _TextModel(DemoModel):
    pipeline: BitDanceT2IPipeline

    def __init__(self, pipeline: BitDanceT2IPipeline, name: str, limits: Limits) -> None:
        super().__init__(pipeline, name, limits)
        own = pipeline.sampling
        self._max_pixels = limits.max_pixels or own.height * own.width
        sides = _known_sides(pipeline, self._max_pixels)
        squares = [side for side in sides if side * side <= self._max_pixels]
        if not squares:
            raise ValueError(
                f"demo: max_pixels must be of an image that the model's tokenizer knows, got "
                f"{self._max_pixels}"
            )
        fits = own.height * own.width <= self._max_pixels and {own.height, own.width} <= {*sides}
        self.size = (own.height, own.width) if fits else (squares[-1], squares[-1])
        self.heights = self.widths = tuple(s for s in sides if s * sides[0] <= self._max_pixels)
        self._token_bits = pipeline.config.autoencoder.z_channels
        self.guidance_scale = own.guidance_scale
        self.num_inference_steps = own.num_inference_steps

    @property
    def autoencoder(self) -> BinaryAutoencoder:
        return self.pipeline.model.ae

    def _check(self, settings: Settings) -> None:
        if not settings.subject:
            raise InputError("The prompt is empty: write what to draw.", "subject")
        height, width = settings.size
        if height * width > self._max_pixels:
            raise InputError(
                f"{width} x {height} pixels are too many; at most {self._max_pixels:,} can be "
                "drawn here.",
                "width",
            )
        grid = self.pipeline.grid(height, width)
        texts = [settings.subject], [settings.negative_prompt]
        prefix, prompts, negatives = self.pipeline.token_ids(*texts, grid)
        config = self.pipeline.config
        room = config.llm.max_position_embeddings - len(prefix)
        room -= grid[0] * grid[1] - config.parallel_num  # the last patch is not fed
        for field, ids in (("subject", prompts[0]), ("negative_prompt", negatives[0])):
            if len(ids) > room:
                name = "prompt" if field == "subject" else "negative prompt"
                raise InputError(
                    f"The {name} is too long: it has {len(ids):,} tokens, and beside an image of "
                    f"this size the model has room for {max(room, 0):,}.",
                    field,
                )

    def sample(self, settings: Settings, callback: Callback) -> torch.Tensor:
        height, width = settings.size
        return self.pipeline(
            settings.subject,
            negative_prompt=settings.negative_prompt,
            num_inference_steps=settings.num_inference_steps,
            guidance_scale=settings.guidance_scale,
            num_images_per_prompt=settings.num_images,
            height=height,
            width=width,
            seed=settings.seed,
            output_type="latent",
            callback_on_step_end=callback,
            callback_on_step_end_tensor_inputs=["generated_latents"],
        ).images

    def decode(self, packed: torch.Tensor, settings: Settings) -> list[Image.Image]:
        height, width = settings.size
        images = self.pipeline.decode(packed, height=height, width=width, seed=settings.seed)
        return cast("list[Image.Image]", images)

    def preview(self, packed: torch.Tensor, settings: Settings) -> list[Image.Image]:
        height, width = settings.size
        images = self.pipeline.preview(packed, height=height, width=width, seed=settings.seed)
        return cast("list[Image.Image]", images)

    def _to_latents(self, tokens: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        return self.pipeline.model.to_latents(tokens, self.pipeline.grid(*size))


def demo_model(
    pipeline: BitDancePipeline | BitDanceT2IPipeline, name: str, limits: Limits | None = None
) -> DemoModel:
    """A pipeline as the page uses it.

    Args:
        pipeline: the pipeline; its progress bar is turned off.
        name: name of the model.
        limits: what a visitor may ask for.

    Raises:
        ValueError: the limits allow no image of the model.
    """
    limits = limits or Limits()
    if isinstance(pipeline, BitDancePipeline):
        return _ClassModel(pipeline, name, limits)
    return _TextModel(pipeline, name, limits)


def _known_sides(pipeline: BitDanceT2IPipeline, max_pixels: int) -> list[int]:
    """Sides in pixels that the tokenizer has tokens for and that an image can have."""
    config = pipeline.config
    factor, cells = config.autoencoder.downsampling, math.isqrt(config.parallel_num)
    sides = []
    for tokens in range(cells, max_pixels // (factor * factor * cells) + 1, cells):
        try:
            image_prefix(pipeline.tokenizer, (tokens, tokens), config.parallel_num)
        except ValueError:  # no image of this size was trained
            continue
        sides.append(tokens * factor)
    return sides


def _seed(given: object) -> int:
    text = "" if given is None else str(given).strip()
    if not text:
        return secrets.randbits(_RANDOM_SEED_BITS)
    number = int(text) if re.fullmatch("[0-9]{1,20}", text) else None
    if number is None or number > _MAX_SEED:
        raise InputError(
            f"The seed must be a whole number from 0 to {_MAX_SEED}, or empty for a random one, "
            f"got {brief(text)}.",
            "seed",
        )
    return number


def _guidance(given: object, maximum: float) -> float:
    try:
        scale = finite_number("demo", "guidance", given)
    except (TypeError, ValueError):
        scale = math.nan
    if not 0 <= scale <= maximum:
        text = f"The guidance must be from 0 to {maximum:g}, got {brief(given)}."
        raise InputError(text, "guidance_scale")
    return scale


def _count(name: str, field: str, given: object, maximum: int) -> int:
    try:
        return exact_int("demo", name, given, 1, maximum)
    except (TypeError, ValueError):
        raise InputError(
            f"The {name} must be a whole number from 1 to {maximum}, got {brief(given)}.", field
        ) from None


def _choice(name: str, given: Any, choices: tuple[int, ...]) -> int:
    try:
        value = exact_int("demo", name, given)
    except (TypeError, ValueError):
        value = -1
    if value not in choices:
        listed = ", ".join(map(str, choices[:8])) + (", ..." if len(choices) > 8 else "")
        raise InputError(f"The {name} must be of {listed} pixels, got {brief(given)}.", name)
    return value
