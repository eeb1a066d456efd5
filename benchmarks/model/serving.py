"""Requests that arrive at random: slots against one batch after the other.

The bundled model draws an image a request, on one thread. Time is the processor's, of this process:
a request arrives when so much has been computed, and while nothing is to do, the clock is set to
the next arrival. So other programs on the machine lengthen no latency. HTTP is no part of it.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple
from unittest import mock

import torch

from bitdance import BitDancePipeline
from bitdance.sampling import graphs
from bitdance.sampling.ar_sampler import guidance_at
from bitdance.sampling.slot_sequences import ClassSlots
from bitdance.sampling.slots import SlotDecoder, SlotImage
from bitdance.sampling.workspace import Pool, Workspace

__all__ = ["Amounts", "Request", "arrivals", "batches", "measure", "slots"]

AT_MOST = 0.6
"""Mean latency with slots, of that with batches."""


class Amounts(NamedTuple):
    """How much is measured.

    Attributes:
        requests: requests of a turn.
        loads: arrivals, of the images that a batch of one draws in the same time.
        slots: slots of the decoders.
        batch: maximum number of images of a batch.
        turns: turns of both ways, with other arrivals each.
    """

    requests: int = 64
    loads: tuple[float, ...] = (0.5, 0.8, 2.0)
    slots: tuple[int, ...] = (2, 8)
    batch: int = 8
    turns: int = 3


class Request(NamedTuple):
    """An image that is asked for at a time, in seconds."""

    arrival: float
    number: int


class Clock:
    """Processor time since the start, without waits."""

    def __init__(self) -> None:
        self.now = 0.0

    @contextmanager
    def running(self) -> Iterator[None]:
        """Inside, time passes."""
        began = time.process_time()
        yield
        self.now += time.process_time() - began


Latencies = dict[int, float]


def arrivals(count: int, mean: float, seed: int) -> list[Request]:
    """Requests at random times, with exponential gaps of `mean` seconds."""
    draw, now, requests = random.Random(seed), 0.0, []
    for number in range(count):
        now += draw.expovariate(1 / mean)
        requests.append(Request(now, number))
    return requests


def batches(pipeline: BitDancePipeline, requests: Sequence[Request], size: int) -> Latencies:
    """Latencies where all that wait, at most `size`, are drawn as one batch."""
    clock, waiting, latencies = Clock(), list(requests), {}
    while waiting:
        clock.now = max(clock.now, waiting[0].arrival)
        batch = [request for request in waiting[:size] if request.arrival <= clock.now]
        del waiting[: len(batch)]
        with clock.running():
            numbers = [request.number for request in batch]
            pipeline([n % 10 for n in numbers], seed=numbers, output_type="uint8")
        latencies.update({r.number: clock.now - r.arrival for r in batch})
    return latencies


def slots(
    pipeline: BitDancePipeline, decoder: SlotDecoder[int], requests: Sequence[Request]
) -> tuple[Latencies, dict[int, torch.Tensor]]:
    """Latencies, and packed bits, where requests enter and leave between AR steps."""
    clock, waiting, latencies, bits = Clock(), list(requests), {}, {}
    steps, scale = pipeline.config.ar_steps, pipeline.config.cfg_scale
    guidance = tuple(guidance_at(i, steps, scale, "linear") for i in range(steps))
    while waiting or decoder.active:
        if not decoder.active:
            clock.now = max(clock.now, waiting[0].arrival)
        with clock.running():
            while waiting and decoder.free and waiting[0].arrival <= clock.now:
                number = waiting.pop(0).number
                decoder.add(SlotImage(number % 10, guidance, seed=number))
            finished = [slot for slot in decoder.advance() if slot.finished]
        for slot in finished:
            number = slot.image.seed
            with clock.running():
                pipeline.decode(slot.packed[None], seed=number, output_type="uint8")
            latencies[number] = clock.now - requests[number].arrival
            bits[number] = slot.packed
    return latencies, bits


def measure(amounts: Amounts | None = None) -> dict[str, Any]:
    """A row for each load and number of slots.

    Raises:
        AssertionError: slots give an image other bits than it has alone.
    """
    amounts = amounts or Amounts()
    torch.set_num_threads(1)
    pipeline = BitDancePipeline.from_pretrained("fashion")
    pipeline.set_progress_bar_config(disable=True)
    # Buffers and graphs of batches of all sizes are kept, as those of slots are.
    pipeline.sampler.workspaces = Pool(partial(Workspace, amounts.batch))
    steps = pipeline.num_inference_steps

    def with_slots(decoder: SlotDecoder[int], requests: Sequence[Request]) -> Latencies:
        latencies, bits = slots(pipeline, decoder, requests)
        for number in sorted(bits)[:4]:
            alone = pipeline([number % 10], seed=number, output_type="latent").images[0]
            assert torch.equal(bits[number], alone), number
        return latencies

    ways: dict[int | None, Callable[[Sequence[Request]], Latencies]] = {
        None: lambda requests: batches(pipeline, requests, amounts.batch),
        **{
            count: partial(
                with_slots,
                SlotDecoder(
                    ClassSlots(pipeline.model), guided=True, num_inference_steps=steps, slots=count
                ),
            )
            for count in amounts.slots
        },
    }
    with mock.patch.object(graphs, "CALLS_BEFORE_CAPTURE", 0):  # which are captured here
        for size in (*range(1, amounts.batch + 1), *range(1, amounts.batch + 1)):
            for way in ways.values():
                way([Request(0.0, number) for number in range(size)])
    alone = statistics.median(batches(pipeline, [Request(0.0, n)], 1)[n] for n in range(12))
    rows = []
    for load in amounts.loads:
        means: dict[int | None, list[float]] = {count: [] for count in ways}
        for turn in range(amounts.turns):
            requests = arrivals(amounts.requests, alone / load, seed=turn)
            for count, way in ways.items():
                means[count].append(statistics.mean(way(requests).values()))
        for count in amounts.slots:
            rows.append({
                "what": f"{amounts.requests} requests, load {load}, slots: {count}",
                "slots_ms": 1e3 * statistics.median(means[count]),
                "batches_ms": 1e3 * statistics.median(means[None]),
                "ratio": _ratio(means[count], means[None]),
                "at_most": AT_MOST,
            })  # fmt: skip
    nothing: dict[str, Any] = {"rows": [], "images": [], "limits": {}}  # what other results have
    settings = {"alone_ms": 1e3 * alone, **amounts._asdict()}
    return {**nothing, "serving": {"settings": settings, "rows": rows}}


def _ratio(ours: Sequence[float], others: Sequence[float]) -> tuple[float, float, float]:
    """Median, minimum and maximum of the ratios of pairs."""
    ratios = sorted(one / other for one, other in zip(ours, others, strict=True))
    return statistics.median(ratios), ratios[0], ratios[-1]
