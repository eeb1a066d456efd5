"""Which files of a folder are images, and of which class."""

from __future__ import annotations

import os
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from bitdance.io.image_files import ImageError, is_image, printable, refusal

__all__ = [
    "FoundImages",
    "Split",
    "class_names",
    "find_images",
    "find_labelled_images",
    "find_part",
]

Split = Literal["train", "test"]
_PARTS = {"train": ("train",), "test": ("test", "val")}
_PART_NAMES = {name for names in _PARTS.values() for name in names}
# Files with these endings are meant to be images: one that is none is an error.
_IMAGES = (
    ".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".avif", ".heic", ".heif", ".bmp",
    ".dib", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".j2k", ".tga", ".ico",
)  # fmt: skip
# The others are known by their content, but for text beside images, and for raw photos: these are
# TIFF files of which Pillow reads the thumbnail.
_NO_IMAGES = (
    ".txt", ".caption", ".json", ".jsonl", ".csv", ".tsv", ".xml", ".yaml", ".yml", ".md", ".html",
    ".npy", ".npz", ".dng", ".cr2", ".nef", ".arw", ".orf", ".rw2", ".pef", ".srw",
)  # fmt: skip
# What systems leave behind, besides names that begin with a dot.
_HIDDEN = {
    "__macosx", "@eadir", "$recycle.bin", "system volume information", "thumbs.db", "desktop.ini",
    "icon\r",
}  # fmt: skip
_SHOWN = 8  # names listed


@dataclass
class FoundImages:
    """Image files in the order of their names, part by part of the path.

    Attributes:
        files: the images.
        labels: their classes' numbers.
        classes: names; one empty name where there are no classes.
        refused: files named like images that are none: pipes, devices, broken links.
        others: how many files there are that are no images, by their endings.
        outside: images that belong to no class.
    """

    files: list[Path] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    classes: tuple[str, ...] = ("",)
    refused: list[ImageError] = field(default_factory=list)
    others: Counter[str] = field(default_factory=Counter)
    outside: int = 0

    def describe_skipped(self) -> str:
        """Files that are passed over, in words; empty where there are none."""
        parts = []
        if self.refused:
            reasons = "; ".join(str(error) for error in self.refused[:_SHOWN])
            parts.append(
                f"{len(self.refused)} that cannot be read ({reasons}{_more(self.refused)})"
            )
        if self.outside:
            parts.append(f"{self.outside} images outside of the class folders")
        if self.others:
            ends = ", ".join(f"{end or 'no ending'} {n}" for end, n in sorted(self.others.items()))
            parts.append(f"{self.others.total()} files that are no images ({ends})")
        return ", ".join(parts)


def find_images(folder: Path) -> FoundImages:
    """All images below a folder; hidden files and folders are passed over.

    Links are followed, each folder once. Files that end like images are taken for images; of other
    files, those that begin like one.

    Raises:
        ImageError: a folder cannot be listed.
    """
    found = FoundImages()
    _collect(_walk(folder), 0, found)
    return found


def find_labelled_images(
    folder: Path, split: Split = "train", classes: Sequence[str] = ()
) -> FoundImages:
    """The images of one part of a data set, a sub-folder a class.

    The parts are the sub-folders "train" and "test" (or "val"); a folder without them is its own
    training part. The class folders of the training part that have images, in alphabetic order, are
    the classes of every part; a part without class folders is of one class without a name.

    Args:
        folder: of the data set.
        split: the part.
        classes: names of the class folders to take, which also gives their order.

    Raises:
        FileNotFoundError: there is no such part, or no image in it.
        ImageError: a folder cannot be listed.
        ValueError: a part has a class that the training part lacks, or `classes` has one.
    """
    root = find_part(folder, split, classes)
    training = find_part(folder, "train", classes)
    train = _class_folders(training)
    here = train if split == "train" else _class_folders(root)
    empty = {_name(path.name) for path in _sub_folders(training)}
    names = _choose(tuple(train), tuple(here), empty, classes, root)
    found = FoundImages(classes=names or tuple(classes) or ("",))
    for label, name in enumerate(names):
        if name in here:
            _collect(_walk(here[name]), label, found)
    if names:
        taken = {here[name] for name in names if name in here}
        rest = FoundImages()
        for path in _visible(root):
            if path not in taken:
                _collect(_walk(path), 0, rest)
        found.outside = len(rest.files) + len(rest.refused)
        found.others += rest.others
    else:
        _collect(_walk(root), 0, found)
    if not found.files and not found.refused:
        where = "images in class folders" if found.outside else "images"
        raise FileNotFoundError(f"{printable(root)} has no {where}")
    return found


