"""The loop over AR steps: it owns the caches, noise keys and graphs of a run.

Each step feeds the last patch to the transformer, whose outputs condition the diffusion head that
samples the next one. With guidance the batch holds 2 B rows, conditional rows first. What differs
between models, their sequence up to the head, is a ``PatchSequence``.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import torch
from torch import nn

from bitdance.models.diffusion_head import HeadNetwork
from bitdance.models.kv_cache import KVCache
from bitdance.models.layers import compute_dtype
from bitdance.sampling import graphs
from bitdance.sampling.config import forced_plans
from bitdance.sampling.finite import check_predictions
from bitdance.sampling.flow_sampler import Schedule, binarize, denoise, make_head
from bitdance.sampling.workspace import Pool, Workspace
from bitdance_kernels import default_backend, noise_keys, use_backend

__all__ = ["ARSampler", "OnStep", "PatchSequence", "Run", "StepResult", "guidance_at"]

Tensors = tuple[torch.Tensor, ...]


class StepResult(NamedTuple):
    """Results of one AR step; rows are conditional ones, then unconditional."""

    step: int
    """Number of the step, from 0."""
    guidance_scale: float
    """Guidance of the step."""
    hidden: torch.Tensor
    """Normalized outputs of the transformer: [rows, P, dim], at step 0 perhaps of more tokens."""
    prediction: torch.Tensor
    """float32 [rows, P, C], the last state of the denoising; its signs are the tokens."""
    tokens: torch.Tensor
    """[rows, P, C] of +1 and -1."""
    packed: torch.Tensor
    """uint8 [rows, P, ceil(C / 8)], the same as bits."""
    generated: torch.Tensor
    """[B, (step + 1) P, C] of +1 and -1: the tokens of all steps so far, in generation order."""


OnStep = Callable[[StepResult], "torch.Tensor | None"]
"""Called after every AR step; returns tokens [rows, P, C] to go on with, or None. May raise."""


class PatchSequence(Protocol):
    """The rows of a batch up to the head: buffers that stay, and the transformer's steps."""

    ar_steps: int
    """Patches of an image."""
    patch_shape: tuple[int, int]
    """(P, C): tokens of a patch, bits of a token."""
    head_patch: int | None
    """P as the head takes it; None for a head of single tokens."""
    repeats: bool
    """Whether step 0 is the same function as all later ones."""

    def first(self) -> torch.Tensor:
        """Normalized outputs of step 0, [rows, >= P, dim]."""

    def next(self) -> torch.Tensor:
        """Normalized outputs of a later step, [rows, P, dim]."""

    def condition(self, hidden: torch.Tensor, step: torch.Tensor) -> torch.Tensor:
        """Conditioning of the head, [rows, (P,) dim]; `step` is int64 [1] on the device."""

    def append(self, tokens: torch.Tensor, step: torch.Tensor) -> None:
        """Make `tokens` [rows, P, C] of `step` the patch that the next step is fed."""


S = TypeVar("S", bound=PatchSequence)


def guidance_at(step: int, steps: int, scale: float, schedule: str) -> float:
    """Guidance of AR step `step`: constant, or linear as 1 + (scale - 1) step / steps.

    The linear schedule begins at exactly 1, no guidance, and never reaches the scale.

    Raises:
        ValueError: `schedule` is unknown, or `scale` is not finite.
    """
    if not math.isfinite(scale):
        raise ValueError(f"sample: guidance_scale must be finite, got {scale}")
    if schedule == "constant":
        return scale
    if schedule == "linear":
        return 1 + (scale - 1) * step / steps
    raise ValueError(f"sample: guidance_schedule must be 'linear' or 'constant', got {schedule!r}")


