"""Metrics of samples against real images, by the features of a network."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from bitdance.data.prefetch import Prefetcher
from bitdance.distributed import World
from bitdance.evaluation.distances import (
    InceptionScore,
    Moments,
    frechet_distance,
    kernel_distance,
    precision_and_recall,
)
from bitdance.evaluation.features import FeatureExtractor
from bitdance.evaluation.image_sources import ImageSource
from bitdance.io.files import write_text
from bitdance.io.progress import progress_bar
from bitdance.io.validation import exact_int

__all__ = ["Metrics", "compare", "write_metrics"]

_KEPT = 50_000  # images of a set whose features are compared one by one


@dataclass(frozen=True)
class Metrics:
    """Metrics of samples.

    Attributes:
        samples: number of samples.
        reference: number of reference images, 0 where only their statistics are known.
        features: name of the network and number of its features.
        frechet: Fréchet distance of the features (FID).
        kernel: kernel distance (KID), None without reference images; so are the next.
        kernel_std: its standard deviation over subsets.
        precision: share of samples near a reference image.
        recall: share of reference images near a sample.
        inception_score: inception score, None for a network without logits.
        inception_score_std: its standard deviation over ten parts.
    """

    samples: int
    reference: int
    features: str
    frechet: float
    kernel: float | None = None
    kernel_std: float | None = None
    precision: float | None = None
    recall: float | None = None
    inception_score: float | None = None
    inception_score_std: float | None = None

    def table(self) -> str:
        """A table in Markdown."""
        rows = {
            f"Fréchet distance ({self.features})": f"{self.frechet:.2f}",
            "kernel distance, x 1000": _spread(self.kernel, self.kernel_std, 1000),
            "precision": None if self.precision is None else f"{self.precision:.3f}",
            "recall": None if self.recall is None else f"{self.recall:.3f}",
            "inception score": _spread(self.inception_score, self.inception_score_std),
            "samples": f"{self.samples:,}",
            "reference images": f"{self.reference:,}" if self.reference else None,
        }
        lines = [f"| {name} | {value} |" for name, value in rows.items() if value is not None]
        return "\n".join(["| measure | value |", "|---|---|", *lines]) + "\n"


def _spread(value: float | None, deviation: float | None, scale: float = 1) -> str | None:
    if value is None or deviation is None:
        return None
    return f"{scale * value:.2f} ± {scale * deviation:.2f}"


def compare(
    samples: ImageSource,
    reference: ImageSource | None,
    extractor: FeatureExtractor,
    *,
    name: str = "features",
    statistics: Moments | None = None,
    batch_size: int = 64,
    device: torch.device | str = "cpu",
    world: World | None = None,
    progress: bool = True,
) -> Metrics:
    """Measure samples against a reference.

    Moments are accumulated in float64 by batches, which the processes take in turn. Precision,
    recall and kernel distance take at most 50,000 images of a set, evenly spaced.

    Args:
        samples: generated images.
        reference: real images; None where only their `statistics` are known.
        extractor: network that computes the features.
        name: its name, for the result.
        statistics: moments of the reference to use for the Fréchet distance instead of those of
            `reference`.
        batch_size: images at a time.
        device: device of the network.
        world: the processes, by default this one alone.
        progress: show progress bars, in the first process.

    Raises:
        ValueError: images have different sizes, there are fewer of them than features, or the
            statistics are of other features.
    """
    world = world or World()
    batch_size = exact_int("compare", "batch_size", batch_size, 1)
    if reference is None and statistics is None:
        raise ValueError("compare: reference must be images or statistics, got none")
    if reference is not None and samples.size != reference.size:
        raise ValueError(
            f"compare: samples and reference must have one size, got {samples.size} and "
            f"{reference.size}"
        )

    made = _Collected(samples, extractor, world, scored=True, needed=True)
    real = (
        None
        if reference is None
        else _Collected(reference, extractor, world, scored=False, needed=statistics is None)
    )
    for title, images in (("samples", made), ("reference", real)):
        if images is not None:
            images.read(batch_size, device, title, progress)
    size = made.features.shape[1]
    if statistics is not None and len(statistics.mean) != size:
        raise ValueError(
            f"compare: statistics must be of {size} features, got {len(statistics.mean)}"
        )
    kernel: tuple[float | None, float | None] = (None, None)
    near, moments = kernel, statistics
    if real is not None:
        kernel = kernel_distance(made.features, real.features, world)
        near = precision_and_recall(made.features, real.features, world)
        moments = statistics or real.moments
    assert moments is not None
    score = (None, None) if made.score is None else made.score.score(world)
    return Metrics(
        samples=len(samples), reference=0 if reference is None else len(reference),
        features=f"{name}, {size} features", frechet=frechet_distance(made.moments, moments),
        kernel=kernel[0], kernel_std=kernel[1], precision=near[0], recall=near[1],
        inception_score=score[0], inception_score_std=score[1],
    )  # fmt: skip


class _Collected:
    """Moments, features and inception score of a set of images.

    Args:
        source: the images.
        extractor: the network.
        world: the processes, which take batches in turn.
        scored: whether the inception score is wanted.
        needed: whether the moments are wanted, so that there must be enough images.
    """

    moments: Moments
    features: torch.Tensor  # of some images, equal in all processes
    score: InceptionScore | None = None

    def __init__(
        self, source: ImageSource, extractor: FeatureExtractor, world: World, *, scored: bool,
        needed: bool,
    ) -> None:  # fmt: skip
        self._source, self._extractor, self._world = source, extractor, world
        self._scored, self._needed = scored, needed
        count = len(source)
        some = torch.linspace(0, count - 1, min(count, _KEPT), dtype=torch.float64, device="cpu")
        self._kept = some.round().long()

    def read(self, batch_size: int, device: torch.device | str, title: str, progress: bool) -> None:
        """Compute the features of all images."""
        world, count = self._world, len(self._source)
        mine = range(0, count, batch_size)[world.rank :: world.size]
        starts = mine or range(1)  # one batch is read at least, to know the number of features

        def load(i: int) -> torch.Tensor:
            return self._source.read(starts[i], min(starts[i] + batch_size, count))

        hidden = not (progress and world.is_main)
        with Prefetcher(load, stop=len(starts)) as batches:
            bar = progress_bar(starts, desc=title, unit="batch", disable=hidden)
            for i, start in enumerate(bar):
                images = batches.get(i) if self._source.prefetch else load(i)
                x, logits = self._extractor(images.to(device))
                if i == 0:
                    self._begin(x, logits)
                if mine:
                    self._add(start, start + len(x), x, logits)
        self.moments = self.moments.reduce(world)
        self.features = world.reduce_sum(self.features)

    def _begin(self, x: torch.Tensor, logits: torch.Tensor | None) -> None:
        size, count = x.shape[1], len(self._source)
        if self._needed and count < size:
            raise ValueError(
                f"{self._source.name} must have at least as many images as there are features "
                f"({size:,}), got {count:,}: their covariance would not be that of all images"
            )
        self.moments = Moments(size)
        self.features = torch.zeros(len(self._kept), size, dtype=torch.float32, device=x.device)
        if logits is not None and self._scored:
            self.score = InceptionScore(count, logits.shape[1])

    def _add(self, start: int, stop: int, x: torch.Tensor, logits: torch.Tensor | None) -> None:
        self.moments.add(x)
        ends = torch.tensor([start, stop], dtype=torch.int64, device="cpu")
        first, last = torch.searchsorted(self._kept, ends).tolist()
        self.features[first:last] = x[self._kept[first:last] - start].float()
        if self.score is not None and logits is not None:
            self.score.add(torch.arange(start, stop, dtype=torch.int64, device="cpu"), logits)


def write_metrics(metrics: Metrics, folder: Path) -> None:
    """Write ``metrics.json`` and ``metrics.md``."""
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "metrics.json", json.dumps(asdict(metrics), indent=2) + "\n")
    write_text(folder / "metrics.md", metrics.table())
