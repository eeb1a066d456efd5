"""Sampling of one patch: Euler-Maruyama steps on the predictions of the head."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from bitdance.models.diffusion_head import HeadNetwork
from bitdance.models.layers import compute_dtype
from bitdance.models.tracing import is_traced
from bitdance.sampling.head_products import Step
from bitdance.sampling.head_runner import Head, HeadRunner, PlainHead
from bitdance_kernels import denoise_schedule, finalize_bits, use_backend
from bitdance_kernels import noise as philox_noise

__all__ = ["Schedule", "binarize", "denoise", "make_head", "sample_patch"]

OnStep = Callable[[int, torch.Tensor, torch.Tensor], None]


@dataclass(frozen=True)
class Schedule:
    """Coefficients and times of the denoising steps, the same for all patches.

    Attributes:
        table: [S + 1, 3] float32, see ``bitdance_kernels.denoise_schedule``.
        times: [S + 1] float32, times that the network is called with.
        steps: [S + 1] int64, 0 to S, on the device, so that no step is read on the host.
    """

    table: torch.Tensor
    times: torch.Tensor
    steps: torch.Tensor

    @classmethod
    def of(cls, network: HeadNetwork, steps: int, time_shift: float | None = None) -> Schedule:
        """The schedule of `steps` noisy steps and the final one, for this network.

        Args:
            network: the head's network.
            steps: S, at least 1.
            time_shift: time shift, by default that of the head.

        Raises:
            ValueError: `steps` or `time_shift` is out of range.
        """
        shift = network.config.time_shift if time_shift is None else time_shift
        table, times = denoise_schedule(steps, time_shift=shift)
        device = network.cond_embed.weight.device
        times = times.to(device)
        index = torch.arange(steps + 1, dtype=torch.int64, device=device)
        return cls(table.to(device), times, index)


def make_head(
    network: HeadNetwork,
    schedule: Schedule,
    rows: int,
    patch: int | None,
    use_kernels: bool = True,
    plan: str = "auto",
) -> Head:
    """The head, ready for patches of that size.

    Args:
        network: the head's network.
        schedule: schedule of that network.
        rows: patches in a batch, both halves of a guided one counted.
        patch: P, or None for states [R, C].
        use_kernels: False for the network as published.
        plan: how its products are done, see ``choose_plan``.

    Raises:
        ValueError: `plan` is unknown, or cannot run these products.
    """
    if not use_kernels or is_traced():  # a program keeps no buffers between evaluations
        return PlainHead(network, schedule.times)
    return HeadRunner(network, rows, patch, schedule.times, compute_dtype(network), plan)


def sample_patch(
    network: HeadNetwork,
    schedule: Schedule,
    cond: torch.Tensor,
    *,
    cfg: float | torch.Tensor | None = None,
    keys: torch.Tensor | None = None,
    noise: Sequence[torch.Tensor] | None = None,
    on_step: OnStep | None = None,
    use_kernels: bool = True,
) -> torch.Tensor:
    """From noise to the prediction of a patch's bits; their sign is the token.

    Args:
        network: the head's network.
        schedule: schedule of that network.
        cond: conditioning [R, ..., ch_cond]; with `cfg` [2 R, ...], conditional rows first.
        cfg: guidance scale, a number or a tensor of one element on the device; None for none.
        keys: Philox keys int64 [R, 3] as ``noise_keys`` makes them.
        noise: in place of `keys`, the draws: the initial state, then one per step, each
            [R, ..., ch_target] float32.
        on_step: called as f(step, state, prediction) after every network call.
        use_kernels: False for the network as published and reference ops.

    Returns:
        float32 [R, ..., ch_target]: after the last step, which lands on the (guided) prediction.

    Raises:
        ValueError: not exactly one of `keys` and `noise`, or shapes that do not fit.
    """
    patch = cond.shape[1] if cond.dim() > 2 else None
    with torch.no_grad(), nullcontext() if use_kernels else use_backend("reference"):
        head = make_head(network, schedule, cond.shape[0], patch, use_kernels)
        head.load()
        final = denoise(head, schedule, cond, cfg=cfg, keys=keys, noise=noise, on_step=on_step)
        head.check()
        return final


def denoise(
    head: Head,
    schedule: Schedule,
    cond: torch.Tensor,
    *,
    cfg: float | torch.Tensor | None = None,
    keys: torch.Tensor | None = None,
    noise: Sequence[torch.Tensor] | None = None,
    on_step: OnStep | None = None,
) -> torch.Tensor:
    """``sample_patch`` with a head that ``make_head`` returned; the host waits for nothing."""
    steps = len(schedule.times) - 1
    rows = cond.shape[0] if cfg is None else cond.shape[0] // 2
    shape = (rows, *cond.shape[1:-1], head.network.config.ch_target)
    if (keys is None) == (noise is None):
        raise ValueError("sample_patch: exactly one of keys and noise must be given")
    if noise is not None and (len(noise) != steps + 1 or noise[0].shape != shape):
        raise ValueError(
            f"sample_patch: noise must be {steps + 1} tensors of shape {list(shape)}, got "
            f"{len(noise)} of shape {list(noise[0].shape) if len(noise) else []}"
        )
    if isinstance(cfg, (int, float)):
        cfg = torch.full((), cfg, dtype=torch.float32, device=cond.device)
    x = noise[0] if noise is not None else _initial(keys, shape)
    none = torch.zeros_like(x)  # the last step is deterministic
    with head.precision():
        head.begin(cond)
        if on_step is None:
            final = head.advance_all(x, schedule.table, cfg, noise and noise[1:], keys)
            if final is not None:
                return final
        with head.chain():
            for i in range(steps + 1):
                drawn = none if i == steps else None if noise is None else noise[i + 1]
                of_noise = keys if drawn is None else None
                step = Step(schedule.table, schedule.steps[i], cfg, drawn, of_noise)
                following = head.advance(i, x, step)
                if on_step is not None:
                    on_step(i, x, head.prediction().clone())
                x = following
    return x


def binarize(prediction: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Signs (+1 where > 0, else -1) and packed bits of a prediction [..., C] of any width C.

    A prediction of exactly 0 gives -1, as in the quantizer. (The official sampler takes
    ``torch.sign``, whose 0 is no bit.)
    """
    width = prediction.shape[-1]
    signs, packed = finalize_bits(F.pad(prediction, (0, -width % 8), value=-1.0))
    return signs[..., :width], packed


def _initial(keys: torch.Tensor | None, shape: tuple[int, ...]) -> torch.Tensor:
    assert keys is not None
    return philox_noise(keys, 0, math.prod(shape[1:]), backend="auto").view(shape)
