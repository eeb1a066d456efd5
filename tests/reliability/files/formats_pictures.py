"""Formats of pictures, alone and in archives, and of pictures with captions."""

from __future__ import annotations

import functools
import io
import json
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

from bitdance.data.captioned_images import CaptionedImage, iterate_captioned_images
from bitdance.data.images import open_images
from bitdance.io.image_files import ImageError, is_image, read_image
from tests.reliability.files.formats import Format, Unchecked, digest

__all__ = ["FORMATS", "SUFFIXES", "encoded"]

SUFFIXES = ("png", "jpg", "webp", "tiff", "bmp", "gif")
"""Formats of pictures that are damaged; Pillow reads more."""

_PIXELS = Unchecked("decoders of pictures show what they can", cuts=True)


def encoded(suffix: str) -> bytes:
    """The file of a small picture."""
    y, x = np.mgrid[:12, :16]
    rgb = np.stack([16 * x, 20 * y, (x * y) % 256], -1).astype(np.uint8)
    file = io.BytesIO()
    image = Image.fromarray(rgb)
    options = {"compression": "tiff_lzw"} if suffix == "tiff" else {}
    image.save(file, Image.registered_extensions()[f".{suffix}"], **options)
    return file.getvalue()


def _make(folder: Path, *, suffix: str) -> None:
    (folder / f"a.{suffix}").write_bytes(encoded(suffix))


def _load(folder: Path, *, suffix: str) -> str:
    is_image(folder / f"a.{suffix}")
    image = read_image(folder / f"a.{suffix}")
    return digest(np.asarray(image))


def _make_folder(folder: Path) -> None:
    for number, suffix in enumerate(("png", "bmp", "jpg", "png")):
        path = folder / "data" / f"class {number % 2}" / f"{number}.{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(suffix))


def _load_folder(folder: Path) -> str:
    images = open_images(folder / "data", 12)
    return digest(images.take(np.arange(len(images))), images.labels, images.classes)


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))


def _make_archive(folder: Path) -> None:
    with tarfile.open(folder / "data.tar", "w") as archive:
        for i, suffix in enumerate(("png", "bmp", "png")):
            _add(archive, f"{i:03d}.{suffix}", encoded(suffix))
            _add(archive, f"{i:03d}.cls", str(i % 2).encode())


def _load_archive(folder: Path) -> str:
    images = open_images(folder / "data.tar", 12)
    return digest(images.take(np.arange(len(images))), images.labels, images.classes)


def _make_captions(folder: Path) -> None:
    (folder / "a.png").write_bytes(encoded("png"))
    lines = [json.dumps({"image": "a.png", "captions": [f"fox {i}", "red"]}) for i in range(3)]
    (folder / "list.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    with tarfile.open(folder / "list.tar", "w") as archive:
        _add(archive, "a.png", encoded("png"))
        _add(archive, "a.txt", b"a fox")
        _add(archive, "b.png", encoded("png"))
        _add(archive, "b.json", b'{"caption": "a ship"}')


def _load_captions(folder: Path) -> str:
    found = []
    for name in ("list.jsonl", "list.tar"):
        for item in iterate_captioned_images(folder / name):
            if not isinstance(item, CaptionedImage):
                raise item
            found.append((item.id, item.captions, np.asarray(item.read("white"))))
    return digest(found)


def _make_parquet(folder: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.table({"image": [encoded("png")] * 3, "captions": [["a"], ["b", "c"], ["d"]]})
    pq.write_table(table, folder / "list.parquet", write_page_checksum=True)


def _load_parquet(folder: Path) -> str:
    found = []
    for item in iterate_captioned_images(folder / "list.parquet"):
        if not isinstance(item, CaptionedImage):
            raise item
        found.append((item.id, item.captions, np.asarray(item.read("white"))))
    return digest(found)


FORMATS = (
    *(
        Format(
            f"picture, {suffix}", functools.partial(_make, suffix=suffix),
            functools.partial(_load, suffix=suffix), (ImageError,), {"*": _PIXELS},
            readers=(
                "bitdance.io.image_files.read_image", "bitdance.io.image_files._decode",
                "bitdance.io.image_files.is_image",
            ),
        )
        for suffix in SUFFIXES
    ),
    Format(
        "folder of pictures", _make_folder, _load_folder,
        (ImageError, FileNotFoundError, ValueError), {"*": _PIXELS},
    ),
    Format(
        "archive of pictures", _make_archive, _load_archive,
        (ImageError, FileNotFoundError, ValueError), {"*": _PIXELS},
        readers=(
            "bitdance.data.tar_index.Archive",
        ),
    ),
    Format(
        "pictures with captions", _make_captions, _load_captions,
        (ImageError, FileNotFoundError, ValueError), {"*": _PIXELS},
        readers=(
            "bitdance.data.captioned_images._of_lines",
        ),
    ),
    Format(
        "pictures with captions in Parquet", _make_parquet, _load_parquet,
        (ImageError, FileNotFoundError, ValueError),
        {"*": Unchecked("pages have checksums, the description at the end has none")},
        readers=("bitdance.data.captioned_images._of_parquet",), needs=("pyarrow",),
    ),
)  # fmt: skip
"""Every format of pictures."""
