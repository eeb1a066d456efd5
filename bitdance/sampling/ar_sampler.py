"""From class labels to the tokens of images: the loop over AR steps.

Each step feeds the last patch to the transformer, whose outputs condition the diffusion head that
samples the next one. With guidance the batch holds 2 B rows, the conditional ones first.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import torch

from bitdance.sampling import graphs
from bitdance.sampling.finite import check_predictions
from bitdance.sampling.flow_sampler import Schedule, binarize, check_mode, denoise, make_head
from bitdance.sampling.head_runner import compute_dtype
from bitdance_kernels import Ranges, default_backend, noise_keys, use_backend

if TYPE_CHECKING:
    from bitdance.models.class_conditional import BitDanceModel
    from bitdance.models.kv_cache import KVCache
    from bitdance.sampling.workspace import Workspace

__all__ = ["Decoding", "StepResult", "check_noise", "guidance_at", "row_keys", "sample_tokens"]

Tensors = tuple[torch.Tensor, ...]


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
    mode: str,
) -> torch.Tensor:
    """See ``BitDanceModel.sample``."""
    config = model.config
    check_mode(mode)
    model.check_labels(labels, values=True)
    P, count = config.parallel_num, len(labels)
    guidance = _guidance(config.ar_steps, cfg_scale, cfg_schedule)
    guided = cfg_scale > 1
    check_noise(noise, seeds, config.ar_steps)
    keys = None if seeds is None else row_keys(seeds, sample_ids, count, guided, labels.device)
    with (
        model.workspaces.lease() as workspace,
        use_backend("reference") if mode == "plain" else nullcontext(),
    ):
        decoding = _decoding(workspace, model, count, guided, guidance, steps, mode)
        decoding.start(labels, guidance, keys)
        tokens = decoding.tokens.new_empty(count, config.tokens, config.token_bits)
        for i, cfg in enumerate(guidance):
            made = decoding.advance(model, i, None if noise is None else noise[i])
            tokens[:, i * P : (i + 1) * P] = made[2][:count]
            if on_step is not None:
                # Of their own: those of a replayed step are overwritten by the next one.
                on_step(StepResult(i, cfg, *(tensor.clone() for tensor in made)))
        check_predictions("sample", decoding.predictions, count)
    return tokens


def _decoding(
    workspace: Workspace[Decoding],
    model: BitDanceModel,
    count: int,
    guided: bool,
    guidance: list[float],
    steps: int,
    mode: str,
) -> Decoding:
    """That of an earlier run of the same kind, if all memory is where it was then."""
    rows = 2 * count if guided else count
    cache = model.reserve_cache(workspace, rows)
    memory = (cache.layers[0][0].data_ptr(), *(p.data_ptr() for p in graphs.parameters(model)))
    # Where cfg is 1 (step 0 of the linear schedule) the halves go on independently.
    shared = guided and guidance[0] > 1
    kind = (rows, guided, shared, steps, mode, cache.lengths.device, default_backend())
    dtype = compute_dtype(model.head.net)
    return workspace.runs.get(
        memory,
        (*kind, dtype),
        lambda: Decoding(model, cache, guided=guided, shared=shared, steps=steps, mode=mode),
    )


class Decoding:
    """The AR steps of batches of one kind, as functions without arguments.

    Labels, guidance, keys, the number of the step and the last tokens lie in memory that stays; so
    on a GPU the first step is one graph and all later ones another, replayed for every image.

    Args:
        model: whose weights are used. It is not kept, since it keeps this.
        cache: of all rows.
        guided: whether half of the rows are unconditional.
        shared: whether guidance applies at step 0 too.
        steps: noisy denoising steps per patch.
        mode: see ``BitDanceModel.sample``.
    """

    def __init__(
        self,
        model: BitDanceModel,
        cache: KVCache,
        *,
        guided: bool,
        shared: bool,
        steps: int,
        mode: str,
    ) -> None:
        config, device = model.config, cache.lengths.device
        P, rows = config.parallel_num, len(cache.lengths)
        self.cache, self.guided, self.shared = cache, guided, shared
        self.count = rows // 2 if guided else rows
        # Made in inference mode, memory could not be written outside of it.
        with torch.inference_mode(False):
            self.schedule = Schedule.of(model.head.net, steps)
            self.head = make_head(model.head.net, self.schedule, rows, P if P > 1 else None, mode)
            self.mask = model.ranges(patches=1)
            self.labels = torch.full(
                (rows,), config.num_classes, dtype=torch.int64, device=device
            )  # no class
            self.keys = torch.zeros(rows, 3, dtype=torch.int64, device=device)
            self.guidance = torch.zeros(config.ar_steps, dtype=torch.float32, device=device)
            self.step = torch.zeros(1, dtype=torch.int64, device=device)
            self.tokens = torch.zeros(
                (rows, P, config.token_bits), dtype=torch.float32, device=device
            )
            self.predictions = torch.zeros(
                (config.ar_steps, *self.tokens.shape), dtype=torch.float32, device=device
            )
        make = graphs.EagerStep if mode == "plain" else partial(graphs.step_for, device)
        self._first, self._next = make(), make()
        self._call = graphs.call_for(device, within=True) if mode == "fast" else graphs.call

    def start(self, labels: torch.Tensor, guidance: list[float], keys: torch.Tensor | None) -> None:
        """Begin with a batch's labels [count], guidance of all steps and, if any, keys of rows."""
        self.labels[: self.count] = labels
        self.guidance.copy_(torch.tensor(guidance, dtype=torch.float32, device="cpu"))
        if keys is not None:
            self.keys.copy_(keys)
        self.step.zero_()
        self.cache.reset()
        self.head.load()

    def advance(
        self, model: BitDanceModel, i: int, noise: Sequence[torch.Tensor] | None = None
    ) -> Tensors:
        """Results of AR step `i`; they are valid until the next one."""
        step = partial(self._begin if i == 0 else self._go_on, model)
        if noise is not None:
            return step(noise)  # which lies somewhere else in every step
        return (self._first if i == 0 else self._next)(step)

    def _begin(self, model: BitDanceModel, noise: Sequence[torch.Tensor] | None = None) -> Tensors:
        return self._decode(model, model.prefix(self.labels), self.mask, self.shared, noise)

    def _go_on(self, model: BitDanceModel, noise: Sequence[torch.Tensor] | None = None) -> Tensors:
        # From here on a step sees the whole cache.
        return self._decode(model, model.embed(self.tokens), None, self.guided, noise)

    def _decode(
        self,
        model: BitDanceModel,
        x: torch.Tensor,
        mask: Ranges | None,
        shared: bool,
        noise: Sequence[torch.Tensor] | None,
    ) -> Tensors:
        """Sample the patch that follows `x`, and leave all memory ready for the next step."""
        P = model.config.parallel_num
        hidden = model.norm(model.layers.decode(model.emb_norm(x), model.freqs, self.cache, mask))
        patches = model.pos_for_diff.weight.unflatten(0, (-1, P))
        cond = hidden[:, -P:] + patches.index_select(0, self.step)
        cond = cond if P > 1 else cond.squeeze(1)
        cfg = self.guidance.index_select(0, self.step) if shared else None
        drawing = self.count if shared else len(x)
        if noise is None:
            prediction = self._call(self._drawn, cond, cfg)
        else:
            prediction = denoise(self.head, self.schedule, cond, cfg=cfg, noise=noise)
        prediction = prediction.view(drawing, *self.tokens.shape[1:])
        if shared:
            prediction = torch.cat([prediction, prediction])
        tokens, packed = binarize(prediction)
        self.tokens.copy_(tokens)
        self.predictions.index_copy_(0, self.step, prediction[None])
        self.step += 1
        self.keys[:, 1] += 2  # the same stream of the next AR step
        return hidden, prediction, tokens, packed

    def _drawn(self, cond: torch.Tensor, cfg: torch.Tensor | None) -> torch.Tensor:
        """The prediction, from noise that is drawn."""
        keys = self.keys if cfg is None else self.keys[: self.count]
        return denoise(self.head, self.schedule, cond, cfg=cfg, keys=keys)


def _guidance(steps: int, scale: float, schedule: str) -> list[float]:
    """Guidance of every AR step."""
    if not math.isfinite(scale):
        raise ValueError(f"sample: cfg_scale must be finite, got {scale}")
    return [guidance_at(i, steps, scale, schedule) for i in range(steps)]


def check_noise(
    noise: Sequence[Sequence[torch.Tensor]] | None, seeds: Sequence[int] | None, steps: int
) -> None:
    """Raise ValueError unless there are either seeds, or draws for each of `steps` AR steps."""
    if (seeds is None) == (noise is None):
        raise ValueError("sample: give either seeds or noise")
    if noise is not None and len(noise) != steps:
        raise ValueError(f"sample: noise must be of {steps} AR steps, got {len(noise)}")


def row_keys(
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
            raise ValueError(f"sample: {name} must be {count}, one an image, got {len(values)}")
    streams = (0, 1) if guided else (0,)
    return torch.cat([noise_keys(seeds, ids, stream=s, device=device) for s in streams])
