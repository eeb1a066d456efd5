"""Images to a data set of packed codes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

from bitdance.data.images import LabeledImages, to_float
from bitdance.data.packed_writer import PackedWriter
from bitdance.models.autoencoder.autoencoder import BinaryAutoencoder

__all__ = ["tokenize"]

_BATCH_SIZE = 256


@torch.no_grad()
def tokenize(
    images: LabeledImages, autoencoder: BinaryAutoencoder, folder: Path, *,
    metadata: Mapping[str, Any], progress: bool = True,
) -> int:  # fmt: skip
    """Encode all images and write them with their labels as a packed data set.

    Args:
        images: square, of a size that the autoencoder's downsampling divides.
        autoencoder: the encoder, on the device to use.
        folder: must not exist, or be empty.
        metadata: stored with the data set.
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
    writer = PackedWriter(folder, tokens=tokens, channels=config.z_channels, metadata=metadata)
    with writer, tqdm(total=count, disable=not progress, unit="image") as bar:
        for items in np.array_split(np.arange(count), -(-count // _BATCH_SIZE)):
            x = to_float(images.take(items)).to(device)
            packed = autoencoder.encode(x, packed=True).flatten(1, 2).cpu()
            writer.write(packed, images.labels[items])
            bar.update(len(items))
    return tokens
