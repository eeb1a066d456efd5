"""Bits of images, and the nodes that decode and encode them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from comfy import model_management
from comfy.utils import ProgressBar

from bitdance import BitDancePipeline, BitDanceT2IPipeline

from .devices import make_room

__all__ = ["BitDanceDecode", "BitDanceEncode", "Codes", "Pipeline", "size_options"]

Pipeline = BitDancePipeline | BitDanceT2IPipeline


@dataclass(frozen=True)
class Codes:
    """Bits of images of one size, a value of the type ``BITDANCE_CODES``.

    Attributes:
        packed: uint8 [n, tokens, ceil(C / 8)] in generation order, on the CPU.
        height: height of the images in pixels.
        width: width of the images in pixels.
        seed: seed of the images, for decoders that take noise.
        sample_ids: sample id of each image, likewise.
    """

    packed: torch.Tensor
    height: int
    width: int
    seed: int
    sample_ids: tuple[int, ...]


def size_options(pipeline: Pipeline, height: int, width: int) -> dict[str, Any]:
    """Arguments that tell a pipeline the size of images.

    Raises:
        ValueError: the pipeline has one size, which is another.
    """
    if not isinstance(pipeline, BitDancePipeline):
        return {"height": height, "width": width}
    side = pipeline.config.resolution
    if (height, width) != (side, side):
        raise ValueError(f"images of this model are {side} x {side}, got {width} x {height}")
    return {}


class BitDanceDecode:
    """Decodes bits to images."""

    FUNCTION = "decode"
    CATEGORY = "BitDance"
    DESCRIPTION = "Decodes the bits of images."
    RETURN_TYPES = ("IMAGE",)
    RETURN_NAMES = ("image",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Inputs of the node."""
        return {
            "required": {
                "codes": ("BITDANCE_CODES",),
                "vae": ("BITDANCE_VAE",),
                "images_at_a_time": ("INT", {
                    "default": 1, "min": 1, "max": 4096,
                    "tooltip": "Images that are decoded together; more take more memory.",
                }),
            }
        }  # fmt: skip

    def decode(self, codes: Codes, vae: Pipeline, images_at_a_time: int) -> tuple[torch.Tensor]:
        """Images [n, H, W, 3], float32 in [0, 1].

        Raises:
            NotFiniteError: the decoder computes NaN or infinity.
            ValueError: the bits are those of another model.
        """
        make_room(vae.device)
        size = size_options(vae, codes.height, codes.width)
        progress, images = ProgressBar(len(codes.packed)), []
        for first in range(0, len(codes.packed), images_at_a_time):
            model_management.throw_exception_if_processing_interrupted()
            batch = slice(first, first + images_at_a_time)
            decoded = vae.decode(
                codes.packed[batch], seed=codes.seed, sample_ids=codes.sample_ids[batch],
                output_type="np", **size,
            )  # fmt: skip
            images.append(torch.from_numpy(decoded))
            progress.update(len(decoded))
        return (torch.cat(images).to(model_management.intermediate_device()),)


class BitDanceEncode:
    """Encodes images to bits."""

    FUNCTION = "encode"
    CATEGORY = "BitDance"
    DESCRIPTION = "Encodes images to bits."
    RETURN_TYPES = ("BITDANCE_CODES",)
    RETURN_NAMES = ("codes",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Inputs of the node."""
        return {"required": {"image": ("IMAGE",), "vae": ("BITDANCE_VAE",)}}

    def encode(self, image: torch.Tensor, vae: Pipeline) -> tuple[Codes]:
        """Bits of images [n, H, W, 3] in [0, 1]; further channels are left out.

        Raises:
            ValueError: the autoencoder cannot encode images of this size, or they are not finite.
        """
        count, height, width = image.shape[:3]
        size_options(vae, height, width)
        make_room(vae.device)
        progress, packed = ProgressBar(count), []
        for one in image[..., :3].movedim(-1, 1).split(1):
            model_management.throw_exception_if_processing_interrupted()
            packed.append(vae.encode(one))
            progress.update(1)
        return (Codes(torch.cat(packed), height, width, 0, tuple(range(count))),)
