"""Arguments of the pipelines: seeds, dtypes, output types, shapes of images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from PIL import Image

from bitdance.io.validation import as_list, brief, exact_int, is_single
from bitdance.models.loading.model_folder import MAX_STEPS

__all__ = [
    "Generators",
    "ImageShape",
    "OutputType",
    "Seeds",
    "batch_slices",
    "check_output_type",
    "check_packed_latents",
    "image_seeds",
    "inference_steps",
    "packed_shape",
    "repeated",
    "to_output",
]

OutputType = Literal["pil", "np", "pt", "uint8", "latent"]
Generators = torch.Generator | Sequence[torch.Generator]
Seeds = int | Sequence[int]

_MAX_IMAGES = 2**32
"""Of a call: as many as there are sample ids."""


@dataclass(frozen=True)
class ImageShape:
    """Shape of the images of a call.

    Attributes:
        tokens: N, tokens of an image.
        bits: C, bits of a token.
        ar_steps: AR steps of an image.
        pixels: channels, height and width.
        to_latents: tokens [B, N, C] to the decoder's maps.
    """

    tokens: int
    bits: int
    ar_steps: int
    pixels: tuple[int, int, int]
    to_latents: Callable[[torch.Tensor], torch.Tensor]


def check_output_type(
    function: str, output_type: str, known: Sequence[str] = ("pil", "np", "pt", "uint8", "latent")
) -> None:
    """Raise ValueError unless `output_type` is known."""
    if output_type not in known:
        *others, last = map(repr, known)
        raise ValueError(
            f"{function}: output_type must be {', '.join(others)} or {last}, got "
            f"{brief(output_type)}"
        )


def check_packed_latents(
    packed_latents: object, shape: ImageShape, *, complete: bool = True
) -> torch.Tensor:
    """`packed_latents`, if it is uint8 [n, N, ceil(C / 8)].

    Args:
        packed_latents: argument of ``decode``, or of ``preview``.
        shape: shape of the images.
        complete: whether all N tokens are needed, as ``decode`` does, or the first suffice.

    Raises:
        TypeError: it is no tensor.
        ValueError: it has another dtype or shape.
    """
    tokens, size = packed_shape(shape)
    name = "decode: packed_latents" if complete else "preview: generated_latents"
    expected = f"uint8 {['n', tokens, size]}"
    if not complete:
        expected += " or fewer tokens"
    if not isinstance(packed_latents, torch.Tensor):
        raise TypeError(f"{name} must be {expected}, got {brief(packed_latents)}")
    got = packed_latents.shape
    fits = len(got) == 3 and got[2] == size
    if (
        packed_latents.dtype != torch.uint8
        or not fits
        or (got[1] != tokens if complete else got[1] > tokens)
    ):
        raise ValueError(f"{name} must be {expected}, got {packed_latents.dtype} {list(got)}")
    return packed_latents


def packed_shape(shape: ImageShape) -> tuple[int, int]:
    """(N, bytes of a token) of packed latents."""
    return shape.tokens, -(-shape.bits // 8)


def image_seeds(
    function: str,
    seed: Seeds | None,
    generator: Generators | None,
    sample_ids: Sequence[int] | None,
    count: int,
) -> tuple[list[int], list[int]]:
    """The seed and the sample id of each image; see the pipelines.

    Raises:
        TypeError: a seed or sample id is no integer, or a generator no ``torch.Generator``.
        ValueError: both `seed` and `generator` are given, there are not as many as images, or one
            is out of range.
    """
    if seed is not None and generator is not None:
        raise ValueError(
            f"{function}: only one of seed and generator may be given, got {brief(seed)} and "
            f"{brief(generator)}"
        )
    name: str = "seed"
    source: Any = 0 if seed is None else seed
    if generator is not None:
        name, source = "generator", generator
    single = isinstance(source, torch.Generator) or is_single(source)
    sources: list[Any] = [source] if single else as_list(function, name, source)
    ids: list[Any] = list(range(count)) if single else [0] * count
    if sample_ids is not None:
        ids = as_list(function, "sample_ids", sample_ids)
    for argument, values in (("sample_ids", ids), *(() if single else ((name, sources),))):
        if len(values) != count:
            raise ValueError(
                f"{function}: {argument} must be one per image ({count}), got {len(values)}"
            )
    ids = [exact_int(function, "sample_ids", i, 0, 2**32 - 1) for i in ids]
    if generator is None:
        seeds = [exact_int(function, "seed", s, 0, 2**64 - 1) for s in sources]
    else:
        wrong = [one for one in sources if not isinstance(one, torch.Generator)]
        if wrong:
            raise TypeError(
                f"{function}: generator must be a torch.Generator or one per image, got "
                f"{brief(wrong[0])}"
            )
        seeds = [_next_number(one) for one in sources]  # last: a refused call draws nothing
    return seeds * count if single else seeds, ids


def _next_number(generator: torch.Generator) -> int:
    """The next 64-bit number of a generator."""
    device = generator.device
    halves = torch.randint(2**32, (2,), generator=generator, dtype=torch.int64, device=device)
    high, low = halves.tolist()
    return high << 32 | low


def inference_steps(function: str, given: int | None, default: int | None = None) -> int:
    """`given`, or for None the `default`, checked.

    Raises:
        TypeError, ValueError: it is no integer from 1 to ``MAX_STEPS``; neither is None.
    """
    steps = default if given is None else given
    return exact_int(function, "num_inference_steps", steps, 1, MAX_STEPS)


def repeated(function: str, items: Sequence[Any], num_images_per_prompt: int) -> list[Any]:
    """Every item as often as images of it are asked for, side by side.

    Raises:
        TypeError, ValueError: `num_images_per_prompt` is no integer of at least 1, or there would
            be more images than sample ids.
    """
    count = exact_int(function, "num_images_per_prompt", num_images_per_prompt, 1)
    if count * len(items) > _MAX_IMAGES:
        raise ValueError(
            f"{function}: num_images_per_prompt must be at most {_MAX_IMAGES // len(items)} "
            f"(2^32 images in all), got {count}"
        )
    return [item for item in items for _ in range(count)]


def batch_slices(function: str, count: int, batch_size: int | None) -> list[slice]:
    """The images of every batch.

    Raises:
        TypeError, ValueError: `batch_size` is no integer of at least 1.
    """
    size = max(count, 1)
    if batch_size is not None:
        size = exact_int(function, "batch_size", batch_size, 1)
    return [slice(i, min(i + size, count)) for i in range(0, count, size)]


def to_output(images: torch.Tensor, output_type: str) -> Any:
    """Images uint8 [n, C, H, W] as `output_type` says, but for "latent"."""
    if output_type == "uint8":
        return images
    if output_type == "pt":
        return images.to(torch.float32).div_(255).contiguous()
    arrays = images.permute(0, 2, 3, 1).contiguous()
    if output_type == "np":
        return arrays.to(torch.float32).div_(255).numpy()
    return [Image.fromarray(array) for array in arrays.numpy()]
