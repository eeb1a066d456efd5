"""From class labels to the tokens of images: the loop over AR steps.

Each step feeds the last patch to the transformer, whose outputs condition the diffusion head that
samples the next one. With guidance the batch holds 2 B rows, the conditional ones first.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch

from bitdance.sampler import Schedule, binarize, sample_patch
from bitdance_kernels import Ranges, noise_keys

if TYPE_CHECKING:
    from bitdance.model import BitDanceModel

__all__ = ["StepResult", "guidance_at", "sample_tokens"]


class StepResult(NamedTuple):
    """One AR step of ``BitDanceModel.sample``; rows are conditional ones, then unconditional."""

    step: int
    """Number of the step, from 0."""
    cfg: float
    """Guidance of the step."""
    hidden: torch.Tensor
    """The transformer's normalised outputs: at step 0 of the whole prefix, else [rows, P, dim]."""
    prediction: torch.Tensor
    """float32 [rows, P, C], the sampler's last state; its signs are the tokens."""
    tokens: torch.Tensor
    """[rows, P, C] of +1 and -1."""
    packed: torch.Tensor
    """uint8 [rows, P, ceil(C / 8)], the same as bits."""


def guidance_at(step: int, steps: int, scale: float, schedule: str) -> float:
    """Guidance of AR step `step`: constant, or linear as 1 + (scale - 1) step / steps.

    The linear schedule begins at exactly 1, no guidance, and never reaches the scale.

    Raises:
        ValueError: `schedule` is unknown.
    """
    if schedule == "constant":
        return scale
    if schedule == "linear":
        return 1 + (scale - 1) * step / steps
    raise ValueError(f"cfg_schedule must be 'linear' or 'constant', got {schedule!r}")


def sample_tokens(
    model: BitDanceModel,
    labels: torch.Tensor,
    *,
    steps: int,
    cfg_scale: float,
    cfg_schedule: str,
    seeds: Sequence[int] | None,
    sample_ids: Sequence[int] | None,
    noise: Sequence[Sequence[torch.Tensor]] | None,
    on_step: Callable[[StepResult], None] | None,
) -> torch.Tensor:
    """See ``BitDanceModel.sample``."""
    config = model.config
    model.check_labels(labels, values=True)
    P, count = config.parallel_num, len(labels)
    schedule = Schedule.of(model.head.net, steps)
    guidance = _guidance(config.ar_steps, cfg_scale, cfg_schedule)
    guided = cfg_scale > 1
    device = model.freqs.device
    labels = labels.to(device)
    rows = torch.cat([labels, torch.full_like(labels, config.num_classes)]) if guided else labels
    _check_noise(noise, seeds, config.ar_steps)
    keys = None if seeds is None else _keys(seeds, sample_ids, count, guided, device)

    cache = model.reserve_cache(len(rows))
    x = model.prefix(rows)
    mask: Ranges | None = model.ranges(patches=1)
    made = []
    for i, cfg in enumerate(guidance):
        hidden = model.norm(model.layers.decode(model.emb_norm(x), model.freqs, cache, mask))
        cond = hidden[:, -P:] + model.pos_for_diff.weight[i * P : (i + 1) * P]
        # Where cfg is 1 (step 0 of the linear schedule) the halves go on independently.
        shared = guided and cfg > 1
        drawing = count if shared else len(rows)
        prediction = sample_patch(
            model.head.net,
            schedule,
            cond if P > 1 else cond.squeeze(1),
            cfg=cfg if shared else None,
            keys=None if keys is None else keys[:drawing],
            noise=None if noise is None else noise[i],
        ).view(drawing, P, config.token_bits)
        if shared:
            prediction = torch.cat([prediction, prediction])
        tokens, packed = binarize(prediction)
        made.append(tokens[:count])
        if on_step is not None:
            on_step(StepResult(i, cfg, hidden, prediction, tokens, packed))
        x, mask = model.embed(tokens), None  # from here on a step sees the whole cache
        if keys is not None:
            keys[:, 1] += 2  # the same stream of the next AR step
    return torch.cat(made, dim=1)


def _guidance(steps: int, scale: float, schedule: str) -> list[float]:
    """Guidance of every AR step."""
    if not math.isfinite(scale):
        raise ValueError(f"sample: cfg_scale must be finite, got {scale}")
    return [guidance_at(i, steps, scale, schedule) for i in range(steps)]


def _check_noise(
    noise: Sequence[Sequence[torch.Tensor]] | None, seeds: Sequence[int] | None, steps: int
) -> None:
    if (seeds is None) == (noise is None):
        raise ValueError("sample: give either seeds or noise")
    if noise is not None and len(noise) != steps:
        raise ValueError(f"sample: noise must be of {steps} AR steps, got {len(noise)}")


def _keys(
    seeds: Sequence[int],
    sample_ids: Sequence[int] | None,
    count: int,
    guided: bool,
    device: torch.device,
) -> torch.Tensor:
    """Philox keys of all rows at AR step 0: stream 0 conditional, stream 1 unconditional."""
    ids = [0] * count if sample_ids is None else sample_ids
    for name, values in (("seeds", seeds), ("sample_ids", ids)):
        if len(values) != count:
            raise ValueError(f"sample: {name} must be {count}, one a label, got {len(values)}")
    streams = (0, 1) if guided else (0,)
    return torch.cat([noise_keys(seeds, ids, stream=s, device=device) for s in streams])
