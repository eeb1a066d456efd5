"""Distances of two sets of images in the features of a network, a block of features at a time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from bitdance.distributed import World

__all__ = [
    "InceptionScore",
    "Moments",
    "frechet_distance",
    "kernel_distance",
    "precision_and_recall",
]

_ROWS = 1024  # features that are compared with all others at a time
_SUBSETS, _SUBSET_SIZE = 100, 1000
_SPLITS = 10
_SEED = 2020  # of torch-fidelity, whose subsets and splits these are


class Moments:
    """Mean and covariance of features, accumulated in float64.

    Args:
        size: D, values of a feature.

    Attributes:
        count: N, number of features.
        mean: float64 [D].
    """

    def __init__(self, size: int) -> None:
        self.count = 0
        self.mean = torch.zeros(size, dtype=torch.float64, device="cpu")
        self._scatter = torch.zeros(size, size, dtype=torch.float64, device="cpu")

    @classmethod
    def of(cls, features: torch.Tensor) -> Moments:
        """Moments of features [N, D]."""
        moments = cls(features.shape[1])
        for block in features.split(_ROWS):
            moments.add(block)
        return moments

    @classmethod
    def from_covariance(
        cls, mean: torch.Tensor, covariance: torch.Tensor, count: int = 2
    ) -> Moments:
        """Moments of a known mean and covariance."""
        moments = cls(len(mean))
        moments.count, moments.mean = count, mean.double()
        moments._scatter = covariance.double() * (count - 1)
        return moments

    def add(self, features: torch.Tensor) -> None:
        """Add features [n, D]."""
        if not len(features):
            return
        x = features.double()
        mean = x.mean(0)
        x = x - mean
        other = Moments(len(mean))
        # The product stays on the features' device.
        other.count, other.mean, other._scatter = len(x), mean.cpu(), (x.T @ x).cpu()
        self._merge(other)

    def _merge(self, other: Moments) -> None:
        count = self.count + other.count
        shift = other.mean - self.mean
        self._scatter += other._scatter
        self._scatter += torch.outer(shift, shift) * (self.count * other.count / count)
        self.mean = self.mean + shift * (other.count / count)
        self.count = count

    def reduce(self, world: World) -> Moments:
        """Moments of the features of all processes, equal in all."""
        if world.size == 1:
            return self
        count = torch.tensor(self.count, dtype=torch.float64, device="cpu")
        total = world.reduce_sum(count)
        mean = world.reduce_sum(self.mean * count) / total
        shift = self.mean - mean
        scatter = world.reduce_sum(self._scatter + torch.outer(shift, shift) * count)
        return Moments.from_covariance(mean, scatter / (total - 1), int(total))

    @property
    def covariance(self) -> torch.Tensor:
        """Covariance, float64 [D, D], with N - 1 in the denominator."""
        return self._scatter / (self.count - 1)


def frechet_distance(a: Moments | torch.Tensor, b: Moments | torch.Tensor) -> float:
    """Fréchet distance of two Gaussians fitted to features (Heusel et al. 2017).

    |m_a - m_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2)), with means m and covariances S.

    Args:
        a: moments, or features [N, D], N at least 2.
        b: the same of the other set.
    """
    one, two = (x if isinstance(x, Moments) else Moments.of(x) for x in (a, b))
    cov_a, cov_b = one.covariance, two.covariance
    # The trace of (A B)^(1/2) is the sum of the singular values of A^(1/2) B^(1/2), which are exact
    # to the precision of the roots. Eigenvalues of A B would have the root of their errors.
    cross = torch.linalg.svdvals(_root(cov_a) @ _root(cov_b)).sum()
    means = (one.mean - two.mean).square().sum()
    return max(float(means + cov_a.trace() + cov_b.trace() - 2 * cross), 0.0)


def _root(matrix: torch.Tensor) -> torch.Tensor:
    values, vectors = torch.linalg.eigh(matrix)
    return vectors * values.clamp_min(0).sqrt() @ vectors.T


class InceptionScore:
    """Inception score (Salimans et al. 2016), accumulated a block of logits at a time.

    The images are dealt to ten parts, by the permutation that torch-fidelity draws.

    Args:
        images: N, number of images in all.
        classes: number of logits.
    """

    def __init__(self, images: int, classes: int) -> None:
        place = np.random.RandomState(_SEED).permutation(images)
        ends = [(i + 1) * images // _SPLITS for i in range(_SPLITS)]
        parts = np.empty(images, np.int64)
        parts[place] = np.searchsorted(ends, np.arange(images), side="right")
        self._parts = torch.from_numpy(parts)
        # Of each part: sums of the probabilities, of p log p, and the number of images.
        self._sums = torch.zeros(_SPLITS, classes + 2, dtype=torch.float64, device="cpu")

    def add(self, items: torch.Tensor, logits: torch.Tensor) -> None:
        """Add the logits [n, classes] of images by their numbers, int64 [n]."""
        logs = logits.double().log_softmax(1)
        p = logs.exp()
        ones = torch.ones(len(p), 1, dtype=torch.float64, device=p.device)
        rows = torch.cat([p, (p * logs).sum(1, keepdim=True), ones], 1)
        self._sums.index_add_(0, self._parts[items], rows.cpu())

    def score(self, world: World) -> tuple[float, float]:
        """Mean and standard deviation over the parts."""
        sums = world.reduce_sum(self._sums)
        count = sums[:, -1]
        p = sums[:, :-2] / count[:, None]
        # The mean of sum_c p_c (log p_c - log q_c), with q the mean of p.
        scores = (sums[:, -2] / count - torch.special.xlogy(p, p).sum(1)).exp().numpy()
        return float(scores.mean()), float(scores.std())


@dataclass(frozen=True)
class _Rows:
    """Blocks of rows, which the processes take in turn."""

    count: int
    world: World

    def __iter__(self) -> Any:
        starts = range(0, self.count, _ROWS)[self.world.rank :: self.world.size]
        return iter(slice(i, min(i + _ROWS, self.count)) for i in starts)


def precision_and_recall(
    samples: torch.Tensor, reference: torch.Tensor, world: World, *, neighbors: int = 3
) -> tuple[float, float]:
    """Precision and recall of samples (Kynkäänniemi et al. 2019).

    Precision is the share of samples inside the ball around some reference image that reaches to
    its k-th neighbor in the reference; recall is the same with the two exchanged.

    Args:
        samples: float32 [N, D], equal in all processes.
        reference: float32 [M, D].
        world: the processes, which share the rows.
        neighbors: k.
    """
    radii = [_radii(x, neighbors, world) for x in (samples, reference)]
    inside = torch.zeros(len(samples), dtype=torch.int64, device=samples.device)
    covered = torch.zeros(len(reference), dtype=torch.int64, device=samples.device)
    for rows in _Rows(len(samples), world):
        distances = torch.cdist(samples[rows], reference)
        inside[rows] = (distances <= radii[1]).any(1).long()
        covered += (distances <= radii[0][rows, None]).any(0)
    inside, covered = world.reduce_sum(inside), world.reduce_sum(covered)
    return float(inside.double().mean()), float((covered > 0).double().mean())


def _radii(x: torch.Tensor, neighbors: int, world: World) -> torch.Tensor:
    """Distance of each row to its k-th neighbor."""
    radii = torch.zeros(len(x), dtype=x.dtype, device=x.device)
    for rows in _Rows(len(x), world):
        # The nearest is the row itself.
        nearest = torch.cdist(x[rows], x).topk(neighbors + 1, largest=False).values
        radii[rows] = nearest[:, -1]
    return world.reduce_sum(radii)


def kernel_distance(
    samples: torch.Tensor, reference: torch.Tensor, world: World
) -> tuple[float, float]:
    """Kernel distance of samples (Bińkowski et al. 2018), over the subsets of torch-fidelity.

    The unbiased squared MMD with the kernel (x y / D + 1)^3, of 100 subsets of 1,000 images, or of
    as many as the smaller set has.

    Args:
        samples: float32 [N, D], equal in all processes.
        reference: float32 [M, D].
        world: the processes, which share the subsets.

    Returns:
        Mean and standard deviation over the subsets.
    """
    size = min(_SUBSET_SIZE, len(samples), len(reference))
    draws = np.random.RandomState(_SEED)
    found = torch.zeros(_SUBSETS, dtype=torch.float64, device="cpu")
    for i in range(_SUBSETS):
        drawn = [
            torch.from_numpy(draws.choice(len(x), size, replace=False))
            for x in (samples, reference)
        ]
        if i % world.size == world.rank:
            x, y = samples[drawn[0]].double(), reference[drawn[1]].double()
            xx, yy, xy = _kernel(x, x), _kernel(y, y), _kernel(x, y)
            own = xx.sum() - xx.trace() + yy.sum() - yy.trace()
            found[i] = own / (size * (size - 1)) - 2 * xy.mean()
    values = world.reduce_sum(found).numpy()
    return float(values.mean()), float(values.std())


def _kernel(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    k = x @ y.T / x.shape[1] + 1
    return k * k * k  # a power is several times slower
