"""The loop of a server: images wait, enter a slot, advance together, and are decoded.

One thread owns the slots. Another decodes finished images and previews, on a CUDA stream of its
own, while the next patches are sampled.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict, deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, Protocol

import torch

from bitdance.integrations.serving.metrics import Metrics
from bitdance.integrations.serving.models import Kind, Plan, ServedModel
from bitdance.sampling.slots import Slot, SlotDecoder, SlotImage

__all__ = ["Engine", "Listener", "QueueFullError", "StoppedError", "Work"]


class QueueFullError(Exception):
    """More images wait than may."""


class StoppedError(Exception):
    """The engine has stopped."""


class Listener(Protocol):
    """Hears of the images of a request, by their numbers in it; called in threads of the engine."""

    def progress(self, number: int, step: int, ar_steps: int) -> None:
        """So many patches of an image are sampled."""

    def partial(self, number: int, preview: int, file: bytes) -> None:
        """A preview, from 0 on."""

    def finished(self, number: int, file: bytes) -> None:
        """An image is complete."""

    def failed(self, error: Exception) -> None:
        """No more images come."""


class _Job:
    """An image of a request."""

    def __init__(self, work: Work, image: SlotImage[Any], number: int) -> None:
        self.work, self.image, self.number = work, image, number
        self.since = time.monotonic()
        self.slot: Slot[Any] | None = None
        self.previews = 0
        self.ended = False


class Work:
    """A request in the engine.

    Attributes:
        plan: what it asks for.
        cancelled: whether nobody waits for it any more.
    """

    def __init__(self, plan: Plan, listener: Listener) -> None:
        self.plan, self.listener, self.cancelled = plan, listener, False
        self.jobs = [_Job(self, image, i) for i, image in enumerate(plan.images)]


class Engine:
    """Samples the images of any number of requests.

    Images are taken in the order of their requests. Those of different kinds (with guidance or
    without, by their number of denoising steps) have slots of their own, which take turns at AR
    steps; memory is kept for the `max_kinds` kinds that were used last.

    Args:
        model: the model.
        slots: images of a kind at a time.
        max_waiting: images that may wait beyond those in the slots of one kind.
        max_kinds: kinds of images at a time.
        metrics: counters.
    """

    def __init__(
        self,
        model: ServedModel,
        *,
        slots: int,
        max_waiting: int = 256,
        max_kinds: int = 2,
        metrics: Metrics | None = None,
    ) -> None:
        self.model, self.slots, self.max_waiting = model, slots, max_waiting
        self.max_kinds, self.metrics = max_kinds, metrics or Metrics()
        self._changed = threading.Condition()
        self._waiting: deque[_Job] = deque()
        self._lanes: OrderedDict[Kind, tuple[SlotDecoder[Any], list[_Job]]] = OrderedDict()
        self._accepted = 0  # images that are neither delivered nor given up
        self._stopping = False
        self._error: Exception | None = None
        self._decoding = ThreadPoolExecutor(1, thread_name_prefix="bitdance-decode")
        device = model.device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._thread = threading.Thread(target=self._run, name="bitdance-slots", daemon=True)

    def start(self) -> None:
        """Begin to sample."""
        self._thread.start()

    @property
    def healthy(self) -> bool:
        """Whether requests are sampled."""
        return self._thread.is_alive() and not self._stopping

    @property
    def accepted(self) -> int:
        """Images that are neither delivered nor given up."""
        return self._accepted

    def submit(self, plan: Plan, listener: Listener) -> Work:
        """Let the images of a request wait for slots.

        Raises:
            QueueFullError: too many wait already; none of them is accepted.
            StoppedError: the engine has stopped.
        """
        work = Work(plan, listener)
        with self._changed:
            if not self.healthy:
                raise StoppedError("the server is stopping")
            if self._accepted + len(work.jobs) > self.slots + self.max_waiting:
                raise QueueFullError(f"{self._accepted} images wait or are being sampled")
            self._accepted += len(work.jobs)
            self._waiting.extend(work.jobs)
            self._changed.notify()
        return work

    def cancel(self, work: Work) -> None:
        """Give up the images of a request that are not finished."""
        with self._changed:
            work.cancelled = True
            self._changed.notify()

    def stop(self) -> None:
        """Stop, and fail all requests; returns when the threads have ended."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        if self._thread.ident is not None:
            self._thread.join()
        self._decoding.shutdown()

    def _run(self) -> None:
        try:
            with self._device():
                while self._wait():
                    self._drop_cancelled()
                    self._admit()
                    for kind, (decoder, jobs) in list(self._lanes.items()):
                        if jobs:
                            self._advance(kind, decoder, jobs)
        finally:
            with self._changed:
                self._stopping = True
                left = [*self._waiting, *(job for _, jobs in self._lanes.values() for job in jobs)]
                self._waiting.clear()
            for job in left:
                self._end(job, StoppedError("the server has stopped"))

    @contextmanager
    def _device(self) -> Iterator[None]:
        if self._stream is None:
            yield
        else:
            with torch.cuda.device(self.model.device):
                yield

    def _wait(self) -> bool:
        """Wait for something to do; False if the engine is to stop."""
        with self._changed:
            self._count()
            while not self._stopping and not self._waiting and not self._active():
                self._changed.wait()
            return not self._stopping

    def _active(self) -> int:
        return sum(len(jobs) for _, jobs in self._lanes.values())

    def _count(self) -> None:
        self.metrics.waiting.set(len(self._waiting))
        self.metrics.active.set(self._active())

    def _drop_cancelled(self) -> None:
        with self._changed:
            given_up = [job for job in self._waiting if job.work.cancelled]
            if given_up:
                self._waiting = deque(job for job in self._waiting if not job.work.cancelled)
        for decoder, jobs in self._lanes.values():
            for job in [job for job in jobs if job.work.cancelled]:
                assert job.slot is not None
                decoder.remove(job.slot)
                jobs.remove(job)
                given_up.append(job)
        for job in given_up:
            self._end(job)

    def _admit(self) -> None:
        """Bring images that wait into free slots, in their order."""
        full: set[Kind] = set()
        with self._changed:
            waiting = list(self._waiting)
        for job in waiting:
            kind = job.work.plan.kind
            if kind in full:
                continue
            try:
                lane = self._lane(kind)
            except Exception as error:
                self._take(job)
                self._end(job, error)
                continue
            if lane is None:  # the next kind waits until one has no images, and all behind it too
                break
            decoder, jobs = lane
            if not decoder.free:
                full.add(kind)
                continue
            self._take(job)
            try:
                job.slot = decoder.add(job.image)
            except Exception as error:
                self._end(job, error)
                continue
            self.metrics.wait_seconds.observe(time.monotonic() - job.since)
            jobs.append(job)

    def _take(self, job: _Job) -> None:
        with self._changed:
            self._waiting.remove(job)
            self._count()

    def _lane(self, kind: Kind) -> tuple[SlotDecoder[Any], list[_Job]] | None:
        """Slots for a kind; None while other kinds have all that there may be."""
        if kind not in self._lanes:
            if len(self._lanes) >= self.max_kinds:
                idle = next((k for k, (_, jobs) in self._lanes.items() if not jobs), None)
                if idle is None:
                    return None
                del self._lanes[idle]  # before the next is made, which needs the memory
            self._lanes[kind] = self.model.decoder(kind, self.slots), []
        self._lanes.move_to_end(kind)
        return self._lanes[kind]

    def _advance(self, kind: Kind, decoder: SlotDecoder[Any], jobs: list[_Job]) -> None:
        """Sample a patch of all images of a kind."""
        began = time.perf_counter()
        try:
            decoder.advance()
        except Exception as error:  # of the device, such as too little memory
            del self._lanes[kind]
            for job in jobs:
                self._end(job, error)
            return
        metrics = self.metrics
        metrics.step_seconds.observe(time.perf_counter() - began)
        metrics.steps.inc()
        metrics.step_images.inc(len(jobs))
        for job in list(jobs):
            slot = job.slot
            assert slot is not None
            if slot.finished:
                jobs.remove(job)
            if slot.error is not None:
                self._end(job, slot.error)
                continue
            job.work.listener.progress(job.number, slot.step, slot.ar_steps)
            if slot.finished or self._preview_due(job, slot):
                self._decoding.submit(self._deliver, job, slot, slot.packed.clone(), slot.step)

    def _preview_due(self, job: _Job, slot: Slot[Any]) -> bool:
        """Whether a preview is due: they divide the steps of the image evenly."""
        wanted = job.work.plan.partial_images
        due = slot.step * (wanted + 1) // slot.ar_steps
        if due <= job.previews:
            return False
        job.previews = due
        return True

    def _deliver(self, job: _Job, slot: Slot[Any], packed: torch.Tensor, step: int) -> None:
        """Decode an image or a preview, and hand it over."""
        work, finished, delivered = job.work, step == slot.ar_steps, False
        error: Exception | None = None
        try:
            if not work.cancelled:
                with self._device(), torch.cuda.stream(self._stream):  # None does nothing
                    file = self.model.encode(work.plan, slot, packed, step)
                if finished:
                    delivered = True
                    self.metrics.images.inc()
                    work.listener.finished(job.number, file)
                else:
                    preview = step * (work.plan.partial_images + 1) // slot.ar_steps - 1
                    work.listener.partial(job.number, preview, file)
        except Exception as caught:
            error = caught
        if finished or error is not None:
            self._end(job, error, delivered=delivered)

    def _end(self, job: _Job, error: Exception | None = None, *, delivered: bool = False) -> None:
        """Forget an image, which was delivered or given up, or has failed."""
        with self._changed:
            if job.ended:  # its preview has failed
                return
            job.ended = True
            self._accepted -= 1
        if error is not None:
            if not job.work.cancelled:
                job.work.listener.failed(error)
                self.cancel(job.work)  # its other images
        elif not delivered:
            self.metrics.cancelled_images.inc()
