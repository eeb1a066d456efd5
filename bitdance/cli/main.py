"""The command line: ``bitdance generate``, ``train`` and the others.

Exit status: 0 done, 1 it could not be done (one line says why), 2 wrong usage, 130 stopped with
Ctrl-C, 141 nobody reads the output any more, 143 stopped with SIGTERM. Files appear whole or not at
all.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bitdance.cli import bench, reconstruct
from bitdance.cli.arguments import check_device, make_strict, positive
from bitdance.cli.errors import run_command
from bitdance.cli.reconstruct import autoencoder_alone
from bitdance.cli.train import add_commands
from bitdance.io import weights
from bitdance.io.files import NoModelError
from bitdance.io.image_files import printable
from bitdance.io.image_grid import grid
from bitdance.io.outputs import check_file, check_folder, save_image
from bitdance.models.loading import model_folder
from bitdance.models.loading.hub import locate
from bitdance.pipelines.class_conditional import BitDance
from bitdance.pipelines.class_conditional_files import digest
from bitdance_kernels import __version__

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
CONFIG_HELP = (
    "for a file that does not say what it is: a preset such as B-16x, or a .json or .toml file "
    "with fields of the model's configuration"
)
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
_MOST_SIDE = {".webp": 16383, ".jpg": 65500, ".jpeg": 65500}  # as the formats have it
_MOST_PIXELS, _MOST_IMAGES = 2**28, 10_000_000


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit status."""
    name = "bitdance"

    def command() -> int:
        nonlocal name
        options = _parser().parse_args(arguments)
        name = f"bitdance {options.command}"
        if "device" in options:
            check_device(options.device)
        return options.run(options) or 0

    return run_command(lambda: name, command)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="bitdance",
        description="Generate images with BitDance models, whose tokens are bits.",
        epilog="`bitdance COMMAND --help` explains a command. "
        "`python -m bitdance_kernels` tells what this machine has.",
    )
    parser.add_argument("--version", action="version", version=f"bitdance {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    generate = commands.add_parser(
        "generate",
        help="generate images of classes",
        description="Generate images of one or more classes. Image i of a seed is the same "
        "whatever else is generated with it.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    _add_model(generate)
    generate.add_argument(
        "--class", dest="classes", nargs="+", required=True, metavar="CLASS",
        help="class names or numbers, or 'all'",
    )  # fmt: skip
    generate.add_argument("--n", type=positive, default=1, help="images per class")
    generate.add_argument("--seed", type=int, default=0, help="random seed, 0 to 2^64 - 1")
    generate.add_argument(
        "--steps", type=positive, help="denoising steps per patch (default: the model's own)"
    )
    generate.add_argument("--cfg", type=float, help="guidance scale (default: the model's own)")
    generate.add_argument(
        "--cfg-schedule", choices=("linear", "constant"), default="linear",
        help="guidance over the autoregressive steps",
    )  # fmt: skip
    generate.add_argument("--batch-size", type=positive, default=8, help="images at a time")
    generate.add_argument(
        "--out", type=Path, default=Path("out.png"),
        help="an image file for a grid, a row per class, or a folder for single images",
    )  # fmt: skip
    generate.add_argument("--zoom", type=positive, default=1, help="enlarge the pixels of a grid")
    generate.add_argument(
        "--bits", type=Path, help="also write the packed bits here: .npy, uint8 [n, tokens, C / 8]"
    )
    generate.add_argument("--quiet", action="store_true", help="no progress bar")
    generate.set_defaults(run=_generate)

    reconstruct.add_command(commands, _add_model, _load, positive)
    info = commands.add_parser(
        "info",
        help="what a checkpoint holds",
        description="Configuration, parameters and bits per image of a checkpoint. "
        "Without one: the environment.",
    )
    info.add_argument("model", nargs="?", help="folder, file or hub id")
    info.add_argument("--autoencoder", help="the autoencoder's own file")
    info.add_argument("--config", help=CONFIG_HELP)
    info.add_argument("--json", action="store_true", help="print JSON")
    info.set_defaults(run=_info)
    export = commands.add_parser(
        "export",
        help="write a checkpoint as safetensors and JSON",
        description="Write a model, checked and with its autoencoder, into a folder that --model "
        "takes: an official checkpoint without its pickle, or a trained model in half precision.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    _add_model(export)
    export.add_argument("--out", type=Path, required=True, help="folder to write")
    export.set_defaults(run=_export)
    add_commands(commands, positive)
    bench.add_command(commands, _add_model, _load, positive)
    make_strict(parser)
    return parser


def _add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model", default="fashion",
        help="a folder that save_pretrained wrote, an official .pt file, a hub id owner/name, or "
        "'fashion', the model of bitdance-models",
    )  # fmt: skip
    parser.add_argument("--autoencoder", help="the autoencoder's own file, where --model lacks it")
    parser.add_argument("--config", help=CONFIG_HELP)
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="of the parameters")


def _load(options: argparse.Namespace) -> BitDance:
    return BitDance.from_pretrained(
        options.model,
        tokenizer=options.autoencoder,
        config=options.config,
        dtype=DTYPES[options.dtype],
        device=options.device,
    )


