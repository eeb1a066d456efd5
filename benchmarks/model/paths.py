"""The ways to make a whole image that are timed against each other, and where their time goes."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.model.published import Published
from bitdance.models.autoencoder.autoencoder import to_uint8
from bitdance.models.class_conditional import BitDanceModel
from bitdance_kernels import CpuGraph, use_backend

OnStep = Callable[[int], None]


@dataclass(frozen=True)
class Path:
    """One way.

    Attributes:
        name: "fast" (the library's default), "plain" (the same ops without the runner) or
            "published" (plain PyTorch, as the authors' code does it).
        sample: labels and a callback after every AR step, to tokens.
        decode: tokens to uint8 images.
        trunk: object and name of the method that runs the transformer; None where a captured graph
            hides its calls.
        odd_first: the first AR step is not like the others, which stand for it in the times.
    """

    name: str
    sample: Callable[[torch.Tensor, OnStep | None], torch.Tensor]
    decode: Callable[[torch.Tensor], torch.Tensor]
    trunk: tuple[Any, str] | None
    odd_first: bool = False


def fast(model: BitDanceModel, steps: int) -> Path:
    """The library's default."""
    return _of_library("fast", model, steps, {}, None)


def plain(model: BitDanceModel, steps: int, *, autocast: torch.dtype | None) -> Path | str:
    """Reference ops without the runner; or why this version has no such mode."""
    if "mode" not in inspect.signature(model.sample).parameters:
        return "this version's sample has no mode='plain'"
    return _of_library("plain", model, steps, {"mode": "plain"}, autocast)


def published(
    model: BitDanceModel, steps: int, *, compiled: bool, autocast: torch.dtype | None
) -> Path:
    """As published: the model's weights as they are, products in `autocast`."""
    baseline = Published(model, compiled=compiled)

    def sample(labels: torch.Tensor, on_step: OnStep | None) -> torch.Tensor:
        scale = model.config.cfg_scale
        with _casting(model, autocast):
            return baseline.sample(labels, steps=steps, cfg_scale=scale, on_step=on_step)

    def decode(tokens: torch.Tensor) -> torch.Tensor:
        with _casting(model, autocast):
            return to_uint8(baseline.decode(tokens).float())

    return Path("published", sample, decode, (baseline, "trunk"), odd_first=compiled)


def _of_library(
    name: str,
    model: BitDanceModel,
    steps: int,
    mode: dict[str, Any],
    autocast: torch.dtype | None,
) -> Path:
    def sample(labels: torch.Tensor, on_step: OnStep | None) -> torch.Tensor:
        with _casting(model, autocast):
            return model.sample(
                labels,
                steps=steps,
                cfg_scale=model.config.cfg_scale,
                seeds=[0] * len(labels),
                sample_ids=range(len(labels)),
                on_step=None if on_step is None else lambda result: on_step(result.step),
                **mode,
            )

    def decode(tokens: torch.Tensor) -> torch.Tensor:
        backend = use_backend("reference") if mode else contextlib.nullcontext()
        with torch.no_grad(), _casting(model, autocast), backend:
            return model.vae.decode_pixels(model.to_codes(tokens))

    captured = model.freqs.is_cuda or CpuGraph.unavailable() is None
    hidden = captured and not mode
    return Path(name, sample, decode, None if hidden else (model.layers, "decode"))


def _casting(model: BitDanceModel, dtype: torch.dtype | None) -> torch.autocast:
    return torch.autocast(model.freqs.device.type, dtype=dtype, enabled=dtype is not None)


@contextlib.contextmanager
def around(
    owner: Any, name: str, before: Callable[[], Any], after: Callable[[Any], None]
) -> Iterator[None]:
    """Inside, calls of ``owner.name`` are between `before` and `after`, which gets its result."""
    original = getattr(owner, name)

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        mark = before()
        result = original(*args, **kwargs)
        after(mark)
        return result

    object.__setattr__(owner, name, wrapped)
    try:
        yield
    finally:
        object.__delattr__(owner, name)
