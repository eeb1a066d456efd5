"""How good a model is on a data set: reconstruction, recognised samples, distance, used bits."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn
from tqdm.auto import tqdm

from bitdance.data.images import LabelledImages, to_float
from bitdance.data.shuffle import ShuffledBatches
from bitdance.io import weights
from bitdance.io.image_grid import grid
from bitdance.models.autoencoder.autoencoder import BinaryAutoencoder
from bitdance.models.autoencoder.quantizer import pack_codes
from bitdance.pipelines.class_conditional import BitDance
from bitdance_kernels import bit_counts, unpack_signs

__all__ = ["Evaluation", "evaluate", "frechet_distance", "write"]

_BATCH = 250


@dataclass(frozen=True)
class Evaluation:
    """What ``evaluate`` finds.

    Attributes:
        psnr_db: of reconstructed test images, the squared error pooled over all pixels (without
            padding), range 2.
        test_images: how many.
        samples: generated, as many of each class.
        classifier_accuracy: of the classifier on real test images.
        sample_accuracy: share of samples that it takes for their class.
        sample_accuracy_by_class: the same, a number a class.
        frechet: distance of the samples to the real test images in the classifier's features.
        frechet_real: of as many real training images to them.
        bits_real: share of ones in each channel of the codes of test images.
        bits_samples: in those of the samples.
        split: part of the data set that "test images" are of.
    """

    psnr_db: float
    test_images: int
    samples: int
    classifier_accuracy: float
    sample_accuracy: float
    sample_accuracy_by_class: dict[str, float]
    frechet: float
    frechet_real: float
    bits_real: list[float]
    bits_samples: list[float]
    split: str = "test"

    def table(self) -> str:
        """Markdown."""
        of = {"train": "training"}.get(self.split, self.split)
        rows = {
            f"reconstruction of {self.test_images:,} {of} images": f"{self.psnr_db:.2f} dB",
            f"accuracy of the classifier on real {of} images": f"{self.classifier_accuracy:.1%}",
            f"{self.samples:,} samples taken for their class": f"{self.sample_accuracy:.1%}",
            f"Fréchet distance, samples to {of} images": f"{self.frechet:.2f}",
            f"Fréchet distance, as many training images to {of} images": f"{self.frechet_real:.2f}",
            f"share of ones in a channel, {of} images": _span(self.bits_real),
            "share of ones in a channel, samples": _span(self.bits_samples),
        }
        rows |= {f"samples of {k}": f"{v:.1%}" for k, v in self.sample_accuracy_by_class.items()}
        lines = [f"| {name} | {value} |" for name, value in rows.items()]
        return "\n".join(["| measure | value |", "|---|---|", *lines]) + "\n"


def _span(shares: list[float]) -> str:
    return f"{min(shares):.1%} to {max(shares):.1%}"


def evaluate(
    pipeline: BitDance,
    train: LabelledImages,
    test: LabelledImages,
    *,
    samples: int = 1000,
    seed: int = 0,
    steps: int | None = None,
    cfg_scale: float | None = None,
    epochs: int = 4,
    progress: bool = True,
) -> tuple[Evaluation, Image.Image]:
    """Evaluate a model against the data that it was trained for.

    A small convolutional classifier is trained on `train`; its last hidden layer gives the features
    of the Fréchet distances.

    Args:
        pipeline: the model; its classes are those of the data, in the same order.
        train: real images, of the model's resolution.
        test: others.
        samples: to generate; a multiple of the number of classes.
        seed: of samples and classifier.
        steps: denoising steps, by default the model's.
        cfg_scale: guidance, by default the model's.
        epochs: of the classifier.
        progress: show progress bars.

    Returns:
        The figures, and a picture: test images over their reconstructions, then samples, a class a
        row.

    Raises:
        ValueError: `samples` is no multiple of the number of classes, or the classes differ.
    """
    count = pipeline.config.num_classes
    if len(test.classes) != count or samples < count or samples % count:
        raise ValueError(
            f"evaluate: samples must be a multiple of the model's {count} classes, which the data "
            f"must have too; got {samples} and {len(test.classes)} classes"
        )
    device = pipeline.device
    autoencoder = pipeline.model.vae
    error, codes_real, shown = _reconstruct(autoencoder, test, device, progress)
    classifier = _train_classifier(train, count, epochs, seed, device, progress)
    real = torch.cat([classifier.features(x) for x in _batches(test, device)])
    right = classifier.last(real).argmax(1).cpu().numpy() == test.labels

    labels = np.repeat(np.arange(count), samples // count)
    packed = pipeline.generate(
        labels.tolist(), seed=seed, steps=steps, cfg_scale=cfg_scale, batch_size=_BATCH,
        output_type="latent", progress=progress,
    )  # fmt: skip
    pixels = pipeline.decode(packed, batch_size=_BATCH, output_type="pt")
    made = torch.cat([classifier.features(to_float(p).to(device)) for p in pixels.split(_BATCH)])
    hits = classifier.last(made).argmax(1).cpu().numpy() == labels
    some = np.random.default_rng(seed).permutation(len(train))[:samples]
    other = torch.cat(
        [
            classifier.features(to_float(train.take(part)).to(device))
            for part in np.array_split(some, -(-samples // _BATCH))
        ]
    )
    names = [name or str(i) for i, name in enumerate(pipeline.classes)]
    tokens = unpack_signs(packed)[..., : pipeline.config.token_bits]
    codes_made = pack_codes(pipeline.model.to_codes(tokens))  # a token holds several cells
    channels = pipeline.config.latent_dim
    found = Evaluation(
        psnr_db=10 * math.log10(4 / error),
        test_images=len(test),
        samples=samples,
        classifier_accuracy=float(right.mean()),
        sample_accuracy=float(hits.mean()),
        sample_accuracy_by_class={n: float(hits[labels == i].mean()) for i, n in enumerate(names)},
        frechet=frechet_distance(made, real),
        frechet_real=frechet_distance(other, real),
        bits_real=_usage(codes_real)[:channels],
        bits_samples=_usage(codes_made)[:channels],
    )
    columns = 16
    each = pixels.view(count, samples // count, *pixels.shape[1:])[:, :columns]
    rows = torch.cat([*shown, each.flatten(0, 1)]).permute(0, 2, 3, 1).contiguous().numpy()
    return found, grid([Image.fromarray(row) for row in rows], each.shape[1])


def write(found: Evaluation, picture: Image.Image, folder: Path) -> None:
    """Write ``evaluation.json``, ``evaluation.md`` and ``evaluation.png``."""
    folder.mkdir(parents=True, exist_ok=True)
    weights.write_text(folder / "evaluation.json", json.dumps(asdict(found), indent=2) + "\n")
    weights.write_text(folder / "evaluation.md", found.table())
    with weights.replace_file(folder / "evaluation.png") as temporary:
        picture.save(temporary, format="PNG")


def frechet_distance(a: torch.Tensor, b: torch.Tensor) -> float:
    """Fréchet distance of two Gaussians fitted to features.

    |m_a - m_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2)), Heusel et al. 2017, without their network.

    Args:
        a: [N, D] features, N at least 2.
        b: [M, D] features.
    """
    a, b = a.double().cpu(), b.double().cpu()
    cov_a, cov_b = (torch.atleast_2d(torch.cov(x.T)) for x in (a, b))
    values, vectors = torch.linalg.eigh(cov_a)
    root = vectors * values.clamp_min(0).sqrt() @ vectors.T
    cross = torch.linalg.eigvalsh(root @ cov_b @ root).clamp_min(0).sqrt().sum()
    means = (a.mean(0) - b.mean(0)).square().sum()
    return float(means + cov_a.trace() + cov_b.trace() - 2 * cross)


class _Classifier(nn.Module):
    """Three convolutions and a hidden layer, whose 128 values are the features."""

    def __init__(self, classes: int, **factory: Any) -> None:
        super().__init__()
        widths = (3, 32, 64, 128)
        self.body = nn.Sequential(
            *(
                layer
                for a, b in itertools.pairwise(widths)
                for layer in (
                    nn.Conv2d(a, b, 3, padding=1, **factory), nn.BatchNorm2d(b, **factory),
                    nn.ReLU(), nn.MaxPool2d(2),
                )
            ),
            nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Dropout(0.3),
            nn.Linear(16 * widths[-1], 128, **factory), nn.ReLU(),
        )  # fmt: skip
        self.last = nn.Linear(128, classes, **factory)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.body(x))

    @torch.no_grad()
    def features(self, x: torch.Tensor) -> torch.Tensor:
        """[B, 128] in evaluation mode."""
        return self.body(x)


def _train_classifier(
    images: LabelledImages, classes: int, epochs: int, seed: int, device: torch.device,
    progress: bool,
) -> _Classifier:  # fmt: skip
    torch.manual_seed(seed)
    model = _Classifier(classes, dtype=torch.float32, device="cpu").to(device).train()
    batches = ShuffledBatches(len(images), min(128, len(images)), seed=seed)
    steps = epochs * batches.per_epoch
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=4e-3, total_steps=steps)
    for step in tqdm(range(steps), desc="classifier", disable=not progress):
        items = batches.batch(step)
        x = to_float(images.take(items)).to(device)
        labels = torch.from_numpy(images.labels[items]).to(device)
        optimizer.zero_grad()
        F.cross_entropy(model(x), labels, label_smoothing=0.05).backward()
        with torch.device(device):  # where AdamW then counts its steps
            optimizer.step()
        schedule.step()
    return model.eval()


def _batches(images: LabelledImages, device: torch.device) -> Iterator[torch.Tensor]:
    for part in np.array_split(np.arange(len(images)), -(-len(images) // _BATCH)):
        yield to_float(images.take(part)).to(device)


@torch.no_grad()
def _reconstruct(
    autoencoder: BinaryAutoencoder, images: LabelledImages, device: torch.device, progress: bool
) -> tuple[float, torch.Tensor, list[torch.Tensor]]:
    """Mean squared error without padding, packed codes, and some images with their copies."""
    height, width = getattr(images, "source", (0, 0))
    total, pixels, codes = 0.0, 0, []
    shown: list[torch.Tensor] = []
    parts = tqdm(
        _batches(images, device), total=-(-len(images) // _BATCH), desc="reconstruct",
        disable=not progress,
    )  # fmt: skip
    for x in parts:
        code = autoencoder.encode(x, packed=True)
        y = autoencoder.decode(code).clamp(-1, 1)
        codes.append(code.cpu())
        if not shown:
            shown = [((v[:16] + 1) * 127.5).round().to(torch.uint8).cpu() for v in (x, y)]
        top = (x.shape[2] - height) // 2 if height else 0
        left = (x.shape[3] - width) // 2 if width else 0
        inner = (..., slice(top, x.shape[2] - top), slice(left, x.shape[3] - left))
        error = (x - y)[inner].double().square()
        total, pixels = total + float(error.sum()), pixels + error.numel()
    return total / pixels, torch.cat(codes), shown


def _usage(packed: torch.Tensor) -> list[float]:
    """Share of ones in each channel."""
    counts = bit_counts(packed.flatten(0, -2))
    return (counts.double() / (packed.numel() // packed.shape[-1])).tolist()
