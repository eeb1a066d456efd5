"""The sampler's schedule as a table of affine steps, computed once."""

from __future__ import annotations

import math
import numbers

import torch

from bitdance_kernels._dispatch import arguments
from bitdance_kernels._shared import checks

__all__ = ["denoise_schedule"]

# The stochastic steps end here; one plain Euler step of 0.05 leads to the data.
_LAST_TIME = 0.95
# Velocities divide by 1 - t, clamped from below.
_MIN_REMAINDER = 0.05


def denoise_schedule(steps: int, *, time_shift: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Coefficients of all steps of the sampler, and the times of its network calls.

    The official sampler takes `steps` Euler-Maruyama steps from t = 0 (noise) to 0.95 and then one
    plain Euler step of 0.05. With the prediction x0 of the clean bits, a step of width dt is:

        v     = (x0 - x) / max(1 - t, 0.05)
        score = (t v - x) / (1 - t)
        x'    = x + (v + (1 - t) score) dt + sqrt(2 (1 - t) dt) eps

    which is affine, x' = a x + b x0 + s eps, with:

        b = (1 + t) dt / max(1 - t, 0.05)      a = 1 - dt - b      s = sqrt(2 (1 - t) dt)

    Guidance combines velocities, v_u + cfg (v_c - v_u); as both belong to one x, that is the same
    as combining the predictions. The last step leads to x0 itself, (a, b, s) = (0, 1, 0).

    The grid is ``linspace(0, 0.95, steps + 1)``, shifted by
    ``t' = (1/time_shift) / ((1/time_shift) + (1/t - 1))``; t is accumulated in float32 by adding
    the differences of the shifted grid, as the official code does. The last step is always at
    t = 0.95, even where a shift has ended the grid elsewhere.

    Args:
        steps: number S of Euler-Maruyama steps; the network is called S + 1 times.
        time_shift: over 0; values over 1 move the times towards the noise.

    Returns:
        table: float32 [S + 1, 3], row i = (a, b, s) of step i, on the CPU.
        times: float32 [S + 1], the t of each step's network call.

    Raises:
        TypeError: `steps` is not an int.
        ValueError: `steps` is not in [1, 2^31), or `time_shift` is not positive and finite.

    Numerics:
        `times` has the official bits. The coefficients are computed from them in float64 and
        rounded once.

    Example:
        >>> table, times = denoise_schedule(1)
        >>> table
        tensor([[-0.9000,  0.9500,  1.3784],
                [ 0.0000,  1.0000,  0.0000]])
        >>> times
        tensor([0.0000, 0.9500])
    """
    if not isinstance(steps, numbers.Integral) or isinstance(steps, bool):
        raise TypeError(f"denoise_schedule: steps must be int, got {type(steps).__name__}")
    steps, time_shift = int(steps), arguments.number("denoise_schedule", "time_shift", time_shift)
    if steps < 1:
        raise checks.fail("denoise_schedule", "steps", "at least 1", steps)
    if steps >= 2**31:
        raise checks.fail("denoise_schedule", "steps", "less than 2^31", steps)
    if not 0 < time_shift < math.inf:
        raise checks.fail("denoise_schedule", "time_shift", "positive and finite", time_shift)
    # Device and dtype of the official grid, whatever PyTorch's defaults.
    grid = torch.linspace(0, _LAST_TIME, steps + 1, dtype=torch.float32, device="cpu")
    grid = _shifted(grid, time_shift)
    widths = grid.diff()
    reached = [grid[0]]
    for width in widths[:-1]:
        reached.append(reached[-1] + width)
    times = torch.stack([*reached, grid.new_tensor(_LAST_TIME)])
    t, dt = times[:-1].double(), widths.double()
    b = (1 + t) * dt / (1 - t).clamp_min(_MIN_REMAINDER)
    s = torch.sqrt(2 * (1 - t) * dt)
    table = torch.stack((1 - dt - b, b, s), dim=1).float()
    return torch.cat((table, grid.new_tensor([[0.0, 1.0, 0.0]]))), times


def _shifted(t: torch.Tensor, time_shift: float) -> torch.Tensor:
    return (1 / time_shift) / ((1 / time_shift) + (1 / t - 1))
