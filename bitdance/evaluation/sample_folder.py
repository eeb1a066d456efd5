"""The folder of a set of samples: its settings, and blocks of images that survive a kill."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from bitdance.distributed import World
from bitdance.evaluation.sample_settings import read_settings, write_settings
from bitdance.io import files
from bitdance.io.folder_lock import FolderLock
from bitdance.io.outputs import check_folder
from bitdance.io.settings import Count, Integer, Number, Text, settings

__all__ = ["OUTPUTS", "Content", "SampleFolder", "SampleSettings"]

Content = Literal["npz", "packed"]
SETTINGS = "samples.json"
_FREE = frozenset({"block_size"})
OUTPUTS = {"npz": "samples.npz", "packed": "codes"}
"""File or folder with all images, by content."""
_BLOCKS = "blocks"
_ARRAY = "images"
_LOG = logging.getLogger(__name__)


@settings
class SampleSettings:
    """What the samples of a folder depend on.

    Attributes:
        model: checksum of the model's parameters.
        dtype: dtype that they are computed in.
        quantization: how its weights are rounded, or "none".
        content: "npz" or "packed".
        images: number of images.
        labels: checksum of their classes.
        seed: seed of all images; image i has the sample id i.
        num_inference_steps: denoising steps per patch.
        guidance_scale: guidance scale.
        guidance_schedule: guidance over the AR steps.
        block_size: images of a block.
    """

    model: Text
    dtype: Text
    quantization: Text
    content: Content
    images: Count
    labels: Text
    seed: Integer
    num_inference_steps: Count
    guidance_scale: Number
    guidance_schedule: Text
    block_size: Count

    def digest(self) -> str:
        """A checksum of the settings."""
        text = json.dumps(dataclasses.asdict(self), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


class SampleFolder:
    """The folder that samples are written to, by any number of processes.

    A block of images is one file, which appears completely or not at all. Use as a context manager:
    inside no other run can use the folder.

    Args:
        folder: folder of earlier blocks with equal settings, or one that is empty or does not
            exist.
        wanted: settings of the samples. Where the folder has samples their block size holds.
        shape: shape of an image in the blocks.
        world: the processes; the first makes the folder.

    Attributes:
        settings: settings of the samples.
        result: file or folder with all images, which appears when they are complete.

    Raises:
        FileExistsError: the folder has other files.
        OSError: it cannot be written, or has no room, or another run uses it.
        ValueError: it has samples with other settings, which are named.
    """

    def __init__(
        self, folder: Path, wanted: SampleSettings, shape: tuple[int, ...], world: World
    ) -> None:
        self._path, self._shape, self._world = folder, shape, world
        self.result = folder / OUTPUTS[wanted.content]
        self._blocks = folder / _BLOCKS
        self._lock: FolderLock | None = None
        found: SampleSettings | None = None
        with world.together():
            if world.is_main:
                found = self._begin(wanted)
        self.settings = world.broadcast(found) or wanted

    def _begin(self, wanted: SampleSettings) -> SampleSettings:
        check_folder(self._path)
        file = self._path / SETTINGS
        found_before = self._path.iterdir() if self._path.is_dir() else ()
        # A killed process may leave its lock, and what it was about to write.
        if not file.is_file() and any(not path.name.startswith(".") for path in found_before):
            raise FileExistsError(f"{self._path} exists, has no {SETTINGS} and is not empty")
        self._path.mkdir(parents=True, exist_ok=True)
        self._lock = FolderLock(self._path)
        try:
            known = file.is_file()
            found = read_settings(file, wanted, _FREE) if known else wanted
            if not self.result.exists():
                self._check_room(found)
            if not known:
                write_settings(file, found)
            self._blocks.mkdir(exist_ok=True)
            files.remove_leftovers(self._blocks)
            files.remove_leftovers(self._path)
        except BaseException:
            self._lock.release()
            raise
        return found

    def _check_room(self, wanted: SampleSettings) -> None:
        size = wanted.images * int(np.prod(self._shape))
        have = sum(file.stat().st_size for file in self._blocks.glob("*"))
        needed = 2 * size - min(have, size)  # the blocks, and the result before they are removed
        free = shutil.disk_usage(self._path).free
        if free < needed:
            raise OSError(
                f"{self._path} needs {needed / 1e9:.2f} GB for {wanted.images} images and has "
                f"{free / 1e9:.2f} GB"
            )

    def __enter__(self) -> SampleFolder:
        return self

    def __exit__(self, *error: object) -> None:
        if self._lock is not None:
            self._lock.release()

    def missing(self) -> list[range]:
        """The images of each block that is not there, equal in all processes.

        Raises:
            ValueError: a file is a block of other samples.
        """
        blocks = self._all()
        # Each process reads a share, so that a folder of many gigabytes is checked fast.
        mine: list[range] = []
        with self._world.together():
            share = self._world.share(len(blocks))
            mine = [
                items for items in blocks[share.start : share.stop] if self._read(items) is None
            ]
        return [items for share in self._world.gather(mine) for items in share]

    def write(self, items: range, images: np.ndarray) -> None:
        """Write the images of a block, completely or not at all.

        Raises:
            OSError: the disk is full.
        """
        metadata = {"settings": self.settings.digest(), "sha256": _digest(images)}
        with files.replace_file(self._file(items)) as temporary:
            try:
                save_file({_ARRAY: images}, temporary, metadata)
            except SafetensorError as error:  # how safetensors says that the disk is full
                raise OSError(f"{self._file(items)} cannot be written: {error}") from error

    def read(self) -> Iterator[np.ndarray]:
        """The images of every block in turn.

        Raises:
            OSError: a block is missing or damaged.
        """
        for items in self._all():
            images = self._read(items)
            if images is None:
                raise OSError(f"{self._file(items)} is missing or damaged")
            yield images

    def remove_blocks(self) -> None:
        """Remove the blocks, once their images are in the result."""
        for items in self._all():
            self._file(items).unlink(missing_ok=True)
        if not any(self._blocks.iterdir()):
            self._blocks.rmdir()

    def _all(self) -> list[range]:
        size, count = self.settings.block_size, self.settings.images
        return [range(i, min(i + size, count)) for i in range(0, count, size)]

    def _file(self, items: range) -> Path:
        return self._blocks / f"{items.start:08d}.safetensors"

    def _read(self, items: range) -> np.ndarray | None:
        """The images of a block; None if there is none or it is damaged."""
        path = self._file(items)
        if not path.is_file():  # a pipe would be waited for
            return None
        try:
            with safe_open(path, framework="numpy") as file:
                metadata: dict[str, str] = file.metadata() or {}
                images: np.ndarray = file.get_tensor(_ARRAY)
        except Exception as error:  # a damaged header can raise many errors
            _LOG.warning("%s is damaged and will be made again: %s", path, files.one_line(error))
            return None
        if metadata.get("settings") != self.settings.digest():
            raise ValueError(f"{path} is a block of samples with other settings")
        if images.shape != (len(items), *self._shape) or metadata.get("sha256") != _digest(images):
            _LOG.warning("%s is damaged and will be made again: its checksum differs", path)
            return None
        return images


def _digest(images: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(images).data).hexdigest()
