"""The clock of whole images: all of it, and of the trunk, the head and the decoder."""

from __future__ import annotations

import contextlib
import itertools
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from benchmarks import timing
from benchmarks.model import paths
from bitdance.models.class_conditional import BitDanceModel
from bitdance.models.config import AutoencoderConfig, ModelConfig
from bitdance.sampling import graphs
from bitdance.sampling.workspace import Workspace

LEAST_AR_STEPS = 3
_DECODED_AT_ONCE = 32

TINY = ModelConfig(
    dim=32, n_layer=1, n_head=2, diff_layers=2, diff_dim=64, diff_adanln_layers=1, parallel_num=4,
    latent_dim=8, down_size=2, resolution=8, num_classes=3, cls_token_num=2, cfg_scale=2.0,
    autoencoder=AutoencoderConfig(
        ch=32, ch_mult=(1, 1), num_res_blocks=1, z_channels=8, num_codebooks=1
    ),
)  # fmt: skip
"""For runs that only go through the code."""


class _Enough(Exception):  # noqa: N818  (unwinds a run that has been timed for long enough)
    pass


class Clock:
    """Marks on the device's own time line, read when all work is done."""

    def __init__(self, device: torch.device) -> None:
        self.cuda = device.type == "cuda"

    def mark(self) -> Any:
        """Now, as the device sees it."""
        if not self.cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def finish(self) -> None:
        """Wait for the device."""
        if self.cuda:
            torch.cuda.synchronize()

    def between(self, begin: Any, end: Any) -> float:
        """Seconds, after ``finish``."""
        return begin.elapsed_time(end) / 1e3 if self.cuda else end - begin


def random_model(config: ModelConfig, device: torch.device) -> BitDanceModel:
    """A model of that shape with weights of 0.02 everywhere, those that begin at 0 too."""
    with torch.device(device):
        model = BitDanceModel(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter.detach(), std=0.02)
    model.vae.decoder.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return model.requires_grad_(False)


def sampling(
    way: paths.Path, labels: torch.Tensor, ar_steps: int, seconds: float, *, most: int | None = None
) -> dict[str, Any]:
    """Seconds of sampling a batch, and of the transformer in it where its calls are seen.

    Once `seconds` are over it stops, but not before some steps; steps that are alike then stand for
    those that are missing.

    Args:
        way: what to time.
        labels: one an image.
        ar_steps: of the model.
        seconds: after which to stop.
        most: AR steps to run at most.

    Returns:
        "sampling", perhaps "trunk", and "ran", the AR steps that ran.
    """
    clock = Clock(labels.device)
    if way.trunk is None:  # one graph a step: nothing to see inside, and no need to stop
        begin = clock.mark()
        way.sample(labels, None)
        end = clock.mark()
        clock.finish()
        return {"ran": ar_steps, "sampling": clock.between(begin, end)}
    start = time.monotonic()
    marks, trunk = [clock.mark()], []

    def on_step(step: int) -> None:
        marks.append(clock.mark())
        done = step + 1
        late = done >= LEAST_AR_STEPS and time.monotonic() - start > seconds
        if done < ar_steps and (late or done == most):
            raise _Enough

    def after(mark: Any) -> None:
        trunk.append((mark, clock.mark()))

    around = paths.around(*way.trunk, before=clock.mark, after=after)
    with around, contextlib.suppress(_Enough):
        way.sample(labels, on_step)
        marks[-1] = clock.mark()  # what comes after the last step belongs to it
    clock.finish()
    ran = len(marks) - 1
    of_steps = [clock.between(a, b) for a, b in itertools.pairwise(marks)]
    skipped = int(way.odd_first and ran > 1)
    times: dict[str, Any] = {"ran": ran, "sampling": _scaled(of_steps[skipped:], ar_steps)}
    if len(trunk) == ran:
        of_trunk = [clock.between(a, b) for a, b in trunk]
        times["trunk"] = _scaled(of_trunk[skipped:], ar_steps)
    return times


def _scaled(values: Sequence[float], count: int) -> float:
    missing = count - len(values)
    return sum(values) + missing * statistics.fmean(values[1:] or values)


def trunk_step(model: BitDanceModel, batch: int) -> Callable[[], tuple[torch.Tensor, ...]]:
    """The transformer's part of an AR step in the middle of a guided batch of images."""
    config, like = model.config, model.norm.weight
    rows, middle = 2 * batch, len(model.freqs) // 2
    cache = model.reserve_cache(Workspace(max_runs=1), rows)
    x = torch.randn(rows, config.parallel_num, config.dim, device=like.device).to(like.dtype)

    def step() -> tuple[torch.Tensor, ...]:
        cache.lengths.fill_(middle)
        with torch.no_grad():
            return (model.norm(model.layers.decode(model.emb_norm(x), model.freqs, cache, None)),)

    return step


def captured_trunk_step(model: BitDanceModel, batch: int) -> Callable[[], float]:
    """Seconds of ``trunk_step`` as a captured step has it, measured by calling what is returned."""
    step, run = trunk_step(model, batch), graphs.step_for(model.freqs.device)

    def seconds() -> float:
        clock = Clock(model.freqs.device)
        begin = clock.mark()
        run(step)
        end = clock.mark()
        clock.finish()
        return clock.between(begin, end)

    for _ in range(1 + graphs.CALLS_BEFORE_CAPTURE):
        seconds()
    return seconds


def decoding(way: paths.Path, tokens: torch.Tensor) -> float:
    """Seconds of decoding a batch of tokens."""
    clock = Clock(tokens.device)
    begin = clock.mark()
    for part in tokens.split(_DECODED_AT_ONCE):
        way.decode(part)
    end = clock.mark()
    clock.finish()
    return clock.between(begin, end)


def random_tokens(model: BitDanceModel, batch: int) -> torch.Tensor:
    """Bits like those that are sampled, as cheap to decode."""
    config, like = model.config, model.norm.weight
    uniform = torch.rand(batch, config.tokens, config.token_bits, device=like.device)
    return torch.where(uniform > 0.5, 1.0, -1.0).to(like.dtype)


def figures(rounds: Sequence[dict[str, Any]], batch: int) -> dict[str, Any]:
    """Milliseconds an image: median, least, quartiles, and the medians of the parts.

    Args:
        rounds: of "sampling", "decoder" and perhaps "trunk" in seconds a batch.
        batch: images of a batch.
    """
    whole = timing.spread([r["sampling"] + r["decoder"] for r in rounds])
    parts = {"decoder": [r["decoder"] for r in rounds]}
    if all("trunk" in r for r in rounds):
        parts["trunk"] = [r["trunk"] for r in rounds]
        parts["head"] = [r["sampling"] - r["trunk"] for r in rounds]
    return {
        **milliseconds(whole, batch),
        "parts_ms": {k: 1e3 * statistics.median(v) / batch for k, v in parts.items()},
    }


def milliseconds(spread: dict[str, float], batch: int) -> dict[str, float]:
    """What ``timing.spread`` gives of a batch, for an image."""
    names = {"ms": "median_us", "min_ms": "min_us", "q25_ms": "q25_us", "q75_ms": "q75_us"}
    times = {name: spread[key] / 1e3 / batch for name, key in names.items()}
    return {**times, "rounds": spread["rounds"]}
