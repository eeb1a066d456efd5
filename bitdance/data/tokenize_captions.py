"""Images with captions to a data set of packed codes."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from bitdance.data.buckets import nearest_size
from bitdance.data.captioned_images import CaptionedImage
from bitdance.data.captioned_writer import CaptionedWriter
from bitdance.data.crops import center_crop
from bitdance.data.images import to_float
from bitdance.io.image_files import ImageError
from bitdance.io.progress import progress_bar
from bitdance.models.autoencoder.autoencoder import BinaryAutoencoder

__all__ = ["Tokenized", "tokenize_captions"]

_BATCH_SIZE = 256
_BATCH_PIXELS = 1 << 24  # of the images that wait, so that large ones have smaller batches
_WINDOW = 64  # images that are read at a time
_MAX_REASONS = 8
_LOG = logging.getLogger(__name__)

Size = tuple[int, int]


@dataclass
class Tokenized:
    """What ``tokenize_captions`` has written.

    Attributes:
        images: number of images by height and width.
        captions: number of captions.
        skipped: number of images and captions that were skipped.
    """

    images: dict[Size, int] = field(default_factory=dict)
    captions: int = 0
    skipped: int = 0


@dataclass(frozen=True)
class _Cropped:
    """An image with its captions, in the size of a bucket."""

    id: str
    captions: tuple[str, ...]
    pixels: torch.Tensor

    @property
    def size(self) -> Size:
        height, width = self.pixels.shape[1:]
        return height, width


def tokenize_captions(
    images: Iterable[CaptionedImage | ImageError], autoencoder: BinaryAutoencoder, folder: Path, *,
    sizes: Sequence[Size], background: str = "white", on_error: Literal["raise", "skip"] = "raise",
    progress: bool = True,
) -> Tokenized:  # fmt: skip
    """Encode images and write them with their captions as a packed data set.

    An image is resized until it covers the size whose aspect ratio is nearest to its own, and the
    middle is used. Images are in memory until there is a batch of them.

    Args:
        images: as ``iterate_captioned_images`` returns them.
        autoencoder: the encoder, on the device to use.
        folder: must not exist, or be empty.
        sizes: heights and widths, which the autoencoder's downsampling divides.
        background: color behind transparent pixels.
        on_error: "raise" what is wrong with an image or a caption, or "skip" it; what is skipped is
            logged as a warning, with counts.
        progress: show a progress bar.

    Raises:
        FileExistsError: the folder is not empty.
        ImageError: an image cannot be read, or has no caption, or a caption no image.
        OSError: the folder cannot be written.
        PackedDatasetError: there are no images.
        ValueError: a size does not fit the autoencoder.
    """
    config = autoencoder.config
    for size in sizes:
        if any(side % config.downsampling for side in size):
            raise ValueError(
                f"tokenize_captions: sizes must be multiples of {config.downsampling}, got {size}"
            )
    done, errors = Tokenized(), []
    waiting: dict[Size, list[_Cropped]] = {}
    writer = CaptionedWriter(
        folder, channels=config.z_channels, metadata={"sizes": [list(size) for size in sizes]}
    )

    def encode(batch: list[_Cropped]) -> None:
        for image, codes in zip(batch, _encode(autoencoder, batch), strict=True):
            writer.write(image.id, codes, image.captions)
            done.captions += len(image.captions)
        done.images[batch[0].size] = done.images.get(batch[0].size, 0) + len(batch)
        bar.update(len(batch))

    with writer, progress_bar(disable=not progress, unit="image") as bar:
        for image in _crop_all(images, sizes, background):
            if isinstance(image, ImageError):
                if on_error == "raise":
                    raise image
                done.skipped += 1
                if done.skipped <= _MAX_REASONS:
                    errors.append(str(image))
                continue
            waiting.setdefault(image.size, []).append(image)
            if len(waiting[image.size]) == _BATCH_SIZE:
                encode(waiting.pop(image.size))
            elif sum(len(batch) * h * w for (h, w), batch in waiting.items()) >= _BATCH_PIXELS:
                most = max(waiting, key=lambda size: len(waiting[size]) * size[0] * size[1])
                encode(waiting.pop(most))
        for size in sorted(waiting):
            encode(waiting[size])
        if done.skipped:
            more = f"; and {done.skipped - len(errors)} more" if done.skipped > len(errors) else ""
            _LOG.warning("%d skipped: %s%s", done.skipped, "; ".join(errors), more)
    return done


@torch.no_grad()
def _encode(autoencoder: BinaryAutoencoder, batch: Sequence[_Cropped]) -> torch.Tensor:
    device = next(autoencoder.parameters()).device
    pixels = torch.stack([image.pixels for image in batch])
    return autoencoder.encode(to_float(pixels).to(device), packed=True).cpu()


def _crop_all(
    images: Iterable[CaptionedImage | ImageError], sizes: Sequence[Size], background: str
) -> Iterator[_Cropped | ImageError]:
    def crop(image: CaptionedImage | ImageError) -> _Cropped | ImageError:
        try:
            return image if isinstance(image, ImageError) else _crop(image, sizes, background)
        except ImageError as error:
            return error

    source = iter(images)
    with ThreadPoolExecutor(8) as threads:
        while window := list(itertools.islice(source, _WINDOW)):
            yield from threads.map(crop, window)


def _crop(image: CaptionedImage, sizes: Sequence[Size], background: str) -> _Cropped:
    whole = image.read(background)
    size = nearest_size(whole.height, whole.width, sizes)
    pixels = torch.from_numpy(np.array(center_crop(whole, *size)))
    return _Cropped(image.id, image.captions, pixels.permute(2, 0, 1).contiguous())
