"""Image files, read as an image viewer shows them: upright, opaque, 8-bit sRGB."""

from __future__ import annotations

import contextlib
import functools
import importlib
import io
import logging
import os
import stat
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image, ImageCms, ImageColor, UnidentifiedImageError, features

__all__ = [
    "ImageError",
    "crop_center",
    "decode_image",
    "is_image",
    "parse_color",
    "printable",
    "read_image",
    "refusal",
    "resize_shorter",
    "scaled",
]

_LOG = logging.getLogger(__name__)
_ORIENTATION = 0x0112
# Inverse of each EXIF orientation. ImageOps.exif_transpose also rewrites the EXIF data, which fails
# for the data of some cameras.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# Formats that Pillow registers but cannot decode, or only by starting another program (EPS).
_UNREADABLE = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"}
_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


class ImageError(ValueError):
    """A file cannot be read as an image; the message begins with its name."""


def read_image(path: str | Path, *, background: str = "white") -> Image.Image:
    """Read an image file of any format that Pillow decodes.

    The content decides the format. The first frame is turned upright by its EXIF orientation;
    transparent pixels are blended with `background`; colors are converted to sRGB by an embedded
    ICC profile; channels of more than 8 bits are scaled. White is 65535 in 16 bits. In 32 bits it
    is the smallest of 255 and 65535 for integers, or of 1 and 255 for floats, that no pixel
    exceeds, or else the largest pixel; negative values and NaN are black.

    Args:
        path: a regular file, or a link to one.
        background: color behind transparent pixels; see ``parse_color``.

    Returns:
        An RGB image.

    Raises:
        ImageError: the file is missing, is not a regular file, is damaged, is too large
            (``PIL.Image.MAX_IMAGE_PIXELS``), or is not an image.
        ValueError: `background` is not an opaque color.
    """
    color = parse_color(background)
    try:
        if error := refusal(path):
            raise error
        with open(path, "rb") as file:
            return _decode(file, path, color)
    except OSError as error:
        raise _incomplete(error, path) from error


def decode_image(content: bytes, name: str, *, background: str = "white") -> Image.Image:
    """The image in the content of a file; see `read_image`.

    Args:
        content: the bytes.
        name: name of the file, for errors.
        background: color behind transparent pixels.

    Raises:
        ImageError: the content is damaged, too large, or not an image.
        ValueError: `background` is not an opaque color.
    """
    return _decode(io.BytesIO(content), name, parse_color(background))


def _decode(file: IO[bytes], path: str | Path, color: tuple[int, int, int]) -> Image.Image:
    try:
        with Image.open(file, formats=_formats()) as image:
            raw_mode = str(image.tile[0][3]) if image.tile else ""
            image.load()
            return _convert(image, raw_mode, color)
    except Exception as error:  # decoders raise almost any error for damaged files
        raise _incomplete(error, path) from error


def _incomplete(error: Exception, path: str | Path) -> ImageError:
    return ImageError(f"{printable(path)} is not a complete image: {_reason(error, path)}")


def refusal(path: str | Path) -> ImageError | None:
    """The error of a path that must not be opened, otherwise None.

    Opening a pipe would wait forever, and a device may do anything.
    """
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError) as error:
        return ImageError(f"{printable(path)} is not an image file: {_reason(error, path)}")
    if stat.S_ISREG(mode):
        return None
    kind = _KINDS.get(stat.S_IFMT(mode), "no regular file")
    return ImageError(f"{printable(path)} is not an image file but {kind}")


def is_image(path: str | Path) -> bool:
    """Whether a path is a regular file that begins like an image format."""
    if not os.path.isfile(path):  # a pipe would be waited for
        return False
    try:
        # Formats without a signature would accept anything.
        formats = [name for name in _formats() if Image.OPEN[name][1] is not None]
        with open(path, "rb") as file, Image.open(file, formats=formats):
            return True
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        return True
    except Exception:
        return False


def parse_color(text: str) -> tuple[int, int, int]:
    """Red, green and blue of a color: a name of CSS, "#rrggbb", "rgb(...)" or "hsl(...)".

    Raises:
        ValueError: the text is not an opaque color.
    """
    try:
        color = ImageColor.getrgb(text)
        if len(color) == 3:
            return color
    except (AttributeError, TypeError, ValueError):
        pass
    raise ValueError(f"background must be an opaque color such as 'white', got {text!r}")


def resize_shorter(image: Image.Image, size: int, filter: Image.Resampling) -> Image.Image:
    """Resize an image so that its shorter side has `size` pixels.

    Raises:
        ValueError: the result would have more pixels than ``PIL.Image.MAX_IMAGE_PIXELS``.
    """
    width, height = scaled(image.size, size)
    if Image.MAX_IMAGE_PIXELS is not None and width * height > Image.MAX_IMAGE_PIXELS:
        raise ValueError(
            f"resized to {width} x {height}, it has more than {Image.MAX_IMAGE_PIXELS} pixels"
        )
    return image.resize((width, height), filter)


def crop_center(image: Image.Image, width: int, height: int) -> Image.Image:
    """The middle of an image, at most `width` x `height` pixels."""
    width, height = min(width, image.width), min(height, image.height)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


def printable(path: str | Path) -> str:
    """The name of a file for messages; bytes that are not text are escaped."""
    return os.fspath(path).encode("utf-8", "backslashreplace").decode("utf-8")


def _formats() -> list[str]:
    Image.preinit()  # the common ones first
    Image.init()
    _add_heif()
    return [name for name in list(Image.OPEN) if name not in _UNREADABLE]


@functools.lru_cache(maxsize=1)
def _add_heif() -> None:
    """Register HEIF, the format of phones, where pillow-heif is installed."""
    with contextlib.suppress(ImportError):
        importlib.import_module("pillow_heif").register_heif_opener()


