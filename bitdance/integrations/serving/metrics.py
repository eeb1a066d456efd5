"""What a server counts, for Prometheus."""

from __future__ import annotations

from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

__all__ = ["Metrics"]

_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250)
_STEP_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)


class Metrics:
    """Counters of one server, in a registry of its own.

    Attributes:
        requests: requests that have ended, by HTTP status or "cancelled".
        images: images that were delivered.
        cancelled_images: images that nobody waited for any more.
        steps: AR steps of the batch.
        step_images: images in the AR steps, summed; over `steps` it is the mean batch.
        waiting: images that wait for a slot.
        active: images that are being sampled.
        step_seconds: durations of AR steps.
        wait_seconds: waits of images for a slot.
        request_seconds: durations of requests that were answered with images.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        of: dict[str, Any] = {"registry": self.registry}
        self.requests = Counter("bitdance_requests", "Requests that have ended", ["status"], **of)
        self.images = Counter("bitdance_images", "Images delivered", **of)
        self.cancelled_images = Counter("bitdance_cancelled_images", "Images given up", **of)
        self.steps = Counter("bitdance_steps", "AR steps of the batch", **of)
        self.step_images = Counter("bitdance_step_images", "Images in AR steps", **of)
        self.waiting = Gauge("bitdance_waiting_images", "Images that wait for a slot", **of)
        self.active = Gauge("bitdance_active_images", "Images being sampled", **of)
        self.step_seconds = Histogram(
            "bitdance_step_seconds", "Duration of an AR step", buckets=_STEP_SECONDS, **of
        )
        self.wait_seconds = Histogram(
            "bitdance_wait_seconds", "Wait of an image for a slot", buckets=_SECONDS, **of
        )
        self.request_seconds = Histogram(
            "bitdance_request_seconds", "Duration of a request", buckets=_SECONDS, **of
        )

    def text(self) -> bytes:
        """All values in the text format of Prometheus."""
        return generate_latest(self.registry)
