"""A training step of the model that comes with the library, against plain PyTorch.

Loss and gradients three ways that take turns: as the library does it ("fast"), the same with
reference ops ("plain"), and as published, with a dense mask for the transformer and the head op by
op ("published"; the mask goes to ``scaled_dot_product_attention``, the fastest way there is to use
one on a CPU). Also the peak memory of a step of the head alone beyond its weights.

On a card there is a fourth way: "published, flex", with FlexAttention in place of the mask.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import timing
from benchmarks.model import published
from benchmarks.shapes import attention
from bitdance import BitDancePipeline
from bitdance.models.class_conditional import BitDanceModel, TrainingDraws
from bitdance_kernels import dense_mask, use_backend

WAYS = ("fast", "plain", "published")


@contextlib.contextmanager
def going(way: str, model: BitDanceModel, *, compiled: bool = False) -> Iterator[None]:
    """Inside, a call of `model` (its training loss) goes that way.

    With `compiled` the transformer and the head of a published way are compiled.
    """
    if way == "fast":
        yield
        return
    layers, net = model.layers, model.head.net
    attend = _attention(way, model)

    def trunk(x: Tensor, freqs: Tensor, ranges: Any) -> Tensor:
        return published.transformer(layers, x, freqs, attend)

    parts: Sequence[Any] = (trunk, functools.partial(published.head, net))
    if compiled:
        parts = [torch.compile(part, dynamic=False) for part in parts]
    with use_backend("reference"), contextlib.ExitStack() as stack:
        if way.startswith("published"):
            for module, part in zip((layers, net), parts, strict=True):
                stack.enter_context(mock.patch.object(module, "forward", part))
        yield


def _attention(way: str, model: BitDanceModel) -> Callable[..., Tensor]:
    """Attention of a published way: of the number of a block and q, k and v [B, T, H, D]."""
    ranges = model.ranges()
    function = (
        attention.compiled_flex(ranges, len(ranges.end))
        if way == "published, flex"
        else functools.partial(F.scaled_dot_product_attention, attn_mask=dense_mask(ranges))
    )

    def attend(_: int, *qkv: Tensor) -> Tensor:
        return function(*(y.transpose(1, 2) for y in qkv)).transpose(1, 2)

    return attend


def draws(model: BitDanceModel, batch: int) -> TrainingDraws:
    """The random numbers of a step, so that every way computes the same loss."""
    config, device = model.config, model.freqs.device
    rows = batch * config.ar_steps * config.diff_batch_mul
    patch = () if config.parallel_num == 1 else (config.parallel_num,)
    of_tokens = (batch, config.tokens, config.token_bits)
    return TrainingDraws(
        flips=(torch.rand(of_tokens, device=device), torch.rand(of_tokens, device=device)),
        drop=torch.rand(batch, device=device),
        time=torch.randn(rows, device=device),
        noise=torch.randn(rows, *patch, config.token_bits, device=device),
    )


def step(way: str, model: BitDanceModel, tokens: Tensor, labels: Tensor) -> float:
    """One step without the optimizer: the loss, with the gradients in place."""
    model.zero_grad(set_to_none=True)
    with going(way, model):
        loss: Tensor = model(tokens, labels)
        loss.backward()
    return loss.item()


def head_step(way: str, model: BitDanceModel, x: Tensor, cond: Tensor) -> None:
    """The same of the head alone."""
    model.head.zero_grad(set_to_none=True)
    with going(way, model):
        model.head.loss(x, cond).mean().backward()


def peak_bytes(run: Callable[[], Any]) -> int:
    """Peak bytes that PyTorch allocates during `run` beyond those from before, on the CPU."""
    run()  # first calls fill caches
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        run()
    assert profile.profiler is not None
    results: Any = profile.profiler.kineto_results
    marks = [event for event in results.events() if event.name() == "[memory]"]
    held = peak = 0
    for mark in sorted(marks, key=lambda mark: mark.start_ns()):
        held += mark.nbytes()
        peak = max(peak, held)
    return peak


def training(model: BitDanceModel, batch: int, rounds: int) -> dict[str, Any]:
    """Seconds of a step and bytes of a step of the head, by way."""
    config = model.config
    torch.manual_seed(0)
    signs = torch.rand(batch, config.tokens, config.token_bits) < 0.5
    tokens = torch.where(signs, 1.0, -1.0)
    labels = torch.arange(batch) % config.num_classes
    model.train()
    steps: dict[str, Callable[[], object]] = {
        way: functools.partial(step, way, model, tokens, labels) for way in WAYS
    }
    seconds = timing.medians(timing.take_turns(steps, rounds))
    with torch.no_grad():
        x, cond = model.conditions(tokens, labels)
    held = {way: peak_bytes(functools.partial(head_step, way, model, x, cond)) for way in WAYS}
    model.zero_grad(set_to_none=True)
    return {
        "batch": batch,
        "seconds": seconds,
        **{f"{way} / fast": seconds[way] / seconds["fast"] for way in ("published", "plain")},
        "head rows": list(cond.shape),
        "head peak bytes": held,
    }


def measure(rounds: int = 10) -> dict[str, Any]:
    """Figures of the bundled model, 32 images a step."""
    model = BitDancePipeline.from_pretrained("fashion").model.requires_grad_(True)
    model.vae.requires_grad_(False)
    return {"model": "fashion", **training(model, 32, rounds)}
