"""What costs little to change: the decoder as a graph, row kernels that begin early."""

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
_ROWS = (32, 128, 2048)
_WIDTH = 768
_PAIRS = 30  # of a product and a pass over rows, in a graph


def steps(context: Context) -> Sequence[Step]:
    """The decoder, then the row kernels."""
    return [
        ("decoder", functools.partial(_decoder, context)),
        ("row kernels that begin early", functools.partial(_row_kernels, context)),
    ]


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


def _row_kernels(context: Context) -> None:
    """Microseconds of a product and a pass over its rows, which begins early or in order."""
    device, dtype = context.device, torch.float32 if context.dry_run else torch.bfloat16
    pairs = 1 if context.dry_run else _PAIRS
    for rows in _ROWS[:1] if context.dry_run else _ROWS:
        x, y = torch.randn(2, rows, _WIDTH, device=device).to(dtype)
        weight = (torch.randn(_WIDTH, _WIDTH, device=device) / _WIDTH**0.5).to(dtype)
        tensors = x, weight, y
        ways = {
            name: functools.partial(_chain, *tensors, pairs, early)
            for name, early in (("in order", False), ("early", not context.dry_run))
        }
        common.time_ways(context, "row kernel", ways, parts=pairs, calls=10, rows=rows)


def _chain(x: torch.Tensor, weight: torch.Tensor, y: torch.Tensor, pairs: int, early: bool) -> None:
    from benchmarks.gpu import probes  # needs Triton

    options = {"launch_pdl": True} if early else {}
    for _ in range(pairs):
        torch.mm(x, weight, out=y)
        probes.row_kernel[(len(x),)](y, x, _WIDTH, BLOCK=1024, PDL=early, num_warps=4, **options)
