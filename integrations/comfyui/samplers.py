"""Nodes that draw images, as bits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bitdance import BitDancePipeline, BitDanceT2IPipeline

from .codes import Codes, size_options
from .devices import make_room
from .progress import Progress

__all__ = ["BitDanceSampleClasses", "BitDanceSamplePrompt"]

_MAX_SEED = 2**64 - 1
_MAX_SIDE = 16384
_OWN = "0: the model's own."
_SETTINGS: Mapping[str, Any] = {
    "seed": ("INT", {
        "default": 0, "min": 0, "max": _MAX_SEED, "control_after_generate": True,
        "tooltip": "Seed of the noise.",
    }),
    "steps": ("INT", {
        "default": 0, "min": 0, "max": 1000,
        "tooltip": f"Denoising steps of each patch. {_OWN}",
    }),
    "guidance": ("FLOAT", {
        "default": 0.0, "min": 0.0, "max": 100.0, "step": 0.1,
        "tooltip": f"Guidance scale; 1 turns guidance off. {_OWN}",
    }),
    "batch_size": ("INT", {
        "default": 1, "min": 1, "max": 4096, "tooltip": "Images of each class or prompt.",
    }),
}  # fmt: skip
_PREVIEWS = ("INT", {
    "default": 8, "min": 0, "max": 64,
    "tooltip": "Previews of the first image while it is drawn; each decodes it.",
})  # fmt: skip


class _Sampler:
    """What both nodes share."""

    FUNCTION = "sample"
    CATEGORY = "BitDance"
    RETURN_TYPES = ("BITDANCE_CODES",)
    RETURN_NAMES = ("codes",)
    OUTPUT_TOOLTIPS = ("The bits of the images.",)


class BitDanceSampleClasses(_Sampler):
    """Draws images of classes."""

    DESCRIPTION = "Draws images of classes with a BitDance model, as bits."

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Inputs of the node."""
        classes = {
            "default": "0", "multiline": True,
            "tooltip": "Names or numbers of classes, one a line.",
        }  # fmt: skip
        return {
            "required": {
                "model": ("BITDANCE_CLASS_MODEL",),
                "classes": ("STRING", classes),
                **_SETTINGS,
            },
            "optional": {"previews": _PREVIEWS},
        }

    def sample(
        self, model: BitDancePipeline, classes: str, seed: int, steps: int, guidance: float,
        batch_size: int, previews: int = 8,
    ) -> tuple[Codes]:  # fmt: skip
        """Bits of images of classes.

        Raises:
            ValueError: there is no such class, or none is given.
        """
        names = [line.strip() for line in classes.splitlines() if line.strip()]
        if not names:
            raise ValueError("classes must have a name or number on a line, got none")
        side = model.config.resolution
        return (_sample(model, names, (side, side), seed, steps, guidance, batch_size, previews),)


class BitDanceSamplePrompt(_Sampler):
    """Draws images of a prompt."""

    DESCRIPTION = "Draws images of a prompt with a BitDance model, as bits."

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Inputs of the node."""
        side = {"default": 0, "min": 0, "max": _MAX_SIDE, "step": 8}
        return {
            "required": {
                "model": ("BITDANCE_TEXT_MODEL",),
                "prompt": ("STRING", {
                    "default": "", "multiline": True, "dynamicPrompts": True,
                    "tooltip": "What to draw.",
                }),
                "negative_prompt": ("STRING", {
                    "default": "", "multiline": True, "dynamicPrompts": True,
                    "tooltip": "What guidance leads away from.",
                }),
                **_SETTINGS,
                "width": ("INT", {**side, "tooltip": f"Width in pixels. {_OWN}"}),
                "height": ("INT", {**side, "tooltip": f"Height in pixels. {_OWN}"}),
            },
            "optional": {"previews": _PREVIEWS},
        }  # fmt: skip

    def sample(
        self, model: BitDanceT2IPipeline, prompt: str, negative_prompt: str, seed: int, steps: int,
        guidance: float, batch_size: int, width: int, height: int, previews: int = 8,
    ) -> tuple[Codes]:  # fmt: skip
        """Bits of images of a prompt.

        Raises:
            ValueError: the model cannot draw images of this size, or the prompt is too long.
        """
        size = (height or model.sampling.height, width or model.sampling.width)
        codes = _sample(
            model, [prompt], size, seed, steps, guidance, batch_size, previews,
            negative_prompt=negative_prompt,
        )  # fmt: skip
        return (codes,)


def _sample(
    pipeline: BitDancePipeline | BitDanceT2IPipeline, subjects: list[str], size: tuple[int, int],
    seed: int, steps: int, guidance: float, batch_size: int, previews: int, **options: Any,
) -> Codes:  # fmt: skip
    """Bits of `batch_size` images of each subject; 0 steps or guidance are the model's own."""
    make_room(pipeline.device)
    of_size = size_options(pipeline, *size)
    progress = Progress(previews, seed, of_size)
    packed = pipeline(
        subjects, num_inference_steps=steps or None, guidance_scale=guidance or None, seed=seed,
        num_images_per_prompt=batch_size, output_type="latent", callback_on_step_end=progress,
        **of_size, **options,
    ).images  # fmt: skip
    return Codes(packed, *size, seed, tuple(range(len(packed))))
