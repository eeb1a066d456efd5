"""The command ``bitdance reconstruct``: images through the autoencoder and back."""

from __future__ import annotations

import argparse
import math
import sys
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from bitdance.data.image_folders import find_images
from bitdance.io.files import CheckpointError, NoModelError
from bitdance.io.image_files import ImageError, printable, read_image, resize_shorter
from bitdance.io.image_grid import grid
from bitdance.io.outputs import check_folder, save_image
from bitdance.models.autoencoder.autoencoder import BinaryAutoencoder
from bitdance.models.loading.hub import locate
from bitdance.pipelines.class_conditional import BitDance

_POOR = 15.0  # dB: an error of 45 of 255 levels


def add_command(
    commands: Any,
    add_model: Callable[[argparse.ArgumentParser], None],
    load: Callable[[argparse.Namespace], BitDance],
    positive: Callable[[str], int],
) -> None:
    """Add the command's parser."""
    parser = commands.add_parser(
        "reconstruct",
        help="send images through the autoencoder",
        description="Encode images to bits and decode them again; each original and its "
        "reconstruction are written side by side.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add_model(parser)
    parser.add_argument(
        "images", nargs="+", type=Path, metavar="IMAGE", help="image files, or folders of them"
    )
    parser.add_argument("--size", type=positive, help="resize the shorter side to this")
    add_image_options(parser, ("raise", "skip"))
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder to write to")
    parser.set_defaults(run=lambda options: _reconstruct(options, load))


def add_image_options(parser: argparse.ArgumentParser, on_error: Sequence[str]) -> None:
    """Add how image files are read."""
    parser.add_argument("--background", default="white", help="color behind transparent pixels")
    parser.add_argument(
        "--on-error", choices=on_error, default="raise",
        help="images that cannot be read end the command, or are left out and counted",
    )  # fmt: skip


def _reconstruct(options: argparse.Namespace, load: Callable[[Any], BitDance]) -> None:
    check_folder(options.out)
    sizes = _sizes(options)
    pipeline: BitDance | None = None
    try:
        pipeline = load(options)
        autoencoder = pipeline.model.vae
    except NoModelError:
        autoencoder = autoencoder_alone(locate(options.model)).to(
            options.device, getattr(torch, options.dtype)
        )
    factor = autoencoder.config.downsampling
    for path, size in sizes.items():
        if min(size) < factor:
            raise ValueError(f"{printable(path)} is smaller than {factor} pixels; use --size")
    if pipeline is not None:
        _warn_of_sizes(sizes, pipeline)
    for path, target in _targets(list(sizes), options.out).items():
        original = _whole_cells(_read(path, options), factor)
        again, count, psnr = _there_and_back(autoencoder, original)
        save_image(grid([original, again], 2), target)
        print(f"{printable(path)}: {count} bytes of bits, {psnr:.2f} dB: {printable(target)}")
        if psnr < _POOR:
            made = "" if pipeline is None else f"; the model is made for {_purpose(pipeline)}"
            _note(f"{printable(path)}: little is left of it{made}")


def autoencoder_alone(path: Path) -> BinaryAutoencoder:
    """The autoencoder of files that are no model.

    Raises:
        CheckpointError: they are no autoencoder either.
    """
    try:
        return BinaryAutoencoder.from_pretrained(path)
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{path} holds neither a model nor an autoencoder: {error}"
        ) from error


def _sizes(options: argparse.Namespace) -> dict[Path, tuple[int, int]]:
    """Width and height of each image: all are read once before anything is written."""
    paths: list[Path] = []
    errors: list[ImageError] = []
    for path in options.images:
        if not path.is_dir():
            paths.append(path)
            continue
        found = find_images(path)
        paths += found.files
        errors += found.refused
        found.refused = []
        if found.left_out():
            _note(f"{printable(path)}: left out: {found.left_out()}")
    sizes = {}
    for path in paths:
        try:
            sizes[path] = _read(path, options).size
        except ImageError as error:
            errors.append(error)
            if options.on_error == "raise":
                break
    if errors and options.on_error == "raise":
        raise errors[0]
    for reason in errors:
        _note(f"left out: {reason}")
    if not sizes:
        raise ValueError(f"{', '.join(map(printable, options.images))}: there are no images")
    return sizes


def _read(path: Path, options: argparse.Namespace) -> Image.Image:
    image = read_image(path, background=options.background)
    if options.size is None:
        return image
    try:
        return resize_shorter(image, options.size, Image.Resampling.BICUBIC)
    except ValueError as error:
        raise ImageError(f"{printable(path)}: {error}") from error


def _whole_cells(image: Image.Image, factor: int) -> Image.Image:
    """The middle of the image, as much as the autoencoder's cells cover."""
    width, height = (side // factor * factor for side in image.size)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


def _there_and_back(
    autoencoder: BinaryAutoencoder, image: Image.Image
) -> tuple[Image.Image, int, float]:
    """What comes back of an image, the bytes of its codes, and the error in dB."""
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]
    parameter = next(autoencoder.parameters())
    x = (pixels.to(parameter.device, parameter.dtype) / 127.5) - 1
    with torch.inference_mode():
        packed = autoencoder.encode(x, packed=True)
        decoded = autoencoder.decode_pixels(packed).cpu()
    again = Image.fromarray(decoded[0].permute(1, 2, 0).contiguous().numpy())
    error = float((decoded[0].double() - pixels[0].double()).square().mean())
    return again, packed.numel(), 10 * math.log10(255**2 / error) if error else math.inf


def _targets(paths: Sequence[Path], folder: Path) -> dict[Path, Path]:
    """A separate output file for each image; no output replaces an input."""
    taken = {_key(path) for path in paths}
    targets = {}
    for path in paths:
        target, count = folder / f"{path.stem}-reconstructed.png", 1
        while _key(target) in taken:
            count += 1
            target = folder / f"{path.stem}-{count}-reconstructed.png"
        taken.add(_key(target))
        targets[path] = target
    return targets


def _key(path: Path) -> str:
    """Equal for names that any file system takes for the same."""
    return unicodedata.normalize("NFC", str(path.resolve())).casefold()


def _warn_of_sizes(sizes: dict[Path, tuple[int, int]], pipeline: BitDance) -> None:
    side = pipeline.config.resolution
    others = [path for path, size in sizes.items() if min(size) != side]
    if others:
        width, height = sizes[others[0]]
        more = f" (and {len(others) - 1} more)" if len(others) > 1 else ""
        _note(
            f"{printable(others[0])} has {width} x {height} pixels{more}, but the model is made "
            f"for {_purpose(pipeline)}; --size {side} resizes"
        )


def _purpose(pipeline: BitDance) -> str:
    side, names = pipeline.config.resolution, [name for name in pipeline.classes if name]
    shown = ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")
    return f"{side} x {side} pixels" + (f" of {shown}" if names else "")


def _note(text: str) -> None:
    print(f"bitdance reconstruct: {text}", file=sys.stderr)
