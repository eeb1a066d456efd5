"""Pipelines and slot decoders in threads, with random yields.

Six threads draw pictures of both models with one pipeline of each, decode them, draw previews from
callbacks, and run slot decoders of their own on the same models. Each yields to the others at about
one in 300 lines of ``bitdance.sampling``, and the interpreter switches every ten microseconds. All
bits are those that the same call gives alone. A seed repeats what is drawn and where threads yield;
the order in which they go on is the operating system's.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from random import Random
from types import FrameType
from typing import Any

import torch

import bitdance.sampling
from bitdance import BitDanceT2IPipeline
from bitdance.sampling import graphs
from bitdance.sampling.ar_sampler import guidance_at
from bitdance.sampling.slot_sequences import ClassSlots
from bitdance.sampling.slots import SlotDecoder, SlotImage
from tests.model.helpers.tiny import tiny_pipeline
from tests.model.helpers.words import SizedWords
from tests.model.models.test_text_to_image import tiny as tiny_text_to_image
from tests.reliability.promise import Promise

__all__ = ["PROMISES", "measure", "stress"]

PROMISES = (
    Promise(
        "calls of shared pipelines in threads",
        "Pictures drawn, decoded and previewed in threads have the bits that they have alone",
        600,
        "calls",
        "nightly",
    ),
)
THREADS = 6
_KINDS = 10  # of calls of each sort
_YIELD_EVERY = 300  # lines
_SWITCH_SECONDS = 1e-5
_FOLDER = str(bitdance.sampling.__path__[0])

Trace = Callable[[FrameType, str, Any], Any]


class _Calls:
    """Calls on pipelines that threads share, by sort and number."""

    def __init__(self) -> None:
        self.classes = tiny_pipeline()
        self.texts = BitDanceT2IPipeline(tiny_text_to_image(), SizedWords())
        self.texts.set_progress_bar_config(disable=True)
        self.latents = [self.draw(number) for number in range(3)]
        self.sorts: tuple[Callable[[int], torch.Tensor], ...] = (
            self.draw, self.draw_text, self.decode, self.preview, self.slots,
        )  # fmt: skip

    def draw(self, number: int, **options: Any) -> torch.Tensor:
        """Bits of one to three pictures of classes."""
        images: torch.Tensor = self.classes(
            [(number + i) % 5 for i in range(1 + number % 3)], seed=100 + number,
            num_inference_steps=2, guidance_scale=1.0 if number % 4 == 3 else 2.0,
            output_type="latent", **options,
        ).images  # fmt: skip
        return images

    def draw_text(self, number: int) -> torch.Tensor:
        """Bits of one or two pictures of texts."""
        images: torch.Tensor = self.texts(
            ["abcde"[(number + i) % 5] * (1 + number % 4) for i in range(1 + number % 2)],
            seed=number, height=8, width=12, num_inference_steps=2,
            guidance_scale=1.0 if number % 3 == 2 else 2.0, output_type="latent",
        ).images  # fmt: skip
        return images

    def decode(self, number: int) -> torch.Tensor:
        """Pixels of one of a few latents."""
        pixels: torch.Tensor = self.classes.decode(
            self.latents[number % len(self.latents)], output_type="uint8"
        )
        return pixels

    def preview(self, number: int) -> torch.Tensor:
        """Bits of a call whose callback draws another picture at its first step."""
        inner: list[torch.Tensor] = []

        def draw(pipe: Any, step: int, *_: Any) -> None:
            if step == 0:
                inner.append(self.draw(number + 1))

        outer = self.draw(number, callback_on_step_end=draw)
        return torch.cat([outer.flatten(), inner[0].flatten()])

    def alone(self, sort: int, number: int) -> torch.Tensor:
        """What a call gives alone: of a preview, both pictures after each other."""
        if self.sorts[sort] == self.preview:
            return torch.cat([self.draw(n).flatten() for n in (number, number + 1)])
        return self.sorts[sort](number)

    def slots(self, number: int) -> torch.Tensor:
        """Bits of pictures that enter and leave the slots of a decoder at random steps."""
        random, steps = Random(number), self.classes.config.ar_steps
        guidance = tuple(guidance_at(i, steps, 2.0, "constant") for i in range(steps))
        decoder = SlotDecoder(
            ClassSlots(self.classes.model), guided=True, num_inference_steps=2, slots=2
        )
        waiting = [SlotImage(i % 5, guidance, seed=number, sample_id=i) for i in range(4)]
        packed: dict[int, torch.Tensor] = {}
        while waiting or decoder.active:
            while waiting and decoder.free and random.random() < 0.6:
                decoder.add(waiting.pop(0))
            for slot in decoder.advance():
                if slot.finished:
                    packed[slot.image.sample_id] = slot.packed
        return torch.stack([bits for _, bits in sorted(packed.items())])


def _yielding(random: Random) -> Trace:
    """A trace function that lets other threads run at random lines of the samplers."""

    def trace(frame: FrameType, event: str, _: Any) -> Trace | None:
        if event == "call" and not frame.f_code.co_filename.startswith(_FOLDER):
            return None
        if random.random() * _YIELD_EVERY < 1:
            time.sleep(random.choice((0, 0, 0.0005)))
        return trace

    return trace


@contextmanager
def _eager_switches() -> Iterator[None]:
    """A context in which threads take turns often, and graphs are captured at once."""
    before, calls = sys.getswitchinterval(), graphs.CALLS_BEFORE_CAPTURE
    sys.setswitchinterval(_SWITCH_SECONDS)
    graphs.CALLS_BEFORE_CAPTURE = 0
    try:
        yield
    finally:
        sys.setswitchinterval(before)
        graphs.CALLS_BEFORE_CAPTURE = calls


def stress(calls: int, seed: int) -> int:
    """Make `calls` calls in threads and compare them with the same made alone.

    Returns:
        The number of calls.

    Raises:
        AssertionError: a call gives other bits, or fails, in a thread.
    """
    with _eager_switches():
        work = _Calls()
        kinds = [(sort, n) for sort in range(len(work.sorts)) for n in range(_KINDS)]
        kinds = Random(seed).sample(kinds, min(len(kinds), max(THREADS, calls // 4)))
        alone = {kind: work.alone(*kind) for kind in kinds}
        start = threading.Barrier(THREADS)

        def run(thread: int) -> int:
            random = Random(seed * THREADS + thread)
            start.wait()
            traced = sys.gettrace()
            sys.settrace(_yielding(random))
            try:
                count = len(range(thread, calls, THREADS))
                for _ in range(count):
                    sort, number = random.choice(kinds)
                    what = f"leases seed {seed}: {work.sorts[sort].__name__} {number}"
                    try:
                        found = work.sorts[sort](number)
                    except Exception as error:
                        raise AssertionError(f"{what} raised {error!r} in a thread") from error
                    if not torch.equal(found, alone[sort, number]):
                        raise AssertionError(f"{what} gave other bits in a thread than alone")
            finally:
                sys.settrace(traced)
            return count

        with ThreadPoolExecutor(THREADS) as pool:
            return sum(pool.map(run, range(THREADS)))


def measure(scale: float) -> dict[str, float]:
    """Calls in threads with the bits that they have alone; see ``Measure``."""
    goal, done, seed = round(PROMISES[0].goal * scale), 0, 0
    while done < goal:
        done += stress(min(120, goal - done), seed)
        seed += 1
    return {PROMISES[0].name: done}
