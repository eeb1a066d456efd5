"""Whole images on a card: the library's path against the published one.

Random weights: the time does not depend on what a picture shows. An image's AR steps are alike but
for the cache they read, so a path that is too slow for the time there is runs some of them and is
scaled up; the record says how many ran.
"""

from __future__ import annotations

import copy
import functools
import gc
import time
from collections.abc import Sequence
from typing import Any

import torch

from benchmarks.gpu import limits
from benchmarks.gpu.worker import Context, Step
from benchmarks.model import paths
from bitdance.models.class_conditional import BitDanceModel
from bitdance.models.config import PRESETS

_MODELS = ("B-16x", "B-1x", "B-4x", "L-1x", "H-1x")
_BATCHES = (1, 64, 8, 384)
_STEPS = 100


def steps(context: Context) -> Sequence[Step]:
    """A step per model and batch; the models of the targets first, in case time runs out."""
    if context.dry_run:
        return [("tiny, batch 2", lambda: _images(context, "tiny", 2, 1))]
    # Every batch of a target before the others: 1 and 64 of the first two models come first.
    plan = sorted(
        ((model, batch) for model in _MODELS for batch in _BATCHES),
        key=lambda pair: (_MODELS.index(pair[0]) > 1) + _BATCHES.index(pair[1]) // 2,
    )
    return [
        (f"{model}, batch {batch}",
         functools.partial(_images, context, model, batch, len(plan) - i))
        for i, (model, batch) in enumerate(plan)
    ]  # fmt: skip


def _images(context: Context, name: str, batch: int, share: int) -> None:
    config = paths.TINY if name == "tiny" else PRESETS[name]
    denoising = 2 if context.dry_run else _STEPS
    master = paths.random_model(config, context.device)
    half = torch.float32 if context.dry_run else torch.bfloat16

    def make(path: str) -> tuple[paths.Path, BitDanceModel]:
        if path == "fast":
            model = copy.deepcopy(master).to(half)
            return paths.library(model, denoising), model
        options: dict[str, Any] = {} if context.dry_run else {"compiled": True, "autocast": half}
        return paths.published(master, denoising, **options), master

    # The first steps matter more, so they may take twice their share.
    end = time.monotonic() + max(context.left("images"), 0.0) * min(1.0, 2 / share)
    for path, left in {"fast": 2, "published": 1}.items():
        try:
            figures = _time(context, *make(path), batch, (end - time.monotonic()) / left)
        except torch.OutOfMemoryError as error:
            label = f"images: {name}, batch {batch}: {path}"
            context.add("not timed", str(error).splitlines()[0], label)
            continue
        finally:  # the next path needs the room of compiled code and memory
            torch.compiler.reset()
            gc.collect()
            if not context.dry_run:
                torch.cuda.empty_cache()
        what = {"model": name, "batch": batch, "path": path, "device": context.device.type}
        context.add("images", {**what, "steps": denoising, **figures})


def _time(
    context: Context, way: paths.Path, model: BitDanceModel, batch: int, seconds: float
) -> dict[str, Any]:
    """Milliseconds an image: all of it, and of the trunk, the head and the decoder."""
    config = model.config
    labels = torch.arange(batch, device=model.freqs.device) % config.num_classes
    tokens = paths.random_tokens(model, batch)
    begin = time.monotonic()
    # The first calls compile and allocate, the second ones of a path with graphs capture them.
    for _ in range(2 if way.trunk is None else 1):
        paths.sampling(way, labels, config.ar_steps, 0.0, max_steps=paths.MIN_AR_STEPS)
        paths.decoding(way, tokens)
    first = time.monotonic() - begin
    end, rounds = begin + max(seconds, first + 1.0), 1 if context.dry_run else 5
    ran: list[dict[str, Any]] = []
    while not ran or (time.monotonic() < end and len(ran) < rounds):
        left = (end - time.monotonic()) / (1 if ran else 2)
        times = paths.sampling(way, labels, config.ar_steps, left)
        ran.append(times | {"decoder": paths.decoding(way, tokens)})
    if way.trunk is None:
        step = limits.seconds_of(context, paths.trunk_step(model, batch))
        ran = [r | {"trunk": step * config.ar_steps} for r in ran]
    return {
        **paths.figures(ran, batch),
        "ar_steps_timed": min(r["ran"] for r in ran),
        "ar_steps": config.ar_steps,
        "first_call_s": first,
    }
