"""The image files of a folder and their classes."""

from __future__ import annotations

import os
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, Literal, TypeVar

from bitdance.io.image_files import ImageError, is_image, printable, refusal

__all__ = [
    "IMAGE_SUFFIXES",
    "FoundImages",
    "Split",
    "choose_classes",
    "class_names",
    "find_images",
    "find_labeled_images",
    "find_split",
    "is_hidden",
    "split_of",
]

File = TypeVar("File")
Split = Literal["train", "test"]
_SPLIT_FOLDERS: dict[Split, tuple[str, ...]] = {"train": ("train",), "test": ("test", "val")}
_SPLIT_NAMES = {name for names in _SPLIT_FOLDERS.values() for name in names}
# Files with these suffixes must be images.
IMAGE_SUFFIXES = (
    ".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".avif", ".heic", ".heif", ".bmp",
    ".dib", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".j2k", ".tga", ".ico",
)  # fmt: skip
# Files with these suffixes are ignored: text beside images, and raw photos, which are TIFF files of
# which Pillow would read the thumbnail. All others are recognized by their content.
_IGNORED_SUFFIXES = (
    ".txt", ".caption", ".json", ".jsonl", ".csv", ".tsv", ".xml", ".yaml", ".yml", ".md", ".html",
    ".npy", ".npz", ".dng", ".cr2", ".nef", ".arw", ".orf", ".rw2", ".pef", ".srw",
)  # fmt: skip
# Files of operating systems, besides names that begin with a dot.
_HIDDEN = {
    "__macosx", "@eadir", "$recycle.bin", "system volume information", "thumbs.db", "desktop.ini",
    "icon\r",
}  # fmt: skip
_MAX_NAMES = 8  # names listed in a message


@dataclass
class FoundImages(Generic[File]):
    """Image files of folders or archives, sorted by the components of their paths.

    Attributes:
        files: the images.
        labels: numbers of their classes.
        classes: names of the classes; one empty name where there are none.
        refused: errors of files named like images that must not be opened: pipes, devices, broken
            links.
        others: number of files that are not images, by suffix.
        outside: number of images outside of the class folders.
    """

    files: list[File] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    classes: tuple[str, ...] = ("",)
    refused: list[ImageError] = field(default_factory=list)
    others: Counter[str] = field(default_factory=Counter)
    outside: int = 0

    def describe_skipped(self) -> str:
        """A description of the files that are skipped, empty where there are none."""
        parts = []
        if self.refused:
            reasons = "; ".join(str(error) for error in self.refused[:_MAX_NAMES])
            parts.append(
                f"{len(self.refused)} that cannot be read ({reasons}{_more(self.refused)})"
            )
        if self.outside:
            parts.append(f"{self.outside} images outside of the class folders")
        if self.others:
            counts = [f"{suffix or 'no suffix'} {n}" for suffix, n in sorted(self.others.items())]
            parts.append(f"{self.others.total()} files that are not images ({', '.join(counts)})")
        return ", ".join(parts)


def find_images(folder: Path) -> FoundImages[Path]:
    """All images below a folder, except hidden files and folders.

    Links are followed, each folder once. Files are images by their suffix, or by their first bytes.

    Raises:
        ImageError: a folder cannot be listed.
    """
    found: FoundImages[Path] = FoundImages()
    _collect(_walk(folder), 0, found)
    return found


def find_labeled_images(
    folder: Path, split: Split = "train", classes: Sequence[str] = ()
) -> FoundImages[Path]:
    """The images of one split of a data set, which has a sub-folder per class.

    The splits are the sub-folders "train" and "test" (or "val"); a folder without them is its own
    training split. The classes of every split are the class folders of the training split that
    contain images, in alphabetical order; a split without class folders is one unnamed class.

    Args:
        folder: folder of the data set.
        split: the split.
        classes: names of the class folders to use, in this order.

    Raises:
        FileNotFoundError: there is no such split, or no image in it.
        ImageError: a folder cannot be listed.
        ValueError: the split or `classes` have a class that the training split lacks.
    """
    root = find_split(folder, split, classes)
    training = find_split(folder, "train", classes)
    train_folders = _class_folders(training)
    folders = train_folders if split == "train" else _class_folders(root)
    empty = {_class_name(path.name) for path in _sub_folders(training)}
    names = choose_classes(tuple(train_folders), tuple(folders), empty, classes, root)
    found: FoundImages[Path] = FoundImages(classes=names or tuple(classes) or ("",))
    for label, name in enumerate(names):
        if name in folders:
            _collect(_walk(folders[name]), label, found)
    if names:
        taken = {folders[name] for name in names if name in folders}
        rest: FoundImages[Path] = FoundImages()
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


def find_split(folder: Path, split: Split, classes: Sequence[str] = ()) -> Path:
    """The folder of a split of a data set.

    Raises:
        FileNotFoundError: there is none.
        ValueError: the sub-folders may be splits as well as classes.
    """
    splits = _find_splits(folder, classes)
    if split not in splits:
        expected = " or ".join(repr(name) for name in _SPLIT_FOLDERS[split])
        raise FileNotFoundError(
            f"{printable(folder)} has no sub-folder {expected}, only the split 'train'"
        )
    return splits[split]


