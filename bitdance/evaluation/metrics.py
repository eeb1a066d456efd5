"""Numbers that compare images and codes."""

from __future__ import annotations

import math

import torch

from bitdance_kernels import bit_counts

__all__ = ["bit_usage", "frechet_distance", "psnr"]


def psnr(mean_squared_error: float, peak: float) -> float:
    """Peak signal-to-noise ratio in dB, infinite without an error.

    Args:
        mean_squared_error: mean squared error of the values.
        peak: largest difference that two values can have.
    """
    if mean_squared_error == 0:
        return math.inf
    return 10 * math.log10(peak**2 / mean_squared_error)


def frechet_distance(a: torch.Tensor, b: torch.Tensor) -> float:
    """Fréchet distance of two Gaussians fitted to features (Heusel et al. 2017).

    |m_a - m_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2)), with means m and covariances S.

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


def bit_usage(packed: torch.Tensor) -> list[float]:
    """Share of ones in each channel of packed codes [..., C / 8]."""
    counts = bit_counts(packed.flatten(0, -2))
    return (counts.double() / (packed.numel() // packed.shape[-1])).tolist()
