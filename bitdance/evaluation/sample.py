"""Many images of classes in one file, made by any number of processes that may be stopped."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from bitdance.data.packed_dataset import PackedDataset
from bitdance.data.packed_writer import PackedWriter
from bitdance.distributed import World
from bitdance.evaluation.sample_folder import OUTPUTS, Content, SampleFolder, SampleSettings
from bitdance.evaluation.sample_settings import fingerprint
from bitdance.io.npz import write_images
from bitdance.io.progress import progress_bar
from bitdance.io.validation import exact_int, finite_number
from bitdance.models.autoencoder.quantizer import pack_latents, unpack_latents
from bitdance.models.quantization import quantization_of
from bitdance.pipelines.arguments import inference_steps
from bitdance.pipelines.class_conditional import BitDancePipeline
from bitdance_kernels import unpack_signs

__all__ = ["SampleResult", "decode_codes", "sample_classes"]

_BLOCK = 256  # images, rounded to whole batches


@dataclass(frozen=True)
class SampleResult:
    """What ``sample_classes`` has done.

    Attributes:
        path: the file or folder with all images.
        generated: images that this call generated in all processes; the others were there.
    """

    path: Path
    generated: int


def sample_classes(
    pipeline: BitDancePipeline,
    labels: Sequence[int | str],
    folder: str | Path,
    *,
    content: Content = "npz",
    seed: int = 0,
    num_inference_steps: int | None = None,
    guidance_scale: float | None = None,
    guidance_schedule: Literal["linear", "constant"] = "linear",
    batch_size: int = 64,
    world: World | None = None,
    progress: bool = True,
) -> SampleResult:
    """Generate an image of each label, and write all of them.

    Image i has the sample id i: it is the same whatever the number of processes and the batch size,
    and however often the work was interrupted. Blocks of images are written as soon as they are
    made, and those that are there are not made again.

    Args:
        pipeline: the model, on the device of this process.
        labels: class of each image, by number or name.
        folder: folder to write: new, empty, or with earlier samples of equal settings.
        content: "npz" writes ``samples.npz`` with uint8 [N, H, W, 3] as ``arr_0`` and the labels
            as ``arr_1``, which ADM's evaluation suite takes; "packed" writes ``codes``, a data set
            of packed codes, which ``decode_codes`` decodes.
        seed: seed of all images.
        num_inference_steps: denoising steps per patch, by default the model's.
        guidance_scale: guidance scale, by default the model's.
        guidance_schedule: "linear" or "constant", see ``BitDancePipeline``.
        batch_size: images at a time.
        world: the processes, which share the blocks; by default this one alone.
        progress: show a progress bar, in the first process.

    Raises:
        FileExistsError: the folder has other files.
        OSError: the folder cannot be written, has no room, or is in use by another run.
        TypeError: an argument has another type; nothing is computed.
        ValueError: an argument is out of range, a class is unknown, or the folder has samples with
            other settings; nothing is computed.
    """
    function, world = "sample_classes", world or World()
    numbers = np.array([pipeline.label(label) for label in labels], np.int64)
    if not len(numbers):
        raise ValueError(f"{function}: labels must be at least one class, got none")
    if content not in OUTPUTS:
        raise ValueError(f"{function}: content must be 'npz' or 'packed', got {content!r}")
    batch = exact_int(function, "batch_size", batch_size, 1)
    shares = math.ceil(len(numbers) / (batch * world.size))  # batches of a process
    wanted = SampleSettings(
        model=fingerprint(pipeline.model),
        dtype=str(pipeline.dtype).removeprefix("torch."),
        quantization=quantization_of(pipeline.model) or "none",
        content=content,
        images=len(numbers),
        labels=hashlib.sha256(numbers.astype("<i8").data).hexdigest(),
        seed=exact_int(function, "seed", seed, 0, 2**64 - 1),
        num_inference_steps=inference_steps(
            function, num_inference_steps, pipeline.num_inference_steps
        ),
        guidance_scale=finite_number(
            function, "guidance_scale",
            pipeline.config.cfg_scale if guidance_scale is None else guidance_scale,
        ),
        guidance_schedule=guidance_schedule,
        block_size=batch * max(1, min(_BLOCK // batch, shares)),
    )  # fmt: skip
    world.check_equal(f"{function}: settings", wanted)
    side, bits = pipeline.config.resolution, pipeline.model.vae.config.z_channels
    codes = pipeline.config.tokens * pipeline.config.patch_size**2
    shape = (side, side, 3) if content == "npz" else (codes, -(-bits // 8))
    generated = 0
    with (
        SampleFolder(Path(folder), wanted, shape, world) as samples,
        pipeline.progress_bar_config(disable=True),
    ):
        if world.broadcast(samples.result.exists()):
            with world.together():
                if world.is_main:
                    samples.remove_blocks()  # a process may have been killed before it did
            return SampleResult(samples.result, 0)
        mine = samples.missing()[world.rank :: world.size]
        total, hidden = sum(map(len, mine)), not (progress and world.is_main)
        with progress_bar(total=total, unit="image", disable=hidden) as bar:
            for items in mine:
                samples.write(items, _generate(pipeline, numbers, items, samples.settings, batch))
                generated += len(items)
                bar.update(len(items))
        world.barrier()
        with world.together():
            if world.is_main:
                _write(pipeline, samples, numbers)
                samples.remove_blocks()
    return SampleResult(samples.result, sum(world.gather(generated)))


def _generate(
    pipeline: BitDancePipeline,
    labels: np.ndarray,
    items: range,
    settings: SampleSettings,
    batch_size: int,
) -> np.ndarray:
    """Images uint8 [n, H, W, 3] of a block, or their codes."""
    packed = pipeline(
        labels[items.start : items.stop].tolist(),
        num_inference_steps=settings.num_inference_steps,
        guidance_scale=settings.guidance_scale,
        guidance_schedule=settings.guidance_schedule,  # type: ignore[arg-type]
        seed=settings.seed,
        sample_ids=items,
        batch_size=batch_size,
        output_type="latent",
    ).images
    if settings.content == "packed":
        tokens = unpack_signs(packed)[..., : pipeline.config.token_bits]
        maps = pipeline.model.to_latents(tokens.to(pipeline.device))
        return pack_latents(maps).flatten(1, 2).cpu().numpy()
    pixels = pipeline.decode(
        packed, seed=settings.seed, sample_ids=items, batch_size=batch_size, output_type="uint8"
    )
    return np.ascontiguousarray(pixels.permute(0, 2, 3, 1).numpy())


def _write(pipeline: BitDancePipeline, samples: SampleFolder, labels: np.ndarray) -> None:
    """All images from their blocks to one file or data set."""
    side, settings = pipeline.config.resolution, samples.settings
    if settings.content == "npz":
        write_images(samples.result, samples.read(), labels, (side, side))
        return
    bits = pipeline.model.vae.config.z_channels
    metadata = {
        "classes": list(pipeline.classes), "size": side, "seed": settings.seed,
        "model": settings.model,
    }  # fmt: skip
    tokens, first = pipeline.config.tokens * pipeline.config.patch_size**2, 0
    with PackedWriter(samples.result, tokens=tokens, channels=bits, metadata=metadata) as writer:
        for codes in samples.read():
            writer.write(codes, labels[first : first + len(codes)])
            first += len(codes)


@torch.no_grad()
def decode_codes(
    pipeline: BitDancePipeline, data: PackedDataset, items: Sequence[int], *, batch_size: int = 64
) -> torch.Tensor:
    """Images of packed samples, uint8 [n, 3, H, W].

    Args:
        pipeline: the model that made them, or another one with the same autoencoder.
        data: data set that ``sample_classes`` has written; that of ``tokenize`` serves too, where
            the decoder takes no noise.
        items: numbers of the images.
        batch_size: images at a time.

    Raises:
        ValueError: the codes are not those of the model's autoencoder, or the decoder takes noise
            and the data set has no seed.
    """
    config, autoencoder = pipeline.config, pipeline.model.vae.config
    side = config.resolution // autoencoder.downsampling
    if (data.tokens, data.channels) != (side**2, autoencoder.z_channels):
        raise ValueError(
            f"decode_codes: data must have {side**2} codes of {autoencoder.z_channels} bits, got "
            f"{data.tokens} of {data.channels}"
        )
    seed = data.metadata.get("seed")
    if seed is None and autoencoder.gan_decoder:
        raise ValueError("decode_codes: data must have a seed for the decoder's noise, got none")
    codes = data.take(np.asarray(items, np.int64))[0].unflatten(1, (side, side))
    tokens = pipeline.model.to_tokens(unpack_latents(codes.to(pipeline.device), data.channels))
    images: torch.Tensor = pipeline.decode(
        pack_latents(tokens.mT), seed=seed or 0, sample_ids=items, batch_size=batch_size,
        output_type="uint8",
    )  # fmt: skip
    return images
