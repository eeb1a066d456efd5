"""Arguments that commands share: types, help, the model and device to use."""

from __future__ import annotations

import argparse
import math
import re
from pathlib import Path

import torch

from bitdance.io.files import CheckpointError
from bitdance.models.autoencoder.autoencoder import BinaryAutoencoder
from bitdance.models.quantization import QUANTIZATIONS
from bitdance.pipelines.class_conditional import BitDancePipeline
from bitdance.pipelines.text_to_image import BitDanceT2IPipeline

__all__ = [
    "AUTOENCODER_HELP",
    "CONFIG_HELP",
    "DATA_HELP",
    "DTYPES",
    "TILE_SIZE",
    "add_decoding_arguments",
    "add_device_argument",
    "add_image_arguments",
    "add_model_arguments",
    "add_offload_argument",
    "add_quantization_argument",
    "add_sampling_arguments",
    "check_decoding",
    "check_device",
    "configure_decoding",
    "load_autoencoder",
    "load_pipeline",
    "load_text_pipeline",
    "make_strict",
    "nonempty_path",
    "positive_int",
]

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
MODEL_HELP = (
    "a folder that save_pretrained wrote, or of a published model; an official .pt file; a hub id "
    "owner/name or owner/name/file; or 'fashion', or 'emoji' for prompts, models of bitdance-models"
)
AUTOENCODER_HELP = (
    "file, folder or hub id of the autoencoder, where the model's file does not contain it"
)
CONFIG_HELP = (
    "for a file without a configuration: a preset such as B-16x (an autoencoder: d16c32), or a "
    ".json or .toml file with fields of the configuration, which may name a preset"
)
DATA_HELP = (
    "folder of images or of IDX files, a .tar archive of images, or a pattern of webdataset shards "
    "such as 'train-{0000..0127}.tar'"
)
TILE_SIZE = 512
_MAX_COUNT = 99_999_999  # more is a mistake that would only be noticed when memory runs out


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Add which model to load, how, and where to."""
    parser.add_argument("--model", default="fashion", help=MODEL_HELP)
    parser.add_argument("--autoencoder", help=AUTOENCODER_HELP)
    parser.add_argument("--config", help=CONFIG_HELP)
    add_device_argument(parser)
    parser.add_argument(
        "--dtype", choices=DTYPES, default="float32", help="dtype of the parameters"
    )


def add_quantization_argument(parser: argparse.ArgumentParser) -> None:
    """Add whether weights are rounded."""
    parser.add_argument(
        "--quantization", choices=QUANTIZATIONS,
        help="round weights of transformer and head to float8 or int8, with fp8 their inputs too",
    )  # fmt: skip


def add_decoding_arguments(parser: argparse.ArgumentParser, *, slicing: bool = True) -> None:
    """Add how images are decoded where memory is short; `slicing` is for batches."""
    parser.add_argument(
        "--tiling", action="store_true",
        help="decode images larger than a tile in tiles: less memory, more time",
    )  # fmt: skip
    parser.add_argument(
        "--tile-size", type=positive_int, metavar="PIXELS",
        help=f"with --tiling: side of a tile (default: {TILE_SIZE})",
    )  # fmt: skip
    if slicing:
        parser.add_argument(
            "--slicing", action="store_true", help="decode the images of a batch one by one"
        )


def add_offload_argument(parser: argparse.ArgumentParser) -> None:
    """Add whether parts of the model are on the card in turns."""
    parser.add_argument(
        "--offload", action="store_true",
        help="with a card: keep the weights on the host, and on the card those in use",
    )  # fmt: skip


def add_device_argument(parser: argparse.ArgumentParser) -> None:
    """Add ``--device``, which ``main`` checks."""
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N")


def add_sampling_arguments(parser: argparse.ArgumentParser, *, guidance: bool = True) -> None:
    """Add the number of denoising steps and the guidance scale."""
    parser.add_argument(
        "--num-inference-steps", type=positive_int,
        help="denoising steps per patch (default: the model's own)",
    )  # fmt: skip
    if guidance:
        parser.add_argument(
            "--guidance-scale", type=float, help="guidance scale (default: the model's own)"
        )


def add_image_arguments(parser: argparse.ArgumentParser, *, with_check: bool) -> None:
    """Add how image files are read; `with_check` offers to read all of them first."""
    parser.add_argument("--background", default="white", help="color behind transparent pixels")
    parser.add_argument(
        "--on-error", choices=("raise", "check", "skip") if with_check else ("raise", "skip"),
        default="raise",
        help="images that cannot be read end the command, or are skipped and counted",
    )  # fmt: skip


def load_pipeline(options: argparse.Namespace, source: Path | None = None) -> BitDancePipeline:
    """Load the model that the arguments name; `source` replaces ``--model``."""
    given = vars(options)
    check_decoding(options)
    pipeline = BitDancePipeline.from_pretrained(
        source or options.model,
        autoencoder=options.autoencoder,
        config=options.config,
        dtype=DTYPES[given.get("dtype", "float32")],
        quantization=given.get("quantization"),
        device="cpu" if given.get("offload") else given.get("device", "cpu"),
    )
    configure_decoding(options, pipeline.model.vae)
    return pipeline.enable_model_cpu_offload(options.device) if given.get("offload") else pipeline


def load_text_pipeline(options: argparse.Namespace) -> BitDanceT2IPipeline:
    """Load the text-to-image model that the arguments name."""
    given = vars(options)
    check_decoding(options)
    pipeline = BitDanceT2IPipeline.from_pretrained(
        options.model,
        autoencoder=options.autoencoder,
        tokenizer=given.get("tokenizer"),
        dtype=DTYPES[options.dtype],
        quantization=given.get("quantization"),
        device="cpu" if given.get("offload") else options.device,
    )
    configure_decoding(options, pipeline.model.ae)
    return pipeline.enable_model_cpu_offload(options.device) if given.get("offload") else pipeline


def check_decoding(options: argparse.Namespace) -> None:
    """Check how memory is saved, before a model is loaded.

    Raises:
        ValueError: there is a tile size, but no tiling; or parts are to leave a card, but there is
            none.
    """
    given = vars(options)
    if given.get("tile_size") is not None and not options.tiling:
        raise ValueError(f"--tile-size must be left out without --tiling, got {options.tile_size}")
    if given.get("offload") and options.device == "cpu":
        raise ValueError("--offload must be left out with --device cpu, which holds the weights")


def configure_decoding(options: argparse.Namespace, autoencoder: BinaryAutoencoder) -> None:
    """Make an autoencoder decode as ``add_decoding_arguments`` offers it.

    Raises:
        ValueError: a tile is smaller than a code.
    """
    given = vars(options)
    if given.get("tiling"):
        autoencoder.enable_tiling(options.tile_size or TILE_SIZE)
    if given.get("slicing"):
        autoencoder.enable_slicing()


def load_autoencoder(
    path: Path, *, config: str | None = None, dtype: torch.dtype = torch.float32,
    device: str = "cpu",
) -> BinaryAutoencoder:  # fmt: skip
    """Load the autoencoder in files that are not a model.

    Raises:
        CheckpointError: they are not an autoencoder either.
    """
    try:
        return BinaryAutoencoder.from_pretrained(path, config=config, dtype=dtype, device=device)
    except FileNotFoundError as error:
        message = f"{path} is neither a model nor an autoencoder: {error}"
        raise CheckpointError(message) from error


def check_device(device: str) -> None:
    """Check that PyTorch has a device here.

    Raises:
        ValueError: it is neither the CPU nor a CUDA device.
        RuntimeError: there is no such CUDA device.
    """
    match = re.fullmatch(r"cpu|cuda(?::([0-9]{1,4}))?", device)
    if match is None:
        raise ValueError(f"--device must be cpu, cuda or cuda:N, got {_shorten(device)}")
    if device == "cpu":
        return
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if int(match.group(1) or 0) >= count:
        built = "" if torch.version.cuda else ", which was built without CUDA"
        raise RuntimeError(
            f"--device {device}: PyTorch {torch.__version__}{built} finds {count} CUDA devices here"
        )


def positive_int(text: str) -> int:
    """An integer of at least 1."""
    value = _integer(text)
    if not 1 <= value <= _MAX_COUNT:
        raise argparse.ArgumentTypeError(f"must be from 1 to {_MAX_COUNT}, got {value:g}")
    return value


def _integer(text: str) -> int:
    """An integer in any notation, such as 1e3."""
    try:
        return int(text)
    except ValueError:
        pass
    value = _finite_float(text)
    if not value.is_integer():
        raise argparse.ArgumentTypeError(f"must be an integer, got {_shorten(text)}")
    return int(value)


def _finite_float(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"must be a finite number, got {_shorten(text)}")
    return value


def _nonempty_text(text: str) -> str:
    if not text.strip() or "\0" in text:
        raise argparse.ArgumentTypeError(f"must be some text, got {_shorten(text)}")
    return text


def nonempty_path(text: str) -> Path:
    """A path; an empty one would be the working folder."""
    return Path(_nonempty_text(text))


def _shorten(text: str) -> str:
    return repr(text if len(text) <= 60 else f"{text[:57]}...")


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Shows defaults, except None, False and empty lists."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        empty = action.default is None or action.default is False or action.default == []
        if empty or "(default" in (action.help or ""):
            return action.help
        return super()._get_help_string(action)


_STRICT_TYPES = {int: _integer, float: _finite_float, Path: nonempty_path, None: _nonempty_text}


def make_strict(parser: argparse.ArgumentParser) -> None:
    """Replace the types and the help formatter of a parser and its commands by those from here."""
    parser.formatter_class = _HelpFormatter
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                make_strict(command)
        elif action.nargs != 0:  # not a flag
            action.type = _STRICT_TYPES.get(action.type, action.type)  # type: ignore[arg-type]