def find_part(folder: Path, split: Split, classes: Sequence[str] = ()) -> Path:
    """The folder of a part of a data set.

    Raises:
        FileNotFoundError: there is none.
        ValueError: sub-folders may be parts as well as classes.
    """
    parts = _find_parts(folder, classes)
    if split not in parts:
        wanted = " or ".join(repr(name) for name in _PARTS[split])
        raise FileNotFoundError(
            f"{printable(folder)} has no sub-folder {wanted}, only the split 'train'"
        )
    return parts[split]


def class_names(folder: Path) -> tuple[str, ...]:
    """Names of the classes of a data set, none where it has no class folders."""
    return tuple(_class_folders(find_part(folder, "train")))


def _choose(
    train: tuple[str, ...], here: tuple[str, ...], empty: set[str], wanted: Sequence[str],
    root: Path,
) -> tuple[str, ...]:  # fmt: skip
    """The classes: those of the training part, or the wanted ones, which may be empty there."""
    wanted = [_name(name) for name in wanted]
    if not train and len(wanted) > 1:
        raise ValueError(f"{printable(root)} has no class folders, but {len(wanted)} names")
    unknown = sorted(set(wanted) - set(train) - empty) if train else []
    if unknown:
        raise ValueError(
            f"classes must be class folders of the training images ({_few(train)}), got "
            f"{_few(unknown)}"
        )
    if len(set(wanted)) < len(wanted):
        raise ValueError(f"classes must differ, got {_few(wanted)}")
    extra = sorted(set(here) - set(train))
    if extra:
        raise ValueError(
            f"{printable(root)} has classes that the training images lack: {_few(extra)}"
        )
    return tuple(wanted) if train and wanted else train


def _find_parts(folder: Path, classes: Sequence[str]) -> dict[str, Path]:
    """Folders of the parts. Among other folders, "train" may be a class of vehicles instead."""
    visible = {path.name: path for path in _sub_folders(folder)}
    named = sorted(_PART_NAMES & set(visible))
    others = sorted(set(visible) - _PART_NAMES)
    if not named or set(named) & set(classes):
        return {"train": folder}
    parts = {
        split: visible[name]
        for split, names in _PARTS.items()
        for name in reversed(names)
        if name in visible
    }
    deep = [name for name in named if _sub_folders(visible[name])]
    if "train" in parts and ("train" in deep or not others):
        return parts
    if others and not deep and "train" not in parts:
        return {"train": folder}
    if others:
        raise ValueError(
            f"{printable(folder)} has {_few(named)} beside {_few(others)}, which may be parts or "
            "classes: name the folder of a part, or all classes"
        )
    raise FileNotFoundError(f"{printable(folder)} has {_few(named)}, but no 'train'")


def _class_folders(root: Path) -> dict[str, Path]:
    """Sub-folders with images by their names, in alphabetic order."""
    folders: dict[str, Path] = {}
    for path in _sub_folders(root):
        if any(_may_be_image(file) for file in _walk(path)):
            name = _name(path.name)
            if printable(name) != name:
                raise ValueError(f"{printable(path)} must have a name in Unicode to be a class")
            if name in folders:
                raise ValueError(f"{printable(root)} has two folders of the class {name!r}")
            folders[name] = path
    return dict(sorted(folders.items()))


def _name(text: str) -> str:
    """A class's name: systems differ in how they write letters with accents."""
    return unicodedata.normalize("NFC", text)


def _collect(files: Iterable[Path], label: int, found: FoundImages) -> None:
    for path in files:
        if not _may_be_image(path):
            found.others[path.suffix.lower()] += 1
        elif error := refusal(path):
            found.refused.append(error)
        else:
            found.files.append(path)
            found.labels.append(label)


def _may_be_image(path: Path) -> bool:
    ending = path.suffix.lower()
    if ending in _IMAGES or ending in _NO_IMAGES:
        return ending in _IMAGES
    return path.is_file() and is_image(path)


def _walk(folder: Path) -> Iterator[Path]:
    """Visible files below a folder in the order of their names, part by part of the path."""
    above = {*folder.absolute().parents, *folder.resolve().parents}
    seen = {(status.st_dev, status.st_ino) for status in map(os.stat, above)}
    waiting = [folder]
    while waiting:
        path = waiting.pop()
        if not path.is_dir():
            yield path
            continue
        status = path.stat()
        if (status.st_dev, status.st_ino) not in seen:  # else a link leads back or up
            seen.add((status.st_dev, status.st_ino))
            waiting += reversed(_visible(path))


def _sub_folders(folder: Path) -> list[Path]:
    return [path for path in _visible(folder) if path.is_dir()]


def _visible(folder: Path) -> list[Path]:
    try:
        names = sorted(os.listdir(folder))
    except OSError as error:
        raise ImageError(f"{printable(folder)} cannot be listed: {error.strerror}") from error
    return [folder / name for name in names if name[0] != "." and name.casefold() not in _HIDDEN]


def _few(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:_SHOWN])) + _more(names)


def _more(items: Sequence[object]) -> str:
    return f" and {len(items) - _SHOWN} more" if len(items) > _SHOWN else ""