def _reason(error: Exception, path: str | Path) -> str:
    if isinstance(error, UnidentifiedImageError):
        heif = Path(path).suffix.lower() in (".heic", ".heif")
        return "no known image format" + (" (install pillow-heif for HEIF)" if heif else "")
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split()) or type(error).__name__


def _convert(image: Image.Image, raw_mode: str, background: tuple[int, int, int]) -> Image.Image:
    orientation = _orientation(image)
    profile = image.info.get("icc_profile")
    image = _simplify_mode(image, raw_mode)
    alpha = image.getchannel("A") if image.mode in ("LA", "RGBA") else None
    colors = image.convert({"LA": "L", "RGBA": "RGB"}.get(image.mode, image.mode))
    if profile:
        colors = _to_srgb(colors, profile)
    colors = colors.convert("RGB")
    if alpha is not None:
        colors = Image.composite(colors, Image.new("RGB", colors.size, background), alpha)
    return colors.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else colors


def _orientation(image: Image.Image) -> Any:
    try:
        return image.getexif().get(_ORIENTATION)
    except Exception:  # damaged EXIF data do not affect the pixels
        return None


def _simplify_mode(image: Image.Image, raw_mode: str) -> Image.Image:
    """Convert palettes, more than 8 bits, a transparent color and premultiplied alpha."""
    key = image.info.get("transparency")
    if image.mode[0] == "I" or image.mode == "F":
        return _to_8_bits(image, key)
    if image.mode in ("P", "PA"):
        return image.convert("RGBA" if image.has_transparency_data else "RGB")
    if image.mode in ("La", "RGBa"):
        return image.convert({"La": "LA", "RGBa": "RGBA"}[image.mode])
    if key is not None and image.mode in ("1", "L", "RGB"):
        image.info["transparency"] = _scaled_key(key, raw_mode)
        return image.convert("RGBA")
    return image


def _scaled_key(key: Any, raw_mode: str) -> Any:
    """The transparent color of a PNG, scaled from the file's bits to the image's."""
    if raw_mode == "1":
        return 255 if key else 0
    if raw_mode in ("L;2", "L;4"):
        return key * {"L;2": 85, "L;4": 17}[raw_mode]
    if raw_mode == "RGB;16B":
        return tuple(value >> 8 for value in key)
    return key


def _to_8_bits(image: Image.Image, key: Any) -> Image.Image:
    """Convert a grey image of 16 or 32 bits to L, or to LA where a color is transparent."""
    values = np.asarray(image)
    tags = getattr(image, "tag_v2", {})
    if image.mode == "I" and tags.get(339) == (1,):  # SampleFormat: unsigned
        values = values.view(np.uint32)
    alpha = None if key is None else Image.fromarray(np.where(values == key, 0, 255).astype("u1"))
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        bits = tags.get(258, 16)  # BitsPerSample: some have 12
        white = 2.0 ** int(bits[0] if isinstance(bits, tuple) else bits) - 1
    else:
        white = _white(values)
    shares = np.nan_to_num(values / np.float64(white), nan=0.0, posinf=1.0, neginf=0.0)
    if tags.get(262) == 0:  # PhotometricInterpretation: white is zero
        shares = 1 - shares
    grey = Image.fromarray((shares.clip(0, 1) * 255).round().astype(np.uint8))
    return grey if alpha is None else Image.merge("LA", (grey, alpha))


def _white(values: np.ndarray) -> float:
    finite = values[np.isfinite(values)]
    top = float(finite.max()) if finite.size else 0.0
    usual = (255.0, 65535.0) if values.dtype.kind in "iu" else (1.0, 255.0)
    return next((white for white in usual if top <= white), top)


def _to_srgb(image: Image.Image, profile: bytes) -> Image.Image:
    """Convert from an ICC profile; one that is damaged or does not fit the image is ignored."""
    if not features.check("littlecms2"):
        _warn_about_profiles()
        return image
    transform = _transform(profile, image.mode)
    return image if transform is None else transform.apply(image)


@functools.lru_cache(maxsize=1)
def _warn_about_profiles() -> None:
    _LOG.warning("this Pillow is built without LittleCMS: ICC profiles of images are ignored")


@functools.lru_cache(maxsize=16)
def _transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    if mode not in ("L", "RGB", "CMYK"):
        return None
    try:
        source = ImageCms.getOpenProfile(io.BytesIO(profile))
        # Otherwise LittleCMS caches the last pixel, which threads would share.
        transform = ImageCms.buildTransform(
            source, ImageCms.createProfile("sRGB"), mode, "RGB", flags=ImageCms.Flags.NOCACHE
        )
        # Most profiles are sRGB: their pixels stay exactly as they are.
        return None if _is_identity(transform, mode) else transform
    except ImageCms.PyCMSError:
        return None


def _is_identity(transform: ImageCms.ImageCmsTransform, mode: str) -> bool:
    levels = np.linspace(0, 255, 16).round().astype(np.uint8)
    if mode == "L":
        probe = Image.fromarray(levels[None])
    elif mode == "RGB":
        cube = np.stack(np.meshgrid(levels, levels, levels), -1)
        probe = Image.fromarray(cube.reshape(1, -1, 3))
    else:
        return False
    before, after = (
        np.asarray(i.convert("RGB"), np.int16) for i in (probe, transform.apply(probe))
    )
    return bool(abs(after - before).max() <= 2)


def scaled(size: tuple[int, int], shorter: int) -> tuple[int, int]:
    """Width and height with `shorter` pixels on the shorter side."""
    scale = shorter / min(size)
    return max(shorter, round(size[0] * scale)), max(shorter, round(size[1] * scale))