def _generate(options: argparse.Namespace) -> None:
    sheet = options.out.suffix.lower() in IMAGE_SUFFIXES
    (check_file if sheet else check_folder)(options.out)
    if options.bits is not None:
        check_file(options.bits)
        if options.bits.resolve() == options.out.resolve():
            raise ValueError(f"--bits must be another file than --out, got {options.bits}")
    pipeline = _load(options)
    wanted = options.classes
    if wanted == ["all"]:
        wanted = range(pipeline.config.num_classes)
    columns = options.n if len(wanted) > 1 else math.ceil(math.sqrt(options.n))
    _check_count(options, pipeline, len(wanted) * options.n, columns if sheet else None)
    labels = [pipeline.label(name) for name in wanted for _ in range(options.n)]
    packed = pipeline.generate(
        labels,
        seed=options.seed,
        steps=options.steps,
        cfg_scale=options.cfg,
        cfg_schedule=options.cfg_schedule,
        batch_size=options.batch_size,
        output_type="latent",
        progress=not options.quiet,
    )
    if options.bits is not None:
        options.bits.parent.mkdir(parents=True, exist_ok=True)
        with weights.replace_file(options.bits) as temporary, temporary.open("wb") as file:
            np.save(file, packed.cpu().numpy())
    images = pipeline.decode(packed, batch_size=options.batch_size)
    if sheet:
        save_image(grid(images, columns, options.zoom), options.out)
        print(f"{len(images)} images, seed {options.seed}: {options.out}")
        return
    for i, (image, label) in enumerate(zip(images, labels, strict=True)):
        save_image(image, options.out / f"{i:05d}-class{label}.png")
    print(f"{len(images)} images, seed {options.seed}: {options.out}/")


def _check_count(
    options: argparse.Namespace, pipeline: BitDance, count: int, columns: int | None
) -> None:
    """Refuse what would be too much only after the work."""
    if count > _MOST_IMAGES:
        raise ValueError(
            f"--n must be such that there are at most {_MOST_IMAGES} images, got {count}"
        )
    if columns is not None:
        side = pipeline.config.resolution * options.zoom
        width, height = columns * side, math.ceil(count / columns) * side
        most = _MOST_SIDE.get(options.out.suffix.lower(), 65535)
        if max(width, height) > most or width * height > _MOST_PIXELS:
            raise ValueError(
                f"--out {printable(options.out)} would have {width} x {height} pixels; give a "
                "folder, or less --n or --zoom"
            )


def _export(options: argparse.Namespace) -> None:
    check_folder(options.out)
    model_folder.check_free(options.out)
    pipeline = _load(options)
    pipeline.save_pretrained(options.out)
    size = model_folder.open_folder(options.out).file.stat().st_size
    print(f"{size:,} bytes: {options.out}/")


def _info(options: argparse.Namespace) -> None:
    if options.model is None:
        from bitdance_kernels import env_report

        env_report.main(["--json"] if options.json else [])
        return
    path = locate(options.model)
    try:
        pipeline = BitDance.from_pretrained(
            path, tokenizer=options.autoencoder, config=options.config
        )
    except NoModelError:
        _tell_autoencoder(options, path)
        return
    model = pipeline.model
    counts = {name: sum(p.numel() for p in m.parameters()) for name, m in model.named_children()}
    counts = {name: count for name, count in counts.items() if count}
    config = pipeline.config
    report: dict[str, Any] = {
        "model": config.to_dict(),
        "parameters": {"all": sum(p.numel() for p in model.parameters()), **counts},
        "ar_steps": config.ar_steps,
        "tokens_per_image": config.tokens,
        "bits_per_image": config.tokens * config.token_bits,
        "sha256": digest(path),
    }
    if options.json:
        print(json.dumps(report, indent=2))
        return
    print(f"{options.model}")
    print(f"  parameters       {report['parameters']['all']:,}")
    for name, count in counts.items():
        print(f"    {name:<14} {count:,}")
    print(f"  one image        {config.tokens} tokens of {config.token_bits} bits")
    print(f"                   = {report['bits_per_image'] // 8:,} bytes packed")
    print(f"  AR steps         {config.ar_steps}, {config.tokens // config.ar_steps} tokens a step")
    print(f"  classes          {config.num_classes}")
    print(f"  SHA-256          {report['sha256']}")


def _tell_autoencoder(options: argparse.Namespace, path: Path) -> None:
    autoencoder = autoencoder_alone(path)
    config = autoencoder.config
    report: dict[str, Any] = {
        "autoencoder": config.to_dict(),
        "parameters": {"all": sum(p.numel() for p in autoencoder.parameters())},
        "sha256": weights.sha256(path) if path.is_file() else None,
    }
    if options.json:
        print(json.dumps(report, indent=2))
        return
    side = config.downsampling
    print(f"{printable(options.model)}: an autoencoder")
    print(f"  parameters       {report['parameters']['all']:,}")
    print(f"  a code           {config.z_channels} bits a code of {side} x {side} pixels")
    if path.is_file():
        print(f"  SHA-256          {report['sha256']}")
