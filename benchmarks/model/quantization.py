"""What float8 and int8 change in the bundled models.

Every way samples the same images, with the same noise, and is compared with float32. Bits of a step
are those that it gives after the patches that float32 has given, so that a difference is counted
once; bits of an image are those at its end. The Fréchet distances are those of
``bitdance evaluate``, in the features of one classifier for all ways. Times are of single images on
one thread, in turns. The distance of pixels is the root of the mean squared difference, of 255
levels.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bitdance import BitDancePipeline, BitDanceT2IPipeline
from bitdance.data.images import LabeledImages, iterate_batches, open_images, to_float
from bitdance.evaluation.classifier import Classifier, train_classifier
from bitdance.evaluation.distances import frechet_distance
from bitdance_kernels import unpack_signs
from bitdance_kernels.testing import cpu_threads

DATA = Path("/usr/share/datasets/fashion-mnist")  # Debian package dataset-fashion-mnist
PROMPTS = Path(__file__).parents[2] / "recipes" / "emoji" / "prompts.txt"
_BATCH = 250

Pipeline = BitDancePipeline | BitDanceT2IPipeline

WAYS: dict[str, dict[str, Any]] = {
    "float32": {},
    "bfloat16": {"dtype": "bfloat16"},
    "fp8_weight_only": {"quantization": "fp8_weight_only"},
    "fp8": {"quantization": "fp8"},
    "int8_weight_only": {"quantization": "int8_weight_only"},
}
"""Arguments of ``from_pretrained``, by the name of a way."""


def pipeline_of(way: str) -> BitDancePipeline:
    """The bundled model of classes."""
    pipeline = BitDancePipeline.from_pretrained("fashion", **WAYS[way])
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def text_pipeline_of(way: str) -> BitDanceT2IPipeline:
    """The bundled model of prompts."""
    pipeline = BitDanceT2IPipeline.from_pretrained("emoji", **WAYS[way])
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def labels_of(pipeline: BitDancePipeline, count: int) -> list[int]:
    """Classes of `count` images, each equally often."""
    return [i % pipeline.config.num_classes for i in range(count)]


def subjects_of(pipeline: Pipeline, count: int) -> list[int] | list[str]:
    """Classes or prompts of `count` images."""
    if isinstance(pipeline, BitDancePipeline):
        return labels_of(pipeline, count)
    prompts = PROMPTS.read_text(encoding="utf-8").splitlines()
    return [prompts[i % len(prompts)] for i in range(count)]


def tokens_of_steps(
    pipeline: Pipeline, count: int, forced: list[Tensor] | None = None
) -> list[Tensor]:
    """Tokens of each AR step, each step after those that are `forced` in place of them."""
    found: list[Tensor] = []

    def keep(_: object, step: int, __: int, given: dict[str, Tensor]) -> dict[str, Tensor]:
        found.append(given["latents"])
        return given if forced is None else {"latents": forced[step]}

    subjects: Any = subjects_of(pipeline, count)
    pipeline(subjects, seed=1, output_type="latent", callback_on_step_end=keep)
    return found


def equal_bits(pipeline: Pipeline, steps: list[Tensor], image: Tensor) -> dict[str, object]:
    """Shares of bits equal to those of `steps` and of the whole `image`."""
    count = len(image)
    forced = tokens_of_steps(pipeline, count, steps)
    shares = [
        float((a[:count].float() == b[:count].float()).double().mean())
        for a, b in zip(forced, steps, strict=True)
    ]
    free = unpack_signs(sampled(pipeline, count, seed=1)) == unpack_signs(image)
    return {
        "equal bits of a step": sum(shares) / len(shares),
        "equal bits of the step with fewest": min(shares),
        "equal bits of an image": float(free.double().mean()),
        "equal images": float(free.flatten(1).all(1).double().mean()),
    }


def sampled(pipeline: Pipeline, count: int, seed: int) -> Tensor:
    """Packed tokens of `count` images."""
    subjects: Any = subjects_of(pipeline, count)
    return pipeline(subjects, seed=seed, batch_size=_BATCH, output_type="latent").images


def judged(
    pipeline: BitDancePipeline, classifier: Classifier, real: Tensor, count: int, seed: int = 0
) -> dict[str, object]:
    """Fréchet distance of samples to the features `real`, and how many have their class."""
    packed = sampled(pipeline, count, seed)
    pixels = pipeline.decode(packed, seed=seed, batch_size=_BATCH, output_type="uint8")
    features = torch.cat([classifier.features(to_float(part)) for part in pixels.split(_BATCH)])
    hits = classifier.predict(features) == torch.tensor(labels_of(pipeline, count))
    return {
        "Fréchet distance": frechet_distance(features, real),
        "samples taken for their class": float(hits.double().mean()),
    }


def megabytes(pipeline: Pipeline) -> float:
    """Memory of the blocks of transformer and head, without the autoencoder."""
    tensors = [t for block in pipeline._blocks for t in block.state_dict().values()]
    return sum(t.nbytes for t in tensors) / 1e6


def relative_times(pipelines: Mapping[str, BitDancePipeline], rounds: int) -> dict[str, float]:
    """Processor time of an image, by way, as the median of its ratios to that of the first way."""
    times: dict[str, list[float]] = {way: [] for way in pipelines}
    with cpu_threads(1):
        for i in range(1 + rounds):  # in the first one graphs are captured
            for way, pipeline in pipelines.items():
                begin = time.process_time()
                pipeline([0], seed=i, output_type="latent")
                times[way].append(time.process_time() - begin)
    first, *_ = times.values()
    return {
        way: statistics.median(a / b for a, b in zip(taken[1:], first[1:], strict=True))
        for way, taken in times.items()
    }


def of_data(
    train: LabeledImages, test: LabeledImages, samples: int, epochs: int
) -> Mapping[str, dict[str, object]]:
    """Figures by way, and of float32 with other noise."""
    classes = len(test.classes)
    device = torch.device("cpu")
    classifier = train_classifier(
        train, classes, epochs=epochs, seed=0, device=device, progress=False
    )
    real = torch.cat([classifier.features(x) for x in iterate_batches(test, device)])
    ways = [way for way in WAYS if way != "bfloat16"]  # which differs less, and takes long here
    found = {way: judged(pipeline_of(way), classifier, real, samples) for way in ways}
    again = judged(pipeline_of("float32"), classifier, real, samples, seed=1)
    return {**found, "float32, another seed": again}


def measure(
    images: int = 50, samples: int = 500, epochs: int = 1, rounds: int = 20, data: Path = DATA
) -> dict[str, object]:
    """Figures by way.

    Args:
        images: images whose bits are compared.
        samples: images for a Fréchet distance.
        epochs: epochs of the classifier.
        rounds: images of each way whose times are compared.
        data: the data set of the bundled model.
    """
    original = pipeline_of("float32")
    steps, image = tokens_of_steps(original, images), sampled(original, images, seed=1)
    ways: dict[str, dict[str, object]] = {}
    pipelines = {way: pipeline_of(way) for way in WAYS}
    times = relative_times(pipelines, rounds)
    for way, pipeline in pipelines.items():
        of_way = {"MB of blocks": megabytes(pipeline), "time of an image": times[way]}
        ways[way] = {**of_way, **equal_bits(pipeline, steps, image)}
    train, test = (
        open_images(data, original.config.resolution, split=split, classes=original.classes)
        for split in ("train", "test")
    )
    for way, figures in of_data(train, test, samples, epochs).items():
        ways.setdefault(way, {}).update(figures)
    counts = {"images": images, "samples": samples, "epochs": epochs, "rounds": rounds}
    nothing: dict[str, object] = {"rows": [], "images": [], "limits": {}}  # what other results have
    return {**nothing, "quantization": {**counts, "ways": ways}}


def measure_emoji(images: int = 8) -> dict[str, object]:
    """Figures by way, of the bundled model of prompts.

    Args:
        images: images whose bits and pixels are compared.
    """
    original = text_pipeline_of("float32")
    steps, image = tokens_of_steps(original, images), sampled(original, images, seed=1)
    pixels = original.decode(image, seed=1, output_type="uint8").double()
    ways: dict[str, dict[str, object]] = {}
    for way in WAYS:
        pipeline = text_pipeline_of(way)
        found = original.decode(sampled(pipeline, images, seed=1), seed=1, output_type="uint8")
        distance = (found.double() - pixels).square().mean().sqrt()
        ways[way] = {
            "MB of blocks": megabytes(pipeline),
            **equal_bits(pipeline, steps, image),
            "distance of pixels": float(distance),
        }
    nothing: dict[str, object] = {"rows": [], "images": [], "limits": {}}  # what other results have
    return {**nothing, "quantization": {"images": images, "ways": ways}}
