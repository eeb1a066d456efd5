"""Images to measure: ``.npz`` files, folders of images, packed samples, and saved statistics."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from bitdance.data.idx import is_idx
from bitdance.data.image_folders import Split, find_images
from bitdance.data.images import open_images
from bitdance.data.packed_dataset import PackedDataset, is_packed
from bitdance.evaluation.distances import Moments
from bitdance.evaluation.sample import decode_codes
from bitdance.evaluation.sample_folder import OUTPUTS
from bitdance.io.image_files import printable, read_image
from bitdance.io.npz import ImageArray, NpzError, read_arrays
from bitdance.pipelines.class_conditional import BitDancePipeline

__all__ = ["ImageSource", "open_source", "read_statistics"]


@dataclass(frozen=True)
class ImageSource:
    """Images that are read a part at a time, forwards.

    Attributes:
        name: where they are, for errors.
        count: number of images.
        size: height and width.
        read: from the first and the last but one to uint8 [n, 3, H, W], on the CPU.
        prefetch: whether reading goes beside other work; packed samples are decoded where the
            features are computed.
    """

    name: str
    count: int
    size: tuple[int, int]
    read: Callable[[int, int], torch.Tensor]
    prefetch: bool = True

    def __len__(self) -> int:
        return self.count


def open_source(
    path: str | Path,
    *,
    size: int | None = None,
    split: Split = "train",
    pipeline: Callable[[], BitDancePipeline] | None = None,
) -> ImageSource:
    """Open images.

    Args:
        path: an ``.npz`` file with uint8 [N, H, W, 3]; a folder that ``bitdance sample`` wrote; a
            packed data set; or a folder of image files or IDX files.
        size: pixels a side that image files are resized and cropped to, and IDX files padded to; by
            default files are not resized, and must have one size.
        split: part of a folder that has several.
        pipeline: returns the model that decodes packed samples.

    Raises:
        FileNotFoundError: there is nothing, or no image.
        NpzError: the file has no images.
        ValueError: images have different sizes, or a model is missing.
    """
    given = Path(path)
    for name in OUTPUTS.values():
        if (given / name).exists():
            given = given / name
    if given.is_file():
        return _npz(given)
    if not given.is_dir():
        raise FileNotFoundError(f"no such file or folder: {printable(given)}")
    if is_packed(given):
        if pipeline is None:
            raise ValueError(f"{printable(given)} has packed samples; a model must be given")
        return _packed(given, pipeline())
    return _folder(given, size, split)


def read_statistics(path: str | Path) -> Moments | None:
    """The ``mu`` and ``sigma`` of an ``.npz`` file, as ADM's reference files have; None without.

    Raises:
        NpzError: they are no mean and covariance.
    """
    if not Path(path).is_file():
        return None
    found = read_arrays(Path(path), ("mu", "sigma"))
    if found is None:
        return None
    mu, sigma = (np.asarray(array, np.float64) for array in found)
    if mu.ndim != 1 or sigma.shape != (len(mu), len(mu)) or not np.isfinite(sigma).all():
        raise NpzError(
            f"{path} must have mu [D] and finite sigma [D, D], got {list(mu.shape)} and "
            f"{list(sigma.shape)}"
        )
    return Moments.from_covariance(torch.from_numpy(mu), torch.from_numpy(sigma))


def _npz(path: Path) -> ImageSource:
    images = ImageArray(path)
    count, height, width, _ = images.shape
    if not count:
        raise NpzError(f"{path} has no images")

    def read(start: int, stop: int) -> torch.Tensor:
        pixels = torch.from_numpy(images.read(start, stop).copy())
        return pixels.permute(0, 3, 1, 2).contiguous()

    return ImageSource(printable(path), count, (height, width), read)


def _packed(path: Path, pipeline: BitDancePipeline) -> ImageSource:
    data, side = PackedDataset(path), pipeline.config.resolution

    def read(start: int, stop: int) -> torch.Tensor:
        return decode_codes(pipeline, data, range(start, stop))

    return ImageSource(printable(path), len(data), (side, side), read, prefetch=False)


def _folder(path: Path, size: int | None, split: Split) -> ImageSource:
    if size is None:
        size = _size(path)
    images = open_images(path, size, split=split, labeled=False)

    def read(start: int, stop: int) -> torch.Tensor:
        return images.take(np.arange(start, stop))

    return ImageSource(printable(path), len(images), (size, size), read)


def _size(path: Path) -> int:
    """Pixels a side of image files, by the first of them."""
    files = [] if is_idx(path) else find_images(path).files
    if not files:
        raise ValueError(f"{printable(path)}: size must be given, got none")
    width, height = read_image(files[0]).size
    if width != height:
        raise ValueError(
            f"{printable(files[0])} has {width} x {height} pixels: size must be given, got none"
        )
    return width
