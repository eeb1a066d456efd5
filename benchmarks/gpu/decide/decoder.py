"""Decoding as a graph, and without."""

from __future__ import annotations

import functools
import statistics
from collections.abc import Callable, Sequence
from unittest import mock

import torch

from benchmarks import timing
from benchmarks.gpu.decide import common, plans
from benchmarks.gpu.worker import Context, Step
from benchmarks.model import paths
from bitdance.sampling import image_decoder
from bitdance.sampling.image_decoder import ImageDecoder

_DECODED = (1, 2, 4, 8)


def steps(context: Context) -> Sequence[Step]:
    """One step."""
    return [("decoder", functools.partial(_decoder, context))]


def _decoder(context: Context) -> None:
    """Milliseconds of decoding a batch, the host's share included, with a graph and without."""
    model = plans.model(context, "tiny" if context.dry_run else "B-16x")
    for batch in _DECODED[:1] if context.dry_run else _DECODED:
        latents = model.to_latents(paths.random_tokens(model, batch))
        ways: dict[str, Callable[[], object]] = {}
        for name, limit in (("graph", 2**40), ("plain", 0)):
            limits = dict.fromkeys(image_decoder.MAX_CAPTURED_PIXELS, limit)
            ways[name] = functools.partial(_decode, ImageDecoder(model.vae), latents, limits)
            for _ in range(1 if context.dry_run else 5):
                ways[name]()  # the second call captures
        seconds = timing.take_turns(ways, 1 if context.dry_run else 2 * common.ROUNDS)
        for name, values in seconds.items():
            ms = [1e3 * turn.wall for turn in values]
            common.add(
                context, "decoder", batch=batch, way=name, ms=statistics.median(ms), all_ms=ms
            )


def _decode(decoder: ImageDecoder, latents: torch.Tensor, limits: dict[str, int]) -> torch.Tensor:
    with mock.patch.object(image_decoder, "MAX_CAPTURED_PIXELS", limits):
        return decoder(latents)  # which waits for the card
