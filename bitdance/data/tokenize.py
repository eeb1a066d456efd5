"""Images to a data set of packed codes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bitdance.data.augmentation import Augmentation
from bitdance.data.images import LabeledImages, to_float
from bitdance.data.packed_dataset import Variants
from bitdance.data.packed_writer import PackedWriter
from bitdance.io.progress import progress_bar
from bitdance.io.validation import exact_int
from bitdance.models.autoencoder.autoencoder import BinaryAutoencoder

__all__ = ["tokenize"]

_BATCH_SIZE = 256


@torch.no_grad()
def tokenize(
    images: LabeledImages, autoencoder: BinaryAutoencoder, folder: Path, *,
    metadata: Mapping[str, Any], variants: Variants | None = None, seed: int = 0,
    progress: bool = True,
) -> int:  # fmt: skip
    """Encode all images and write them with their labels as a packed data set.

    The crops of an image are a function of the seed, the image's number and the crop's.

    Args:
        images: square, of a size that the autoencoder's downsampling divides.
        autoencoder: the encoder, on the device to use.
        folder: must not exist, or be empty.
        metadata: stored with the data set.
        variants: crops and flips of each image; by default the middle alone.
        seed: seed of the crops.
        progress: show a progress bar.

    Returns:
        Codes per image.

    Raises:
        FileExistsError: the folder is not empty.
        ImageError: an image cannot be read.
        OSError: the folder cannot be written.
    """
    config, count = autoencoder.config, len(images)
    device = next(autoencoder.parameters()).device
    tokens = (images.size // config.downsampling) ** 2
    variants = variants or Variants()
    seed = exact_int("tokenize", "seed", seed, 0, 2**64 - 1)
    crops = Augmentation(seed, min_crop=variants.min_crop)

    def encode(pixels: torch.Tensor) -> torch.Tensor:
        x = to_float(pixels).to(device)
        return autoencoder.encode(x, packed=True).flatten(1, 2).cpu()

    writer = PackedWriter(
        folder, tokens=tokens, channels=config.z_channels, metadata=metadata, variants=variants
    )
    with writer, progress_bar(total=count, disable=not progress, unit="image") as bar:
        for items in np.array_split(np.arange(count), -(-count // _BATCH_SIZE)):
            codes = []
            for crop in range(1 + variants.crops):
                pixels = crops.take(images, items, crop) if crop else images.take(items)
                codes += [encode(pixels), *([encode(pixels.flip(-1))] if variants.flips else [])]
            packed = torch.stack(codes, dim=1) if len(variants) > 1 else codes[0]
            writer.write(packed, images.labels[items])
            bar.update(len(items))
    return tokens
