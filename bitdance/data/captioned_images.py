"""Images with captions, one after the other: from JSON lines, Parquet and webdataset archives."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from bitdance.data.image_folders import IMAGE_SUFFIXES, is_hidden
from bitdance.data.parquet import convert_errors, import_pyarrow
from bitdance.data.tar_images import sample_name
from bitdance.data.tar_index import Archive, Member, expand_pattern
from bitdance.io.files import one_line
from bitdance.io.image_files import ImageError, decode_image, printable, read_image
from bitdance.io.validation import brief

__all__ = ["CAPTIONS", "IMAGES", "CaptionedImage", "iterate_captioned_images"]

IMAGES = ("image", "file_name", "path")
"""Keys of JSON lines and columns of Parquet files for the image: the first that is there has it."""
CAPTIONS = ("captions", "caption", "text")
"""Likewise for its captions: a text, or a list of texts."""

_TEXTS = (".txt", ".caption")
_MAX_TEXT_BYTES = 1 << 20
_ROWS = 64  # of a Parquet file that are in memory


@dataclass(frozen=True)
class CaptionedImage:
    """An image that is not read yet, and its captions.

    Attributes:
        id: where it is from.
        captions: one or more texts.
        read: returns the image, on a background of a given color; raises ImageError.
    """

    id: str
    captions: tuple[str, ...]
    read: Callable[[str], Image.Image]


Found = Iterator[CaptionedImage | ImageError]


def iterate_captioned_images(path: str | Path) -> Found:
    """The images of a file, or of several that a pattern names, in order.

    Args:
        path: a ".jsonl" or ".parquet" file, a ".tar" archive, or a pattern of them as for
            ``expand_pattern``.

    Yields:
        Images, or the error of one that has no caption, of a caption that has no image, or of a
        damaged file, whose other images follow as far as they can be found.

    Raises:
        FileNotFoundError: there is no such file.
        ImportError: pyarrow is needed, and not installed.
        ValueError: the file is of another kind.
    """
    kinds: dict[str, Callable[[Path], Found]] = {
        ".jsonl": _of_lines, ".parquet": _of_parquet, ".tar": _of_archive
    }  # fmt: skip
    iterate = kinds.get(Path(path).suffix)
    if iterate is None or Path(path).is_dir():
        raise ValueError(
            f"{printable(path)}: images with captions must be in a .jsonl, .parquet or .tar file"
        )
    if iterate is _of_parquet:
        import_pyarrow()
    try:
        files = expand_pattern(path)
    except FileNotFoundError:
        raise FileNotFoundError(f"there is no file {printable(path)}") from None
    return (image for file in files for image in iterate(file))


def _of_lines(path: Path) -> Found:
    folder = path.parent
    if not path.is_file():  # a pipe would be waited for
        yield ImageError(f"{printable(path)} cannot be read: it is no regular file")
        return
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield _of_line(f"{printable(path)}, line {number}", folder, line)
    except OSError as error:
        yield ImageError(f"{printable(path)} cannot be read: {error.strerror}")


def _of_line(title: str, folder: Path, line: bytes) -> CaptionedImage | ImageError:
    try:
        content = json.loads(line.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        return ImageError(f"{title} is not JSON: {one_line(error)}")
    if not isinstance(content, dict):
        return ImageError(f"{title} must be a JSON object, got {brief(content)}")
    try:
        name = _first(title, content, IMAGES)
        if not isinstance(name, str) or not name:
            raise ImageError(f"{title}: the image must be a path, got {brief(name)}")
        captions = _captions(title, _first(title, content, CAPTIONS))
    except ImageError as error:
        return error
    return _of_file(folder, name, captions)


def _of_file(folder: Path, name: str, captions: tuple[str, ...]) -> CaptionedImage:
    path = folder / name
    return CaptionedImage(name, captions, lambda color: read_image(path, background=color))


def _of_bytes(id: str, content: bytes, captions: tuple[str, ...]) -> CaptionedImage:
    return CaptionedImage(
        id, captions, lambda color: decode_image(content, id, background=color)
    )  # fmt: skip


def _of_parquet(path: Path) -> Found:
    pa, pq = import_pyarrow()
    title = printable(path)
    if not path.is_file():
        yield ImageError(f"{title} cannot be read: it is no regular file")
        return
    try:
        with (
            convert_errors(pa, f"{title} is not a complete Parquet file", ImageError),
            pq.ParquetFile(path, page_checksum_verification=True) as file,
        ):
            names = {name: name for name in file.schema_arrow.names}
            columns = [_first(title, names, keys) for keys in (IMAGES, CAPTIONS)]
            row = 0
            for batch in file.iter_batches(_ROWS, columns=columns):
                images, captions = (batch.column(name).to_pylist() for name in columns)
                for image, texts in zip(images, captions, strict=True):
                    yield _of_row(path, row, image, texts)
                    row += 1
    except ImageError as error:
        yield error


def _of_row(path: Path, row: int, image: Any, texts: Any) -> CaptionedImage | ImageError:
    id = f"{path.name}:{row}"
    title = f"{printable(path)}, row {row}"
    try:
        captions = _captions(title, texts)
    except ImageError as error:
        return error
    if isinstance(image, Mapping):  # Hugging Face's: bytes, or the path of a file
        name, image = image.get("path"), image.get("bytes")
        if isinstance(name, str) and name:
            id, image = (id, name) if image is None else (f"{id} {name}", image)
    if isinstance(image, bytes) and image:
        return _of_bytes(id, image, captions)
    if isinstance(image, str) and image:
        return _of_file(path.parent, image, captions)
    return ImageError(f"{title} has no image")


def _of_archive(path: Path) -> Found:
    """Images of an archive, whose files of one sample follow each other."""
    sample: dict[str, Member] = {}
    last, damage = "", []
    try:
        for member in Archive(path).members():
            if is_hidden(member.name):
                continue
            name, extension = sample_name(member.name)
            if name != last:
                yield from _of_sample(sample)
                sample, last = {}, name
            sample[extension] = member
    except ImageError as error:
        damage.append(error)
    yield from _of_sample(sample)
    yield from damage


def _of_sample(files: Mapping[str, Member]) -> Found:
    images = [member for extension, member in files.items() if extension in IMAGE_SUFFIXES]
    try:
        captions = _captions_of_sample(files, needed=bool(images))
        if len(images) > 1:
            yield ImageError(f"{images[1].title()} is a second image of one sample")
        elif images and not captions:
            yield ImageError(f"{images[0].title()} has no caption (.txt or .json beside it)")
        elif images:
            yield _of_member(images[0], captions)
        elif captions:
            yield ImageError(f"{next(iter(files.values())).title()} has no image beside it")
    except ImageError as error:
        yield error


def _of_member(member: Member, captions: tuple[str, ...]) -> CaptionedImage | ImageError:
    if not member.is_plain:
        return ImageError(f"{member.title()} is not an image file but a link")

    def read(color: str) -> Image.Image:
        return decode_image(member.read(), member.title(), background=color)

    return CaptionedImage(f"{member.archive.path.name}/{member.name}", captions, read)


def _captions_of_sample(files: Mapping[str, Member], *, needed: bool) -> tuple[str, ...]:
    """Captions of a sample's texts; none where there are none, or no image needs them."""
    for extension in _TEXTS:
        if extension in files:
            return _captions(files[extension].title(), _text(files[extension]).strip())
    if ".json" not in files:
        return ()
    title, text = files[".json"].title(), _text(files[".json"])
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ImageError(f"{title} is not JSON: {one_line(error)}") from error
    if not isinstance(content, dict):
        raise ImageError(f"{title} must be a JSON object, got {brief(content)}")
    if not needed and not any(key in content for key in CAPTIONS):
        return ()
    return _captions(title, _first(title, content, CAPTIONS))


def _text(member: Member) -> str:
    if member.size > _MAX_TEXT_BYTES:
        raise ImageError(f"{member.title()} must have at most {_MAX_TEXT_BYTES} bytes")
    try:
        return member.read().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ImageError(f"{member.title()} is not UTF-8: {one_line(error)}") from error


def _first(title: str, content: Mapping[str, Any], keys: Sequence[str]) -> Any:
    """The value of the first of some keys that is there."""
    for key in keys:
        if key in content:
            return content[key]
    raise ImageError(
        f"{title} must have {', '.join(keys[:-1])} or {keys[-1]}, got {brief(list(content))}"
    )


def _captions(title: str, value: Any) -> tuple[str, ...]:
    """The captions in a text or a list of texts.

    Raises:
        ImageError: there is none, or one is empty or not Unicode.
    """
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise ImageError(f"{title}: captions must be a text or a list of texts, got {brief(value)}")
    if not texts:
        raise ImageError(f"{title} has no caption")
    for text in texts:
        if not text.strip():
            raise ImageError(f"{title} has an empty caption")
        try:
            text.encode("utf-8")
        except UnicodeEncodeError:
            raise ImageError(f"{title}: captions must be Unicode, got {brief(text)}") from None
    return tuple(texts)