class Run(Generic[S]):
    """The AR steps of batches of one kind, as functions without arguments.

    Guidance, keys, the number of the step and the last patch are in buffers that stay; so on a GPU
    the first step is one graph and all later ones another, replayed for every image.

    Args:
        sequence: the rows.
        network: the head's network.
        rows: rows of the batch, both halves of a guided one counted.
        guided: whether half of the rows are unconditional.
        shared: whether guidance applies at step 0 too. Where it does not, both halves sample step 0
            independently.
        num_inference_steps: noisy denoising steps per patch.
        use_kernels: see ``ARSampler``.
        device: device of the buffers.
    """

    def __init__(
        self,
        sequence: S,
        network: HeadNetwork,
        rows: int,
        *,
        guided: bool,
        shared: bool,
        num_inference_steps: int,
        use_kernels: bool,
        device: torch.device,
    ) -> None:
        self.sequence, self.guided, self.shared = sequence, guided, shared
        self.count = rows // 2 if guided else rows
        ar_steps = sequence.ar_steps
        self.schedule = Schedule.of(network, num_inference_steps)
        self.head = make_head(network, self.schedule, rows, sequence.head_patch, use_kernels)
        self.keys = torch.zeros(rows, 3, dtype=torch.int64, device=device)
        self.guidance = torch.zeros(ar_steps, dtype=torch.float32, device=device)
        self.step = torch.zeros(1, dtype=torch.int64, device=device)
        # With guidance at all steps both halves have the same predictions.
        kept_rows = self.count if shared else rows
        self.predictions = torch.zeros(
            (ar_steps, kept_rows, *sequence.patch_shape), dtype=torch.float32, device=device
        )
        self._run_first = graphs.make_runner(device) if use_kernels else graphs.run_eager
        self._run_next = self._run_first
        if use_kernels and not (sequence.repeats and shared == guided):
            self._run_next = graphs.make_runner(device)
        self._denoise = (
            graphs.make_call_runner(device, nested=True) if use_kernels else graphs.run_eager
        )

    def start(self, guidance: Sequence[float], keys: torch.Tensor | None) -> None:
        """Begin a batch with the guidance of all steps and, if any, keys of its rows."""
        self.guidance.copy_(torch.tensor(guidance, dtype=torch.float32, device="cpu"))
        if keys is not None:
            self.keys[: len(keys)].copy_(keys)
        self.step.zero_()
        self.head.load()

    def advance(self, first: bool, noise: Sequence[torch.Tensor] | None = None) -> Tensors:
        """``hidden`` to ``packed`` of the next AR step's ``StepResult``; valid until the next."""
        step = self._first if first else self._next
        if noise is not None:
            return step(noise)  # at another address in every step
        return (self._run_first if first else self._run_next)(step)

    def replace(self, tokens: torch.Tensor) -> None:
        """Go on with other tokens than the last step sampled."""
        self.sequence.append(tokens, self.step - 1)

    def _first(self, noise: Sequence[torch.Tensor] | None = None) -> Tensors:
        return self._sample(self.sequence.first(), self.shared, noise)

    def _next(self, noise: Sequence[torch.Tensor] | None = None) -> Tensors:
        return self._sample(self.sequence.next(), self.guided, noise)

    def _sample(
        self, hidden: torch.Tensor, shared: bool, noise: Sequence[torch.Tensor] | None
    ) -> Tensors:
        """Sample the patch that follows, and leave all buffers ready for the next step."""
        cond = self.sequence.condition(hidden, self.step)
        scale = self.guidance.index_select(0, self.step) if shared else None
        if noise is None:
            prediction = self._denoise(self._draw, cond, scale)
        else:
            prediction = denoise(self.head, self.schedule, cond, cfg=scale, noise=noise)
        prediction = prediction.view(-1, *self.sequence.patch_shape)
        all_rows = torch.cat([prediction, prediction]) if shared else prediction
        kept = prediction if self.shared else all_rows
        self.predictions.index_copy_(0, self.step, kept[None])
        tokens, packed = binarize(all_rows)
        self.sequence.append(tokens, self.step)
        self.step += 1
        self.keys[:, 1] += 2  # the same stream of the next AR step, see ``noise_keys``
        return hidden, all_rows, tokens, packed

    def _draw(self, cond: torch.Tensor, scale: torch.Tensor | None) -> torch.Tensor:
        """The prediction, from noise of the keys."""
        keys = self.keys if scale is None else self.keys[: self.count]
        return denoise(self.head, self.schedule, cond, cfg=scale, keys=keys)


