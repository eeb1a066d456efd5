"""Runs the models of the page in a thread of their own, one call at a time."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import CancelledError, ThreadPoolExecutor
from typing import Any, NamedTuple, TypeVar

import torch
from PIL import Image

from bitdance.integrations.demo.models import DemoModel, Picture, Settings
from bitdance.pipelines.base import GenerationCancelled

__all__ = ["Progress", "Run", "Runner"]

_PREVIEW_SHARE = 0.25  # of the time of a run, at most
_PREVIEW_SECONDS = 0.1  # between two previews, at least

T = TypeVar("T")


class Progress(NamedTuple):
    """How far a run is.

    Attributes:
        step: patches of each image that are drawn.
        ar_steps: patches of an image.
        previews: the images so far; None if they were not decoded after this patch.
    """

    step: int
    ar_steps: int
    previews: list[Image.Image] | None


class Run:
    """A run that waits or is under way: its newest progress, and whether it is to stop.

    Of progress only the newest that was not read is kept, so a slow reader costs no memory.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._newest: Progress | None = None
        self._ended = False
        self.cancelled = False

    def cancel(self) -> None:
        """Stop after the patch that is being drawn, or before the first."""
        self.cancelled = True

    def publish(self, progress: Progress) -> None:
        """Replace the progress; previews that nobody has read stay until there are newer ones."""
        with self._changed:
            if progress.previews is None and self._newest is not None:
                progress = progress._replace(previews=self._newest.previews)
            self._newest = progress
            self._changed.notify_all()

    def end(self) -> None:
        """There is no more progress."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def read(self) -> Iterator[Progress]:
        """The newest progress each time that there is some, until the run ends."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._newest is not None or self._ended)
                progress, self._newest = self._newest, None
            if progress is None:
                return
            yield progress


class Runner:
    """Runs models, one call at a time, in the order of the calls.

    All calls share one thread, so PyTorch keeps the threads that it has started there.

    Args:
        clock: returns seconds; decides which patches are followed by a preview.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._closed = False
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="bitdance-demo")

    def draw(
        self, model: DemoModel, settings: Settings, run: Run
    ) -> Generator[Progress | list[Picture], None, None]:
        """Draw pictures; progress while they are drawn, and at the end the pictures.

        A reader that closes the iterator stops the run.

        Args:
            model: the model.
            settings: what to draw.
            run: the run, by which another thread may cancel it.

        Raises:
            GenerationCancelled: the run was cancelled, or the runner closed.
            NotFiniteError: the model computes NaN or infinity.
        """
        future = self._executor.submit(self._draw, model, settings, run)
        future.add_done_callback(lambda _: run.end())
        try:
            yield from run.read()
            yield future.result()
        except CancelledError:
            raise GenerationCancelled("stopped before the first patch") from None
        finally:
            run.cancel()

    def call(self, function: Callable[..., T], *arguments: Any) -> T:
        """The result of a function that uses a model."""
        return self._executor.submit(function, *arguments).result()

    def close(self) -> None:
        """Stop the run that is under way after its patch, and refuse others."""
        self._closed = True
        self._executor.shutdown(wait=False, cancel_futures=True)

    def _draw(self, model: DemoModel, settings: Settings, run: Run) -> list[Picture]:
        pace = _Pace(self._clock)

        def check(after: str) -> None:
            if run.cancelled or self._closed:
                raise GenerationCancelled(f"stopped {after}")

        def on_step(_: Any, step: int, left: int, tensors: dict[str, torch.Tensor]) -> None:
            check(f"after patch {step + 1} of {step + 1 + left}")
            previews = None
            if left and pace.is_due():
                with pace:
                    previews = model.preview(tensors["generated_latents"], settings)
            run.publish(Progress(step + 1, step + 1 + left, previews))

        check("before the first patch")
        packed = model.sample(settings, on_step)
        check("before decoding")
        return model.pictures(packed, settings)


class _Pace:
    """Leaves time between previews, more for a decoder that takes longer."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock, self._began, self._next = clock, 0.0, float("-inf")

    def is_due(self) -> bool:
        """Whether there may be a preview now."""
        return self._clock() >= self._next

    def __enter__(self) -> None:
        self._began = self._clock()

    def __exit__(self, *_: object) -> None:
        now = self._clock()
        taken = now - self._began
        self._next = now + max(_PREVIEW_SECONDS, taken * (1 / _PREVIEW_SHARE - 1))
