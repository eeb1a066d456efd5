"""``python -m benchmarks gpu --only training``: forward and backward passes and their peak memory.

Master weights in float32 under bfloat16 autocast, without the optimizer's step: as the library
trains, the same compiled, and as published, compiled, with FlexAttention or with a dense mask. All
ways draw the same numbers, so that their losses can be compared. The head of the 14 B model is
trained behind a transformer of one layer, since the whole would not fit a card.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import statistics
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.worker import Context, Step
from benchmarks.model import bound, paths, training
from bitdance.models.class_conditional import BitDanceModel
from bitdance.models.config import HEAD_PRESETS, PRESETS, HeadConfig, ModelConfig
from bitdance.models.diffusion_head import DiffusionHead

WAYS = ("fast", "fast, compiled", "published, flex", "published")
MODELS = ("B-16x", "14B-64x head")
_TIMED = (("B-16x", 64), ("14B-64x head", 2), ("B-16x", 128))
_ROUNDS, _WARM_UP = 7, 3
_BEHIND = ModelConfig(
    dim=5120, n_layer=1, n_head=40, diff_layers=1, diff_dim=64, diff_adanln_layers=1,
    parallel_num=64, resolution=512, num_classes=1, cls_token_num=64,
)  # fmt: skip
"""Text-to-image training's sequences: a prompt's length, then an image of 512 pixels."""
_TINY_HEAD = HeadConfig(
    ch_target=8, ch_cond=32, ch_latent=128, depth_latent=1, depth_adanln=1, architecture="t2i"
)


def steps(context: Context) -> Sequence[Step]:
    """A step per model, batch and way; the first one of a batch is the library's."""
    timed = [(name, 2) for name in MODELS] if context.dry_run else _TIMED
    return [
        (f"{name}, batch {batch}, {way}", functools.partial(_time, context, name, batch, way))
        for name, batch in timed
        for way in WAYS
        if not (context.dry_run and "flex" in way)  # it has no gradients on the CPU
    ]


def model_of(name: str, device: torch.device, *, tiny: bool) -> BitDanceModel:
    """A model with random weights that trains."""
    torch.manual_seed(0)
    if name == "B-16x":
        model = paths.random_model(paths.TINY if tiny else PRESETS[name], device)
    else:
        model = paths.random_model(paths.TINY if tiny else _BEHIND, device)
        with torch.device(device):
            model.head = DiffusionHead(_TINY_HEAD if tiny else HEAD_PRESETS["t2i-14b"])
        for parameter in model.head.parameters():
            torch.nn.init.normal_(parameter.detach(), std=0.02)
    model.requires_grad_(True).train()
    model.vae.requires_grad_(False)
    return model


@contextlib.contextmanager
def loss_of(way: str, model: BitDanceModel, *, compiled: bool) -> Iterator[Callable[..., Tensor]]:
    """The loss of a batch as `way` computes it; without `compiled` nothing is compiled."""
    path, _, extra = way.partition(", ")
    path = way if path == "published" else path
    with training.going(path, model, compiled=compiled):

        def loss(*batch: object) -> Tensor:
            return model(*batch).mean()

        whole = extra == "compiled" and compiled
        yield torch.compile(loss, dynamic=False) if whole else loss


def _time(context: Context, name: str, batch: int, way: str) -> None:
    """Milliseconds of a step, and megabytes that it takes beyond the weights."""
    try:
        with torch.inference_mode(False), torch.enable_grad():
            figures = _measured(context, name, batch, way)
        context.add("training", {"model": name, "batch": batch, "way": way, **figures})
    except torch.OutOfMemoryError as error:
        why = str(error).splitlines()[0]
        context.add("not timed", why, f"training: {name}, batch {batch}, {way}")
    finally:  # the next way needs the room of compiled code and memory
        torch.compiler.reset()
        gc.collect()


def _measured(context: Context, name: str, batch: int, way: str) -> dict[str, Any]:
    model = model_of(name, context.device, tiny=context.dry_run)
    torch.manual_seed(1)
    draws = training.draws(model, batch)
    tokens = paths.random_tokens(model, batch)
    labels = torch.arange(batch, device=context.device) % model.config.num_classes
    clock, losses = paths.Clock(context.device), []
    with loss_of(way, model, compiled=not context.dry_run) as loss_function:

        def step() -> None:
            model.zero_grad(set_to_none=True)
            with torch.autocast(context.device.type, torch.bfloat16, enabled=not context.dry_run):
                loss = loss_function(tokens, labels, draws)
            loss.backward()
            losses.append(loss.detach())

        for _ in range(1 if context.dry_run else _WARM_UP):
            step()
        peak = _peak_mb(context, model, step)
        ms = [1e3 * clock.seconds(step) for _ in range(1 if context.dry_run else _ROUNDS)]
    rate = context.result["limits"].get("bf16_tflop_s")
    return {
        "ms": statistics.median(ms), "all_ms": ms, "peak_mb": peak, "loss": losses[-1].item(),
        "bound_ms": 1e-9 * bound.training_flops(model, batch) / rate if rate else None,
    }  # fmt: skip


def _peak_mb(context: Context, model: BitDanceModel, step: Callable[[], None]) -> float | None:
    """Megabytes at the peak of a step, gradients included; None on the CPU."""
    if context.dry_run:
        step()
        return None
    model.zero_grad(set_to_none=True)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    step()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 1e6