class ARSampler(ABC, Generic[S]):
    """Samples the tokens of images, patch by patch.

    Any number of calls may run at a time, in threads and in `on_step` of another call: each leases
    buffers of its own.

    Args:
        max_runs: kinds of batches (by size, steps, guidance on or off) whose buffers and graphs a
            workspace keeps.

    Attributes:
        model: the networks.
        workspaces: caches and graphs that no call uses now.
    """

    model: nn.Module

    def __init__(self, max_runs: int) -> None:
        self.workspaces: Pool[Workspace[Run[S]]] = Pool(partial(Workspace, max_runs))

    @property
    @abstractmethod
    def _network(self) -> HeadNetwork:
        """The head's network."""

    def _sample(
        self,
        count: int,
        *,
        guided: bool,
        guidance: Sequence[float],
        num_inference_steps: int,
        seeds: Sequence[int] | None,
        sample_ids: Sequence[int] | None,
        noise: Sequence[Sequence[torch.Tensor]] | None,
        on_step: OnStep | None,
        use_kernels: bool,
        reserve: Callable[[Workspace[Run[S]], int], KVCache],
        kind: Hashable,
        make: Callable[[KVCache], S],
        begin: Callable[[S], Any],
    ) -> torch.Tensor:
        """Sample `count` images.

        Args:
            count: B; at least 1.
            guided: whether there is an unconditional row for each image.
            guidance: scale of every AR step.
            num_inference_steps: noisy denoising steps per patch.
            seeds: see ``ClassConditionalSampler.sample``.
            sample_ids: see ``ClassConditionalSampler.sample``.
            noise: see ``ClassConditionalSampler.sample``.
            on_step: see ``ClassConditionalSampler.sample``.
            use_kernels: see ``ClassConditionalSampler.sample``.
            reserve: gives an empty cache for a number of rows.
            kind: what tells batches of other sequences apart.
            make: builds the sequence in a cache.
            begin: starts the sequence of the batch.

        Returns:
            [B, N, C] of +1 and -1, in generation order.
        """
        ar_steps = len(guidance)
        if (seeds is None) == (noise is None):
            raise ValueError("sample: exactly one of seeds and noise must be given")
        if noise is not None and len(noise) != ar_steps:
            raise ValueError(f"sample: noise must be of {ar_steps} AR steps, got {len(noise)}")
        shared = guided and guidance[0] > 1
        network = self._network
        device = next(network.parameters()).device  # the autoencoder may be elsewhere
        keys = None
        if seeds is not None:
            # Halves that sample step 0 independently have a stream each.
            streams = 2 if guided and not shared else 1
            keys = _row_keys(seeds, sample_ids, count, streams, device)
        backend = nullcontext() if use_kernels else use_backend("reference")
        with self.workspaces.lease() as workspace, backend:
            rows = 2 * count if guided else count
            cache = reserve(workspace, rows)

            def make_run() -> Run[S]:
                # Buffers made in inference mode could not be written outside of it.
                with torch.inference_mode(False):
                    return Run(
                        make(cache), network, rows, guided=guided, shared=shared,
                        num_inference_steps=num_inference_steps, use_kernels=use_kernels,
                        device=device,
                    )  # fmt: skip

            # The run of an earlier batch of the same kind, if all memory is where it was then.
            first = cache.layers[0][0]
            owner = (first.data_ptr(), *(p.data_ptr() for p in graphs.parameters(self.model)))
            key = (
                kind, rows, guided, shared, num_inference_steps, use_kernels, device, first.dtype,
                compute_dtype(network), default_backend(), forced_plans(),
            )  # fmt: skip
            run = workspace.runs.get(owner, key, make_run)
            run.start(guidance, keys)
            begin(run.sequence)
            P, bits = run.sequence.patch_shape
            tokens = run.predictions.new_empty(count, ar_steps * P, bits)
            for i, scale in enumerate(guidance):
                results = run.advance(i == 0, None if noise is None else noise[i])
                patch = tokens[:, i * P : (i + 1) * P]
                patch.copy_(results[2][:count])
                if on_step is not None:
                    # Copies: the next step overwrites the results of a replayed one.
                    own = (x.clone() for x in (*results, tokens[:, : (i + 1) * P]))
                    changed = on_step(StepResult(i, scale, *own))
                    if changed is not None:
                        run.replace(changed)
                        patch.copy_(changed[:count])
            run.head.check()
            check_predictions("sample", run.predictions, count)
        return tokens


def _row_keys(
    seeds: Sequence[int],
    sample_ids: Sequence[int] | None,
    count: int,
    streams: int,
    device: torch.device,
) -> torch.Tensor:
    """Philox keys of all rows at AR step 0: stream 0 conditional, stream 1 unconditional."""
    ids = [0] * count if sample_ids is None else sample_ids
    for name, values in (("seeds", seeds), ("sample_ids", ids)):
        if len(values) != count:
            raise ValueError(f"sample: {name} must be {count}, one an image, got {len(values)}")
    return torch.cat([noise_keys(seeds, ids, stream=s, device=device) for s in range(streams)])
