"""The ways to make a whole image that are timed against each other, and the clock for them."""

from __future__ import annotations

import contextlib
import itertools
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from benchmarks import timing
from benchmarks.model.published import Published
from bitdance.models.autoencoder.autoencoder import to_uint8
from bitdance.models.class_conditional import BitDanceModel
from bitdance.models.config import AutoencoderConfig, ModelConfig
from bitdance.sampling import graphs
from bitdance.sampling.class_conditional import ClassConditionalSampler
from bitdance.sampling.image_decoder import ImageDecoder
from bitdance.sampling.trunk_products import packed_transformer
from bitdance.sampling.workspace import Workspace
from bitdance_kernels import CpuGraph

OnStep = Callable[[int], None]
MIN_AR_STEPS = 3
_DECODED_AT_ONCE = 32

TINY = ModelConfig(
    dim=32, n_layer=1, n_head=2, diff_layers=2, diff_dim=64, diff_adanln_layers=1, parallel_num=4,
    latent_dim=8, down_size=2, resolution=8, num_classes=3, cls_token_num=2, cfg_scale=2.0,
    autoencoder=AutoencoderConfig(
        ch=32, ch_mult=(1, 1), num_res_blocks=1, z_channels=8, num_codebooks=1
    ),
)  # fmt: skip
"""For runs that only go through the code."""


@dataclass(frozen=True)
class Path:
    """One way.

    Attributes:
        name: "fast" (the library's default) or "published" (plain PyTorch, as the authors' code
            does it).
        sample: labels and a callback after every AR step, to tokens.
        decode: tokens to uint8 images.
        trunk: object and name of the method that runs the transformer; None where a captured graph
            hides its calls.
        odd_first: the first AR step is not like the others, which stand for it in the times.
    """

    name: str
    sample: Callable[[Tensor, OnStep | None], Tensor]
    decode: Callable[[Tensor], Tensor]
    trunk: tuple[Any, str] | None
    odd_first: bool = False


def library(model: BitDanceModel, steps: int) -> Path:
    """The library's default."""
    scale = model.config.cfg_scale
    captured = model.freqs.is_cuda or CpuGraph.unavailable() is None
    sampler, to_pixels = ClassConditionalSampler(model), ImageDecoder(model.vae)

    def sample(labels: Tensor, on_step: OnStep | None) -> Tensor:
        return sampler.sample(
            labels, num_inference_steps=steps, guidance_scale=scale, seeds=[0] * len(labels),
            sample_ids=range(len(labels)),
            on_step=None if on_step is None else lambda result: on_step(result.step),
        )  # fmt: skip

    def decode(tokens: Tensor) -> Tensor:
        with torch.no_grad():
            return to_pixels(model.to_latents(tokens))

    return Path("fast", sample, decode, None if captured else (model.layers, "decode"))


def published(
    model: BitDanceModel, steps: int, *, compiled: bool = False, autocast: torch.dtype | None = None
) -> Path:
    """As published: the model's weights as they are, products in `autocast`."""
    baseline, device = Published(model, compiled=compiled), model.freqs.device.type
    scale = model.config.cfg_scale

    def casting() -> torch.autocast:
        return torch.autocast(device, dtype=autocast, enabled=autocast is not None)

    def sample(labels: Tensor, on_step: OnStep | None) -> Tensor:
        with casting():
            return baseline.sample(
                labels, num_inference_steps=steps, guidance_scale=scale, on_step=on_step
            )

    def decode(tokens: Tensor) -> Tensor:
        with casting():
            return to_uint8(baseline.decode(tokens).float())

    return Path("published", sample, decode, (baseline, "trunk"), odd_first=compiled)


def random_model(config: ModelConfig, device: torch.device) -> BitDanceModel:
    """A model of that shape with weights of 0.02 everywhere, those that begin at 0 too."""
    with torch.device(device):
        model = BitDanceModel(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter.detach(), std=0.02)
    model.vae.decoder.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return model.requires_grad_(False)


def random_tokens(model: BitDanceModel, batch: int) -> Tensor:
    """Bits like those that are sampled, as cheap to decode."""
    config, like = model.config, model.norm.weight
    uniform = torch.rand(batch, config.tokens, config.token_bits, device=like.device)
    return torch.where(uniform > 0.5, 1.0, -1.0).to(like.dtype)


class Clock:
    """Marks on the device's own time line, read when all work is done.

    On a CPU it is the processor's clock for one thread, which work of others does not move.
    """

    def __init__(self, device: torch.device) -> None:
        self.cuda = device.type == "cuda"
        self._now = time.process_time if torch.get_num_threads() == 1 else time.perf_counter

    def mark(self) -> Any:
        """Now, as the device sees it."""
        if not self.cuda:
            return self._now()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def between(self, *marks: Any) -> list[float]:
        """Seconds from mark to mark; waits for the device."""
        if self.cuda:
            torch.cuda.synchronize()
        pairs = itertools.pairwise(marks)
        return [a.elapsed_time(b) / 1e3 if self.cuda else b - a for a, b in pairs]

    def seconds(self, function: Callable[[], object]) -> float:
        """Of one call."""
        begin = self.mark()
        function()
        return self.between(begin, self.mark())[0]