def class_names(folder: Path) -> tuple[str, ...]:
    """Names of the classes of a data set; empty where it has no class folders."""
    return tuple(_class_folders(find_split(folder, "train")))


def split_of(folder: str) -> Split | None:
    """The split that a sub-folder of this name is, None if it is no split."""
    for split, names in _SPLIT_FOLDERS.items():
        if folder in names:
            return split
    return None


def is_hidden(name: str) -> bool:
    """Whether a path has a part that operating systems hide, or put there for themselves."""
    return any(part[0] == "." or part.casefold() in _HIDDEN for part in name.split("/") if part)


def choose_classes(
    train: tuple[str, ...], present: tuple[str, ...], empty: set[str], chosen: Sequence[str],
    root: Path,
) -> tuple[str, ...]:  # fmt: skip
    """The classes of the training split, or the chosen ones, whose folders may be empty there."""
    chosen = [_class_name(name) for name in chosen]
    if not train and len(chosen) > 1:
        raise ValueError(f"{printable(root)} has no class folders, but {len(chosen)} names")
    unknown = sorted(set(chosen) - set(train) - empty) if train else []
    if unknown:
        raise ValueError(
            f"classes must be class folders of the training images ({_list(train)}), got "
            f"{_list(unknown)}"
        )
    if len(set(chosen)) < len(chosen):
        raise ValueError(f"classes must differ, got {_list(chosen)}")
    extra = sorted(set(present) - set(train))
    if extra:
        raise ValueError(
            f"{printable(root)} has classes that the training images lack: {_list(extra)}"
        )
    return tuple(chosen) if train and chosen else train


def _find_splits(folder: Path, classes: Sequence[str]) -> dict[Split, Path]:
    """Folders of the splits. Beside other folders, "train" may be a class of vehicles instead."""
    folders = {path.name: path for path in _sub_folders(folder)}
    named = sorted(_SPLIT_NAMES & set(folders))
    others = sorted(set(folders) - _SPLIT_NAMES)
    if not named or set(named) & set(classes):
        return {"train": folder}
    splits = {
        split: folders[name]
        for split, names in _SPLIT_FOLDERS.items()
        for name in reversed(names)
        if name in folders
    }
    nested = [name for name in named if _sub_folders(folders[name])]
    if "train" in splits and ("train" in nested or not others):
        return splits
    if others and not nested and "train" not in splits:
        return {"train": folder}
    if others:
        raise ValueError(
            f"{printable(folder)} has {_list(named)} beside {_list(others)}, which may be splits "
            "or classes: give the folder of a split, or all classes"
        )
    raise FileNotFoundError(f"{printable(folder)} has {_list(named)}, but no 'train'")


def _class_folders(root: Path) -> dict[str, Path]:
    """Sub-folders with images by name, in alphabetical order."""
    folders: dict[str, Path] = {}
    for path in _sub_folders(root):
        if any(_may_be_image(file) for file in _walk(path)):
            name = _class_name(path.name)
            if printable(name) != name:
                raise ValueError(f"{printable(path)} must have a name in Unicode to be a class")
            if name in folders:
                raise ValueError(f"{printable(root)} has two folders of the class {name!r}")
            folders[name] = path
    return dict(sorted(folders.items()))


def _class_name(folder: str) -> str:
    """Name of a class: systems differ in how they encode letters with accents."""
    return unicodedata.normalize("NFC", folder)


def _collect(files: Iterable[Path], label: int, found: FoundImages[Path]) -> None:
    for path in files:
        if not _may_be_image(path):
            found.others[path.suffix.lower()] += 1
        elif error := refusal(path):
            found.refused.append(error)
        else:
            found.files.append(path)
            found.labels.append(label)


def _may_be_image(path: Path) -> bool:
    suffix = path.suffix.lower()
    if suffix in IMAGE_SUFFIXES or suffix in _IGNORED_SUFFIXES:
        return suffix in IMAGE_SUFFIXES
    return path.is_file() and is_image(path)


def _walk(folder: Path) -> Iterator[Path]:
    """Visible files below a folder, sorted by the components of their paths."""
    parents = {*folder.absolute().parents, *folder.resolve().parents}
    seen = {(status.st_dev, status.st_ino) for status in map(os.stat, parents)}
    waiting = [folder]
    while waiting:
        path = waiting.pop()
        if not path.is_dir():
            yield path
            continue
        status = path.stat()
        if (status.st_dev, status.st_ino) not in seen:  # otherwise a link that leads back
            seen.add((status.st_dev, status.st_ino))
            waiting += reversed(_visible(path))


def _sub_folders(folder: Path) -> list[Path]:
    return [path for path in _visible(folder) if path.is_dir()]


def _visible(folder: Path) -> list[Path]:
    try:
        names = sorted(os.listdir(folder))
    except OSError as error:
        raise ImageError(f"{printable(folder)} cannot be listed: {error.strerror}") from error
    return [folder / name for name in names if not is_hidden(name)]


def _list(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:_MAX_NAMES])) + _more(names)


def _more(items: Sequence[object]) -> str:
    return f" and {len(items) - _MAX_NAMES} more" if len(items) > _MAX_NAMES else ""
