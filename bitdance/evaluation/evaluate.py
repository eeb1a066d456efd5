"""Evaluation of a model on a data set: reconstruction, samples, and how bits are used."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from bitdance.data.images import LabeledImages, iterate_batches, to_float
from bitdance.evaluation.classifier import Classifier, save_classifier, train_classifier
from bitdance.evaluation.distances import frechet_distance
from bitdance.evaluation.metrics import bit_usage, psnr
from bitdance.evaluation.reconstruction import reconstruct_images
from bitdance.io.files import write_text
from bitdance.io.image_grid import grid, to_images
from bitdance.io.outputs import save_image
from bitdance.models.autoencoder.quantizer import pack_latents
from bitdance.pipelines.class_conditional import BitDancePipeline
from bitdance_kernels import unpack_signs

__all__ = ["Evaluation", "evaluate", "write"]

_BATCH_SIZE = 250
_COLUMNS = 16


@dataclass(frozen=True)
class Evaluation:
    """Figures of a model on a data set.

    Attributes:
        psnr_db: PSNR of reconstructed test images, from the squared error pooled over all pixels
            without padding.
        test_images: number of test images.
        samples: number of generated images, the same for each class.
        classifier_accuracy: accuracy of the classifier on test images.
        sample_accuracy: share of samples that it assigns to their class.
        sample_accuracy_by_class: the same for each class.
        frechet: Fréchet distance of samples and test images in the classifier's features.
        frechet_real: Fréchet distance of as many training images and the test images.
        bits_real: share of ones in each channel of the codes of test images.
        bits_samples: share of ones in each channel of the codes of samples.
        split: part of the data set that takes the place of the test images.
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
        """A table in Markdown."""
        part = {"train": "training"}.get(self.split, self.split)
        rows = {
            f"reconstruction of {self.test_images:,} {part} images": f"{self.psnr_db:.2f} dB",
            f"accuracy of the classifier on real {part} images": f"{self.classifier_accuracy:.1%}",
            f"{self.samples:,} samples taken for their class": f"{self.sample_accuracy:.1%}",
            f"Fréchet distance, samples to {part} images": f"{self.frechet:.2f}",
            f"Fréchet distance, as many training images to {part} images": (
                f"{self.frechet_real:.2f}"
            ),
            f"share of ones in a channel, {part} images": _span(self.bits_real),
            "share of ones in a channel, samples": _span(self.bits_samples),
        }
        rows |= {f"samples of {k}": f"{v:.1%}" for k, v in self.sample_accuracy_by_class.items()}
        lines = [f"| {name} | {value} |" for name, value in rows.items()]
        return "\n".join(["| measure | value |", "|---|---|", *lines]) + "\n"


def _span(shares: list[float]) -> str:
    return f"{min(shares):.1%} to {max(shares):.1%}"


def evaluate(
    pipeline: BitDancePipeline,
    train: LabeledImages,
    test: LabeledImages,
    *,
    samples: int = 1000,
    seed: int = 0,
    num_inference_steps: int | None = None,
    guidance_scale: float | None = None,
    epochs: int = 4,
    progress: bool = True,
) -> tuple[Evaluation, Image.Image, Classifier]:
    """Evaluate a model on the data set that it was trained for.

    A small convolutional classifier is trained on `train`; the Fréchet distances are taken in its
    last hidden layer.

    Args:
        pipeline: the model; its classes are those of the data, in the same order.
        train: training images, of the model's resolution.
        test: test images.
        samples: images to generate; a multiple of the number of classes.
        seed: seed of samples and classifier.
        num_inference_steps: denoising steps, by default the model's.
        guidance_scale: guidance, by default the model's.
        epochs: epochs that the classifier is trained for.
        progress: show progress bars.

    Returns:
        The figures; an image, test images above their reconstructions, then samples with a row per
        class; and the classifier.

    Raises:
        ValueError: `samples` is not a multiple of the number of classes, or the classes differ.
    """
    count = pipeline.config.num_classes
    if len(test.classes) != count or samples < count or samples % count:
        raise ValueError(
            f"evaluate: samples must be a multiple of the model's {count} classes, which the data "
            f"must have too; got {samples} and {len(test.classes)} classes"
        )
    device = pipeline.device
    error, codes, examples = reconstruct_images(pipeline.model.vae, test, progress=progress)
    classifier = train_classifier(
        train, count, epochs=epochs, seed=seed, device=device, progress=progress
    )
    real = torch.cat([classifier.features(x) for x in iterate_batches(test, device)])

    labels = np.repeat(np.arange(count), samples // count)
    with pipeline.progress_bar_config(disable=not progress):
        packed = pipeline(
            labels.tolist(), num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale, seed=seed,
            batch_size=_BATCH_SIZE, output_type="latent",
        ).images  # fmt: skip
    pixels = pipeline.decode(packed, seed=seed, batch_size=_BATCH_SIZE, output_type="uint8")
    generated = torch.cat(
        [classifier.features(to_float(part).to(device)) for part in pixels.split(_BATCH_SIZE)]
    )
    hits = classifier.predict(generated).numpy() == labels
    items = np.random.default_rng(seed).permutation(len(train))[:samples]
    training = torch.cat([classifier.features(x) for x in iterate_batches(train, device, items)])
    tokens = unpack_signs(packed)[..., : pipeline.config.token_bits]
    sampled_codes = pack_latents(
        pipeline.model.to_latents(tokens)
    )  # a token may hold several cells
    names = [name or str(i) for i, name in enumerate(pipeline.classes)]
    channels = pipeline.config.latent_dim
    evaluation = Evaluation(
        psnr_db=psnr(error, peak=2),
        test_images=len(test),
        samples=samples,
        classifier_accuracy=float((classifier.predict(real).numpy() == test.labels).mean()),
        sample_accuracy=float(hits.mean()),
        sample_accuracy_by_class={n: float(hits[labels == i].mean()) for i, n in enumerate(names)},
        frechet=frechet_distance(generated, real),
        frechet_real=frechet_distance(training, real),
        bits_real=bit_usage(codes)[:channels],
        bits_samples=bit_usage(sampled_codes)[:channels],
    )
    shown = pixels.view(count, samples // count, *pixels.shape[1:])[:, :_COLUMNS]
    rows = torch.cat([examples, shown.flatten(0, 1)])
    return evaluation, grid(to_images(rows), shown.shape[1]), classifier


def write(evaluation: Evaluation, image: Image.Image, classifier: Classifier, folder: Path) -> None:
    """Write ``evaluation.json``, ``.md`` and ``.png``, and ``classifier.safetensors``."""
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "evaluation.json", json.dumps(asdict(evaluation), indent=2) + "\n")
    write_text(folder / "evaluation.md", evaluation.table())
    save_image(image, folder / "evaluation.png")
    save_classifier(classifier, folder / "classifier.safetensors")