class _Stop(Exception):  # noqa: N818  (unwinds a run that has been timed for long enough)
    pass


def sampling(
    way: Path, labels: Tensor, ar_steps: int, seconds: float, *, max_steps: int | None = None
) -> dict[str, Any]:
    """Seconds of sampling a batch, and of the transformer in it where its calls are seen.

    Once `seconds` are over it stops, but not before some steps; steps that are alike then stand for
    those that are missing.

    Returns:
        "sampling", perhaps "trunk", and "ran", the AR steps of the `ar_steps` that ran.
    """
    clock = Clock(labels.device)
    if way.trunk is None:  # one graph a step: nothing to see inside, and no need to stop
        return {"ran": ar_steps, "sampling": clock.seconds(lambda: way.sample(labels, None))}
    start = time.monotonic()
    marks: list[Any] = [clock.mark()]
    trunk: list[tuple[Any, Any]] = []

    def on_step(step: int) -> None:
        marks.append(clock.mark())
        done = step + 1
        late = done >= MIN_AR_STEPS and time.monotonic() - start > seconds
        if done < ar_steps and (late or done == max_steps):
            raise _Stop

    owner, name = way.trunk
    inner = getattr(owner, name)

    def watched(*args: Any, **kwargs: Any) -> Any:
        begin = clock.mark()
        result = inner(*args, **kwargs)
        trunk.append((begin, clock.mark()))
        return result

    with mock.patch.object(owner, name, watched), contextlib.suppress(_Stop):
        way.sample(labels, on_step)
        marks[-1] = clock.mark()  # what comes after the last step belongs to it
    seconds_of = {"sampling": clock.between(*marks)}
    ran = len(seconds_of["sampling"])
    if len(trunk) == ran:
        seconds_of["trunk"] = [clock.between(*pair)[0] for pair in trunk]
    times: dict[str, Any] = {"ran": ran}
    for part, values in seconds_of.items():
        alike = values[int(way.odd_first and ran > 1) :]
        missing = ar_steps - len(alike)
        times[part] = sum(alike) + missing * statistics.fmean(alike[1:] or alike)
    return times


def trunk_step(model: BitDanceModel, batch: int) -> Callable[[], tuple[Tensor, ...]]:
    """The transformer's part of an AR step in the middle of a guided batch of images.

    By the plan that the sampler would choose now.
    """
    config, like = model.config, model.norm.weight
    rows, middle = 2 * batch, len(model.freqs) // 2
    cache = ClassConditionalSampler(model).reserve_cache(Workspace(max_runs=1), rows)
    x = torch.randn(rows, config.parallel_num, config.dim, device=like.device).to(like.dtype)
    packed = packed_transformer(model.layers, rows * config.parallel_num, like.dtype)
    if packed is not None:
        packed.load()

    def step() -> tuple[Tensor, ...]:
        cache.lengths.fill_(middle)
        with torch.no_grad():
            if packed is None:
                return (model.decode_step(x, cache),)
            return (model.norm(packed.decode(model.emb_norm(x), model.freqs, cache)),)

    return step


def captured_trunk_step(model: BitDanceModel, batch: int) -> Callable[[], float]:
    """Seconds of ``trunk_step`` as a captured step has it, measured by calling what is returned."""
    step, run = trunk_step(model, batch), graphs.make_runner(model.freqs.device)
    for _ in range(1 + graphs.CALLS_BEFORE_CAPTURE):
        run(step)
    return lambda: Clock(model.freqs.device).seconds(lambda: run(step))


def decoding(way: Path, tokens: Tensor) -> float:
    """Seconds of decoding a batch of tokens."""
    parts = tokens.split(_DECODED_AT_ONCE)
    return Clock(tokens.device).seconds(lambda: [way.decode(part) for part in parts])


def figures(rounds: Sequence[dict[str, Any]], batch: int) -> dict[str, Any]:
    """Milliseconds an image: median, minimum, quartiles, and the medians of the parts.

    From rounds of "sampling", "decoder" and perhaps "trunk" in seconds a batch.
    """
    whole = timing.spread([r["sampling"] + r["decoder"] for r in rounds])
    parts = {"decoder": [r["decoder"] for r in rounds]}
    if all("trunk" in r for r in rounds):
        parts["trunk"] = [r["trunk"] for r in rounds]
        parts["head"] = [r["sampling"] - r["trunk"] for r in rounds]
    names = {"ms": "median_us", "min_ms": "min_us", "q25_ms": "q25_us", "q75_ms": "q75_us"}
    return {
        **{name: whole[key] / 1e3 / batch for name, key in names.items()},
        "rounds": whole["rounds"],
        "parts_ms": {k: 1e3 * statistics.median(v) / batch for k, v in parts.items()},
    }
