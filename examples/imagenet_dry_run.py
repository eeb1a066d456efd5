"""All that a run on ImageNet does, at a size for two CPU cores: images to metrics.

``python examples/imagenet_dry_run.py --out runs/dry`` draws 2,000 pictures of ten classes, trains a
small autoencoder, encodes the middle and a random crop of each picture and their mirror images,
trains the B-16x recipe at reduced width on two processes, samples 512 images on one process and on
two, whose bits are equal, and measures them. Every step is the command that a full run takes, and
is printed.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from bitdance.cli.main import main as bitdance
from bitdance.data.images import open_images
from bitdance.data.packed_dataset import PackedDataset
from bitdance.evaluation.classifier import save_classifier, train_classifier

SIZE, CLASSES = 64, 10

AUTOENCODER = """
[data]
size = 64
min_crop = 0.8
flip = true
[autoencoder]  # one code of 32 bits for 8 x 8 pixels
ch = 32
ch_mult = [1, 1, 1, 1]
num_res_blocks = 1
[optim]
lr = 1e-3
warmup = 1
batch_size = 16
"""

RECIPE = Path(__file__).parent.parent / "recipes/imagenet/b-16x.toml"
REDUCED = """
num_inference_steps=10 data.size=64 data.crop_decay=[]
model.dim=64 model.n_layer=3 model.n_head=2 model.diff_layers=2 model.diff_dim=64
model.diff_adanln_layers=1 model.num_classes=10 model.cls_token_num=16
optim.batch_size=32 optim.warmup=1 optim.decay_start=1 optim.lr=1e-3 optim.ema_decay=0.99
optim.autocast=off optim.log_every=10 optim.save_every=100
"""


def draw(folder: Path, count: int) -> None:
    """Write pictures of discs on stripes, whose number, hue and direction are those of a class."""
    draws = np.random.default_rng(0)
    for i in range(count):
        label = i % CLASSES
        width, height = (int(side) for side in draws.integers(72, 120, 2))
        y, x = np.mgrid[:height, :width]
        angle = np.pi * label / CLASSES + draws.normal(0, 0.05)
        wave = np.sin((x * np.cos(angle) + y * np.sin(angle)) / 4 + draws.uniform(0, 6))
        hue = np.array([np.sin(label), np.sin(label + 2), np.sin(label + 4)])
        pixels = 128 + 50 * wave[..., None] * hue + draws.normal(0, 6, (height, width, 3))
        image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
        pen = ImageDraw.Draw(image)
        for _ in range(1 + label % 3):
            left, top = (draws.uniform(0, side - 30) for side in (width, height))
            color = tuple(int(v) for v in 128 - 100 * hue)
            pen.ellipse((left, top, left + 25, top + 25), fill=color)
        place = folder / f"class{label}" / f"{i:05d}.jpg"
        place.parent.mkdir(parents=True, exist_ok=True)
        image.save(place, quality=90)


def run(*arguments: object, processes: int = 1) -> None:
    """Run a command of the library in this process, or in several."""
    words = [str(argument) for argument in arguments]
    command = f"torchrun --nproc-per-node {processes} -m bitdance.cli" if processes > 1 else ""
    print("\n$", command or "bitdance", *words, flush=True)
    if processes == 1:
        status = bitdance(words)
    else:  # what torchrun does, without the start of Python in each process
        config = LaunchConfig(
            1, 1, processes, run_id="dry-run", rdzv_backend="c10d", rdzv_endpoint="localhost:0",
            start_method="forkserver", monitor_interval=0.05,
        )  # fmt: skip
        status = max(elastic_launch(config, bitdance)(words).values())
    if status:
        sys.exit(status)


def main() -> None:
    """Pictures, autoencoder, codes, model, samples, metrics."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/imagenet-dry-run"))
    parser.add_argument("--images", type=int, default=2000, help="pictures to draw")
    parser.add_argument("--samples", type=int, default=512, help="images to generate")
    parser.add_argument("--steps", type=int, default=300, help="steps of each training")
    options = parser.parse_args()
    multiprocessing.set_forkserver_preload(["bitdance.cli.main", "torch._dynamo"])
    out: Path = options.out
    out.mkdir(parents=True, exist_ok=True)
    pictures, steps = out / "pictures", f"optim.steps={options.steps}"
    if not pictures.exists():
        draw(pictures, options.images)
    (out / "autoencoder.toml").write_text(AUTOENCODER)

    run(
        "train", "autoencoder", out / "autoencoder.toml", "--data", pictures, "--set", steps,
        "--out", out / "autoencoder", "--quiet",
    )  # fmt: skip
    if not (out / "codes").exists():
        run(
            "tokenize", pictures, "--autoencoder", out / "autoencoder", "--size", SIZE,
            "--crops", 1, "--flips", "--out", out / "codes", "--quiet",
        )  # fmt: skip
    run(
        "train", "model", RECIPE, "--data", out / "codes", "--autoencoder", out / "autoencoder",
        "--set", steps, *REDUCED.split(), "--out", out / "model", "--quiet", processes=2,
    )  # fmt: skip

    model = out / "model" / "model"
    for processes in (1, 2):
        run(
            "sample", "--model", model, "--num-per-class", -(-options.samples // CLASSES),
            "--batch-size", 32, "--seed", 99, "--format", "packed", "--quiet",
            "--out", out / f"samples-{processes}", processes=processes,
        )  # fmt: skip
    sets = [PackedDataset(out / f"samples-{processes}" / "codes") for processes in (1, 2)]
    one, two = (data.take(range(len(data)))[0] for data in sets)
    equal = (one == two).flatten(1).all(1)
    print(f"{int(equal.sum())} of {len(equal)} images have equal bits on one process and on two")

    # InceptionV3 takes the place of this classifier where its weights are at hand.
    judge = out / "classifier.safetensors"
    if not judge.exists():
        images = open_images(pictures, SIZE)
        save_classifier(
            train_classifier(
                images, CLASSES, epochs=2, seed=0, device=torch.device("cpu"), progress=False
            ),
            judge,
        )  # fmt: skip
    run(
        "metrics", out / "samples-2", "--model", model, "--reference", pictures, "--features",
        "classifier", "--weights", judge, "--out", out / "metrics", "--quiet",
    )  # fmt: skip


if __name__ == "__main__":
    main()
