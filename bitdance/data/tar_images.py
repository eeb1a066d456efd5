"""Labeled images in tar archives: classes as folders or inner archives, or webdataset shards."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from bitdance.data.image_folders import (
    IMAGE_SUFFIXES,
    FoundImages,
    Split,
    choose_classes,
    is_hidden,
    split_of,
)
from bitdance.data.tar_index import Archive, Member, expand_pattern
from bitdance.io.image_files import ImageError, printable
from bitdance.io.validation import brief

__all__ = ["find_archived_images", "sample_name"]

_LABELS = (".cls", ".json")
_MAX_LABEL_BYTES = 1 << 20
_MAX_CLASSES = 1_000_000


def find_archived_images(
    path: str | Path, split: Split = "train", classes: Sequence[str] = (), *, labeled: bool = True
) -> FoundImages[Member]:
    """The images of tar archives.

    A single archive has a folder or an inner archive per class, as ILSVRC2012's does, perhaps below
    "train" and "test" (or "val"); or no classes. Archives with labels are webdataset shards: of the
    files that share a name, one is the image, and ".cls" or "label" of ".json" its class.

    Args:
        path: an archive, or a pattern of shards; see ``expand_pattern``.
        split: the split; shards have one, "train".
        classes: names of the class folders to use, in this order; of shards, names of the numbers.
        labeled: whether classes are needed.

    Returns:
        The images; damaged archives and images without a label are among the refused.

    Raises:
        FileNotFoundError: there is no archive, no such split, or no image.
        ImageError: an archive cannot be opened.
        ValueError: `classes` are not those of the archive.
    """
    members: list[list[Member]] = []
    errors: list[ImageError] = []
    for archive in map(Archive, expand_pattern(path)):
        members.append([])
        try:
            members[-1].extend(m for m in archive.members() if not is_hidden(m.name))
        except ImageError as error:
            errors.append(error)
    if len(members) > 1 or _are_shards(members[0]):
        if split != "train":
            raise FileNotFoundError(f"{printable(path)} has only the split 'train'")
        found = _of_shards(members, classes, labeled)
    else:
        found = _of_folders(members[0], path, split, classes, labeled)
    found.refused = errors + found.refused
    if not found.files and not found.refused:
        raise FileNotFoundError(f"{printable(path)} has no images")
    return found


def _is_image(name: str) -> bool:
    return PurePosixPath(name).suffix.lower() in IMAGE_SUFFIXES


def _are_shards(members: Iterable[Member]) -> bool:
    """Whether images have labels beside them; JSON beside images in folders may be anything."""
    images = [m.name for m in members if _is_image(m.name)]
    names = {m.name for m in members}
    if any(f"{sample_name(name)[0]}.cls" in names for name in images):
        return True
    one_folder = len({PurePosixPath(name).parent for name in images}) == 1
    return one_folder and any(f"{sample_name(name)[0]}.json" in names for name in images)


def sample_name(name: str) -> tuple[str, str]:
    """Name and extension as webdataset divides them: at the first dot after the last slash."""
    folder, slash, file = name.rpartition("/")
    stem, dot, extension = file.partition(".")
    return f"{folder}{slash}{stem}", f"{dot}{extension}".lower()


def _add(found: FoundImages[Member], member: Member, label: int) -> None:
    if member.is_plain:
        found.files.append(member)
        found.labels.append(label)
    else:
        found.refused.append(ImageError(f"{member.title()} is not an image file but a link"))


def _of_folders(
    members: Sequence[Member], path: str | Path, split: Split, classes: Sequence[str], labeled: bool
) -> FoundImages[Member]:
    images = [m for m in members if _is_image(m.name)]
    others = Counter(PurePosixPath(m.name).suffix.lower() for m in members if not _is_image(m.name))
    paths = {id(m): PurePosixPath(m.name).parts for m in images}
    tops = {parts[0] for parts in paths.values() if len(parts) > 1}
    loose = any(len(parts) == 1 for parts in paths.values())
    if len(tops) == 1 and not loose and all(len(parts) > 2 for parts in paths.values()):
        top = next(iter(tops))
        if split_of(top) is None:  # one folder around everything
            paths = {key: parts[1:] for key, parts in paths.items()}
            tops = {parts[0] for parts in paths.values()}
    if tops and not loose and all(split_of(top) is not None for top in tops):
        kept = [m for m in images if split_of(paths[id(m)][0]) == split]
        if not kept:
            raise FileNotFoundError(f"{printable(path)} has no images of the split {split!r}")
        training = {
            parts[1] for parts in paths.values() if split_of(parts[0]) == "train" and len(parts) > 2
        }
        paths = {id(m): paths[id(m)][1:] for m in kept}
        images = kept
    elif split != "train":
        raise FileNotFoundError(f"{printable(path)} has only the split 'train'")
    else:
        training = {parts[0] for parts in paths.values() if len(parts) > 1}
    if not (labeled or classes):
        found: FoundImages[Member] = FoundImages(others=others)
        for member in images:
            _add(found, member, 0)
        return found
    present = {parts[0] for parts in paths.values() if len(parts) > 1}
    folders = sorted(training or present)
    names = choose_classes(tuple(folders), tuple(sorted(present)), set(), classes, Path(path))
    found = FoundImages(classes=names or tuple(classes) or ("",), others=others)
    numbers = {name: label for label, name in enumerate(names)}
    for member in sorted(images, key=lambda m: PurePosixPath(m.name).parts):
        parts = paths[id(member)]
        if not names:
            _add(found, member, 0)
        elif len(parts) == 1:
            found.outside += 1
        elif parts[0] in numbers:
            _add(found, member, numbers[parts[0]])
    return found


def _of_shards(
    shards: Iterable[Sequence[Member]], classes: Sequence[str], labeled: bool
) -> FoundImages[Member]:
    found: FoundImages[Member] = FoundImages()
    for members in shards:
        samples: dict[str, dict[str, Member]] = {}
        for member in members:
            key, extension = sample_name(member.name)
            samples.setdefault(key, {})[extension] = member
        for files in samples.values():
            images = [m for extension, m in files.items() if extension in IMAGE_SUFFIXES]
            found.others.update(e for e in files if e not in (*IMAGE_SUFFIXES, *_LABELS))
            if len(images) > 1:
                found.refused.append(
                    ImageError(f"{images[1].title()} is a second image of one sample")
                )
            elif images:
                try:
                    label = _label(images[0], files) if labeled or classes else 0
                    _add(found, images[0], label)
                except ImageError as error:
                    found.refused.append(error)
    if not (labeled or classes):
        return found
    count = max(found.labels, default=-1) + 1
    found.classes = tuple(classes) or tuple(map(str, range(count))) or ("",)
    if len(found.classes) < count:
        raise ValueError(f"the shards have {count} classes, but {len(classes)} names")
    return found


def _label(image: Member, files: dict[str, Member]) -> int:
    for extension in _LABELS:
        if extension not in files:
            continue
        member = files[extension]
        if member.size > _MAX_LABEL_BYTES:
            raise ImageError(f"{member.title()} must have at most {_MAX_LABEL_BYTES} bytes")
        value = _parse_label(member, extension)
        if value is None and extension != _LABELS[-1]:
            continue
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < _MAX_CLASSES:
            raise ImageError(
                f"{member.title()} must have a label from 0 to {_MAX_CLASSES - 1}, got "
                f"{brief(value)}"
            )
        return value
    raise ImageError(f"{image.title()} has no label ({' or '.join(_LABELS)} beside it)")


def _parse_label(member: Member, extension: str) -> Any:
    try:
        text = member.read().decode("utf-8")
        if extension == ".cls":
            return int(text) if text.strip().isdecimal() else text
        content = json.loads(text)
    except (UnicodeDecodeError, ValueError, RecursionError) as error:
        if isinstance(error, ImageError):
            raise
        raise ImageError(f"{member.title()} is damaged: {brief(error)}") from error
    if not isinstance(content, dict):
        return content
    return content.get("label", content.get("cls"))
