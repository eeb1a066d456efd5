"""The data of a run, opened as its configuration says."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence
from pathlib import Path

from bitdance.data.augmentation import Augmentation
from bitdance.data.balance import BalancedImages
from bitdance.data.cached_images import CachedImages
from bitdance.data.idx import is_idx
from bitdance.data.images import LabeledImages, open_images
from bitdance.data.packed_dataset import PackedDataset
from bitdance.io.validation import brief
from bitdance.training.config import AutoencoderRun, ClassConditionalRun, DataConfig

__all__ = ["augmentation", "open_codes", "open_training_images"]


def augmentation(config: AutoencoderRun | ClassConditionalRun) -> Augmentation:
    """The random changes of a run's items."""
    data = config.data
    return Augmentation(config.optim.seed, data.flip, data.shift, data.min_crop, data.crop_decay)


def open_training_images(data: DataConfig, *, labeled: bool = True) -> LabeledImages:
    """Open image files or IDX files.

    Raises:
        FileNotFoundError: there are none.
        ValueError: a file is damaged, names and labels do not fit, or a setting has no effect.
    """
    if is_idx(Path(data.path)):
        used = ("path", "size", "flip", "shift", "classes", "balance")
        _refuse_unused(data, used, "IDX files")
    images = open_images(
        data.path, data.size, classes=data.classes, labeled=labeled or data.balance > 0,
        background=data.background, on_error=data.on_error,
    )  # fmt: skip
    if data.cache:
        images = CachedImages(images)
    if data.balance == 0:
        return images
    if len(images.classes) == 1:
        raise ValueError(f"data.balance must be 0 without classes, got {data.balance:g}")
    return BalancedImages(images, data.balance)


def open_codes(data: DataConfig) -> tuple[PackedDataset, Sequence[str]]:
    """Open packed codes; returns the data set and the names of its classes.

    Raises:
        ValueError: a file is damaged, or a setting has no effect: the data set has the names of its
            classes, and codes of the crops and flips that `tokenize` made.
    """
    packed = PackedDataset(data.path)
    variants = packed.variants
    used = {"path", "size", "classes"}
    used |= {"min_crop", "crop_decay"} if variants.crops else set()
    used |= {"flip"} if variants.flips else set()
    _refuse_unused(data, used, "packed codes instead of images")
    if data.min_crop not in (1, variants.min_crop):
        raise ValueError(
            f"data.min_crop must be 1 or {variants.min_crop:g}, as in {data.path}, got "
            f"{data.min_crop:g}"
        )
    classes = packed.metadata.get("classes", data.classes)
    if data.classes and data.classes != tuple(classes):
        raise ValueError(
            f"data.classes must be left out, or as {data.path} has them, got {brief(data.classes)}"
        )
    return packed, classes


def _refuse_unused(data: DataConfig, used: Collection[str], content: str) -> None:
    for field in dataclasses.fields(data):
        value = getattr(data, field.name)
        if field.name not in used and value != field.default:
            raise ValueError(
                f"data.{field.name} must be left out, since {data.path} holds {content}, got "
                f"{brief(value)}"
            )
