"""From the engine's threads to the event loop: what a request hears, and how it is sent."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any, Literal, NamedTuple

from starlette.types import Receive, Scope, Send

__all__ = ["Event", "Events", "TimedResponse", "client_left"]


class Event(NamedTuple):
    """Something that happened to an image of a request.

    Attributes:
        kind: what.
        number: number of the image in the request.
        value: (patches, patches of the image), the number of a preview, or nothing.
        file: the image or preview.
        error: why no more images come.
    """

    kind: Literal["progress", "partial", "finished", "failed"]
    number: int = 0
    value: tuple[int, int] = (0, 0)
    file: bytes = b""
    error: Exception | None = None


class Events:
    """Events of a request, in their order, as a listener of the engine.

    Of progress and of previews only the newest that was not read is kept, so a slow reader costs
    no more memory than its images.

    Args:
        previews: whether progress and previews are wanted.
    """

    def __init__(self, previews: bool) -> None:
        self._previews = previews
        self._loop = asyncio.get_running_loop()
        self._events: dict[tuple[str, int], Event] = {}
        self._arrived = asyncio.Event()

    def progress(self, number: int, step: int, ar_steps: int) -> None:
        """See ``Listener``."""
        if self._previews:
            self._put(Event("progress", number, (step, ar_steps)))

    def partial(self, number: int, preview: int, file: bytes) -> None:
        """See ``Listener``."""
        self._put(Event("partial", number, (preview, 0), file))

    def finished(self, number: int, file: bytes) -> None:
        """See ``Listener``."""
        self._put(Event("finished", number, file=file))

    def failed(self, error: Exception) -> None:
        """See ``Listener``."""
        self._put(Event("failed", error=error))

    def _put(self, event: Event) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed, nobody listens
            self._loop.call_soon_threadsafe(self._add, event)

    def _add(self, event: Event) -> None:
        key = (event.kind, event.number)
        self._events.pop(key, None)  # the newest is last
        self._events[key] = event
        self._arrived.set()

    async def read(self) -> AsyncIterator[Event]:
        """All events, as they arrive."""
        while True:
            await self._arrived.wait()
            self._arrived.clear()
            while self._events:
                yield self._events.pop(next(iter(self._events)))


async def client_left(receive: Receive) -> None:
    """Return when the client has closed its connection; the body must have been read."""
    while (await receive())["type"] != "http.disconnect":
        pass


class TimedResponse:
    """A response whose client must read; an application of ASGI.

    Args:
        chunks: the body.
        headers: headers, in lower case.
        timeout: seconds that a chunk may take to be sent.
        on_end: called with whether all was sent, when the response or the connection has ended.
        status: HTTP status.
    """

    def __init__(
        self,
        chunks: AsyncIterator[bytes],
        headers: dict[str, str],
        *,
        timeout: float,
        on_end: Callable[[bool], Any],
        status: int = 200,
    ) -> None:
        self._chunks, self._timeout, self._on_end = chunks, timeout, on_end
        self._start = {
            "type": "http.response.start",
            "status": status,
            "headers": [(k.encode("latin-1"), v.encode("latin-1")) for k, v in headers.items()],
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the response."""
        sending = asyncio.ensure_future(self._send(send))
        leaving = asyncio.ensure_future(client_left(receive))
        try:
            await asyncio.wait({sending, leaving}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            complete = sending.done() and not sending.cancelled() and sending.exception() is None
            for task in (sending, leaving):
                task.cancel()
            await asyncio.gather(sending, leaving, return_exceptions=True)
            self._on_end(complete)

    async def _send(self, send: Send) -> None:
        async def timed(message: dict[str, Any]) -> None:
            await asyncio.wait_for(send(message), self._timeout)

        await timed(self._start)
        async for chunk in self._chunks:
            await timed({"type": "http.response.body", "body": chunk, "more_body": True})
        await timed({"type": "http.response.body", "body": b"", "more_body": False})
