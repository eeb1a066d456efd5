"""The commands around training: ``bitdance train | tokenize | evaluate``."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from tqdm.auto import tqdm

from bitdance.cli.reconstruct import add_image_options
from bitdance.data.idx import is_idx
from bitdance.data.image_folders import class_names
from bitdance.data.images import OnError, open_images, to_float
from bitdance.data.packed_dataset import PackedWriter
from bitdance.evaluation import evaluate
from bitdance.io.image_files import printable
from bitdance.io.outputs import check_folder
from bitdance.pipelines.class_conditional import BitDance
from bitdance.training.autoencoder import AutoencoderTask, load_autoencoder
from bitdance.training.class_conditional import ClassConditionalTask
from bitdance.training.config import read_config
from bitdance.training.run_folder import check_single_process
from bitdance.training.trainer import Task, Trainer

_BATCH = 256


def add_commands(commands: Any, positive: Callable[[str], int]) -> None:
    """Add the parsers of these commands."""
    train = commands.add_parser(
        "train",
        help="train an autoencoder or a model",
        description="Train an autoencoder, or a model on its codes. A run that was stopped resumes "
        "when the same command is given again.",
    )
    kinds = train.add_subparsers(dest="kind", required=True, metavar="KIND")
    for kind, text in {
        "autoencoder": "the autoencoder that turns images into bits",
        "model": "the transformer and its diffusion head, on a trained autoencoder's bits",
    }.items():
        parser = kinds.add_parser(kind, help=text, description=f"Train {text}.")
        parser.add_argument("config", type=Path, metavar="CONFIG", help="a TOML file")
        parser.add_argument("--out", type=Path, required=True, help="folder of the run")
        parser.add_argument("--data", help="instead of data.path of the file")
        if kind == "model":
            parser.add_argument("--autoencoder", help="instead of autoencoder_path of the file")
        parser.add_argument(
            "--set", dest="changes", nargs="+", action="extend", default=[],
            metavar="SECTION.KEY=VALUE",
            help="change values of the file, e.g. optim.batch_size=32",
        )  # fmt: skip
        parser.add_argument("--init", help="checkpoint whose weights the run begins with")
        parser.add_argument("--stop-at", type=positive, help="stop after this step, resumable")
        parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N")
        parser.add_argument("--quiet", action="store_true", help="no progress bar")
        parser.set_defaults(run=_train)

    tokenize = commands.add_parser(
        "tokenize",
        help="encode a data set into packed bits, once",
        description="Encode a data set into checksummed shards of packed bits, which training "
        "reads instead of the images.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    tokenize.add_argument("data", type=Path, metavar="DATA", help="folder of images or IDX files")
    tokenize.add_argument("--autoencoder", required=True, help="folder of its training")
    tokenize.add_argument("--size", type=positive, required=True, help="pixels a side")
    tokenize.add_argument("--split", choices=("train", "test"), default="train", help="which part")
    tokenize.add_argument(
        "--classes", nargs="+", default=[],
        help="names for IDX files; of image files, the class folders to take and their order",
    )  # fmt: skip
    add_image_options(tokenize, get_args(OnError))
    tokenize.add_argument("--out", type=Path, required=True, help="folder to write")
    tokenize.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N")
    tokenize.add_argument("--quiet", action="store_true", help="no progress bar")
    tokenize.set_defaults(run=_tokenize)

    judge = commands.add_parser(
        "evaluate",
        help="how good a model is on its data set",
        description="Reconstruction error, share of samples that a classifier recognises, Fréchet "
        "distance in its features, and how evenly bits are used.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    judge.add_argument("data", type=Path, metavar="DATA", help="folder of images or IDX files")
    judge.add_argument("--model", default="fashion", help="as for generate")
    judge.add_argument("--config", help="as for generate")
    judge.add_argument(
        "--split", choices=("test", "train"), default="test",
        help="part whose images are reconstructed and compared with samples",
    )  # fmt: skip
    add_image_options(judge, get_args(OnError))
    judge.add_argument("--samples", type=positive, default=1000, help="images to generate")
    judge.add_argument("--seed", type=int, default=0, help="random seed")
    judge.add_argument("--steps", type=positive, help="denoising steps (default: the model's own)")
    judge.add_argument("--cfg", type=float, help="guidance scale (default: the model's own)")
    judge.add_argument("--out", type=Path, default=Path("out"), help="folder to write")
    judge.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N")
    judge.add_argument("--quiet", action="store_true", help="no progress bars")
    judge.set_defaults(run=_evaluate)


def _train(options: argparse.Namespace) -> int:
    check_single_process()
    given = {
        "data.path": options.data,
        "init": options.init,
        "autoencoder_path": options.autoencoder if options.kind == "model" else None,
    }
    values = {name: value for name, value in given.items() if value is not None}
    config = read_config(options.config, options.changes, values)
    if (config.model is None) == (options.kind == "model"):
        raise ValueError(f"{options.config} has no section [{options.kind}]")
    task: Task
    if options.kind == "model":
        task = ClassConditionalTask(config, device=options.device)
    else:
        task = AutoencoderTask(config, device=options.device)
    trainer = Trainer(
        task, config, options.out, device=options.device, progress=not options.quiet
    )  # fmt: skip
    if trainer.step and not options.quiet:
        print(f"resuming {options.out} after step {trainer.step}", file=sys.stderr)
    stopped = trainer.run(options.stop_at)
    if stopped:
        print(f"stopped after step {trainer.step}: {options.out}", file=sys.stderr)
        return 128 + stopped
    print(f"step {trainer.step} of {config.optim.steps}: {options.out}")
    return 0


def _tokenize(options: argparse.Namespace) -> None:
    autoencoder = load_autoencoder(options.autoencoder).to(options.device)
    config = autoencoder.config
    if options.size % config.downsampling:
        raise ValueError(
            f"--size must be a multiple of the autoencoder's {config.downsampling}, got "
            f"{options.size}"
        )
    images = open_images(
        options.data, options.size, split=options.split, classes=options.classes,
        background=options.background, on_error=options.on_error,
    )  # fmt: skip
    metadata = {"classes": list(images.classes), "size": options.size}
    count = len(images)
    cells = (options.size // config.downsampling) ** 2
    writer = PackedWriter(options.out, tokens=cells, channels=config.z_channels, metadata=metadata)
    with writer, tqdm(total=count, disable=options.quiet, unit="image") as bar:
        for items in np.array_split(np.arange(count), -(-count // _BATCH)):
            with torch.no_grad():
                x = to_float(images.take(items)).to(options.device)
                packed = autoencoder.encode(x, packed=True).flatten(1, 2).cpu()
            writer.write(packed, images.labels[items])
            bar.update(len(items))
    print(f"{count} images of {cells} codes of {config.z_channels} bits: {options.out}")


def _evaluate(options: argparse.Namespace) -> None:
    check_folder(options.out)
    pipeline = BitDance.from_pretrained(options.model, config=options.config, device=options.device)
    size, classes = pipeline.config.resolution, _classes_of(options.data, pipeline)
    parts = {
        split: open_images(
            options.data, size, split=split, classes=classes, background=options.background,
            on_error=options.on_error,
        )
        for split in sorted({"train", options.split})
    }  # fmt: skip
    found, picture = evaluate.evaluate(
        pipeline, parts["train"], parts[options.split], samples=options.samples,
        seed=options.seed, steps=options.steps, cfg_scale=options.cfg, progress=not options.quiet,
    )  # fmt: skip
    found = dataclasses.replace(found, split=options.split)
    evaluate.write(found, picture, options.out)
    print(found.table(), end="")
    print(f"{options.out}/evaluation.json, .md, .png")


def _classes_of(data: Path, pipeline: BitDance) -> tuple[str, ...]:
    """The model's classes as the data name them, in the model's order."""
    names = pipeline.classes if all(pipeline.classes) else ()
    if is_idx(data) or not data.is_dir():
        return names
    folders = class_names(data)
    if set(names) & set(folders):
        return names
    if names and folders:
        print(
            f"bitdance evaluate: {printable(data)} does not have the model's names of classes: "
            f"{folders[0]!r} is taken for {names[0]!r}, and so on in alphabetic order",
            file=sys.stderr,
        )
    return ()
