"""The HTTP application: routes, answers and limits."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from bitdance.integrations.serving.engine import Engine, QueueFullError, StoppedError, Work
from bitdance.integrations.serving.events import Event, Events, TimedResponse, client_left
from bitdance.integrations.serving.models import Plan
from bitdance.integrations.serving.requests import ApiError, parse_request

__all__ = ["AppLimits", "create_app"]


@dataclass(frozen=True)
class AppLimits:
    """Limits of a connection.

    Attributes:
        max_body_bytes: size of a request.
        body_seconds: time for a client to send it.
        request_seconds: time for an answer, the wait for a slot included.
        send_seconds: time for a client to read a part of an answer.
    """

    max_body_bytes: int = 64 * 1024
    body_seconds: float = 10
    request_seconds: float = 600
    send_seconds: float = 30


def create_app(engine: Engine, limits: AppLimits | None = None) -> Starlette:
    """The application; the engine starts and stops with it.

    Routes are POST /v1/images/generations, GET /v1/models, /health and /metrics.
    """
    images = _Images(engine, limits or AppLimits())

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        engine.start()
        try:
            yield
        finally:
            await asyncio.to_thread(engine.stop)

    async def models(request: Request) -> Response:
        model = {"id": engine.model.name, "object": "model", "created": 0, "owned_by": "bitdance"}
        return JSONResponse({"object": "list", "data": [model]})

    async def health(request: Request) -> Response:
        status = "ok" if engine.healthy else "stopped"
        return JSONResponse({"status": status}, 200 if engine.healthy else 503)

    async def metrics(request: Request) -> Response:
        return Response(engine.metrics.text(), media_type="text/plain; version=0.0.4")

    return Starlette(
        routes=[
            Route("/v1/images/generations", images, methods=["POST"]),
            Route("/v1/models", models, methods=["GET"]),
            Route("/health", health, methods=["GET"]),
            Route("/metrics", metrics, methods=["GET"]),
        ],
        exception_handlers={ApiError: _api_error, HTTPException: _http_error, Exception: _failure},
        lifespan=lifespan,
    )


class _Images:
    """POST /v1/images/generations."""

    def __init__(self, engine: Engine, limits: AppLimits) -> None:
        self.engine, self.limits = engine, limits

    # Starlette calls an endpoint that is an object as an application of ASGI.
    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        began = time.monotonic()
        requests = self.engine.metrics.requests
        try:
            answer = await self._answer(Request(scope, receive), began)
        except ApiError as error:
            requests.labels(str(error.status)).inc()
            raise
        except ClientDisconnect:
            requests.labels("cancelled").inc()
            return
        if answer is not None:
            await answer(scope, receive, send)

    async def _answer(self, request: Request, began: float) -> ASGIApp | None:
        body = await self._body(request)
        plan = await asyncio.to_thread(lambda: self.engine.model.plan(parse_request(body)))
        events = Events(previews=plan.stream)
        try:
            work = self.engine.submit(plan, events)
        except QueueFullError as error:
            raise ApiError(f"too many requests: {error}", status=429, code="queue_full") from None
        except StoppedError as error:
            raise ApiError(str(error), status=503, code="stopping") from None
        if plan.stream:
            return self._response(
                self._event_stream(events, plan, began), work, began, "text/event-stream"
            )
        return await self._whole(request, events, work, began)

    async def _body(self, request: Request) -> bytes:
        limit = self.limits.max_body_bytes
        parts: list[bytes] = []

        async def read() -> None:
            size = 0
            async for part in request.stream():
                size += len(part)
                if size > limit:
                    raise ApiError(
                        f"body must have at most {limit} bytes", status=413, code="body_too_large"
                    )
                parts.append(part)

        try:
            await asyncio.wait_for(read(), self.limits.body_seconds)
        except (TimeoutError, asyncio.TimeoutError):  # two in Python 3.10
            raise ApiError("the body took too long", status=408, code="timeout") from None
        return b"".join(parts)

    def _response(
        self, chunks: AsyncIterator[bytes], work: Work, began: float, media_type: str
    ) -> TimedResponse:
        metrics = self.engine.metrics

        def on_end(complete: bool) -> None:
            self.engine.cancel(work)  # nothing, if all its images are finished
            metrics.requests.labels("200" if complete else "cancelled").inc()
            if complete:
                metrics.request_seconds.observe(time.monotonic() - began)

        headers = {"content-type": media_type, "cache-control": "no-store"}
        return TimedResponse(chunks, headers, timeout=self.limits.send_seconds, on_end=on_end)

    async def _whole(
        self, request: Request, events: Events, work: Work, began: float
    ) -> ASGIApp | None:
        """The answer with all images; None if the client has left."""
        collecting = asyncio.ensure_future(self._files(events, work.plan, began))
        leaving = asyncio.ensure_future(client_left(request.receive))
        try:
            await asyncio.wait({collecting, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if not collecting.done():
                self.engine.metrics.requests.labels("cancelled").inc()
                return None
            files = collecting.result()
        finally:
            for task in (collecting, leaving):
                task.cancel()
            await asyncio.gather(collecting, leaving, return_exceptions=True)
            self.engine.cancel(work)
        plan = work.plan
        content = {
            "created": int(time.time()),
            "data": [{"b64_json": _text(file)} for file in files],
            **_of_all(plan),
        }

        async def chunks() -> AsyncIterator[bytes]:
            yield json.dumps(content).encode()

        return self._response(chunks(), work, began, "application/json")

    async def _files(self, events: Events, plan: Plan, began: float) -> list[bytes]:
        files: dict[int, bytes] = {}
        async for event in self._until(events, plan, began):
            files[event.number] = event.file
        return [files[number] for number in range(len(plan.images))]

    async def _until(self, events: Events, plan: Plan, began: float) -> AsyncIterator[Event]:
        """Events until all images are finished.

        Raises:
            ApiError: an image has failed, or they take too long.
        """
        reader, finished = events.read(), 0
        while finished < len(plan.images):
            left = began + self.limits.request_seconds - time.monotonic()
            try:
                event = await asyncio.wait_for(anext(reader), max(0, left))
            except (TimeoutError, asyncio.TimeoutError):
                raise ApiError("the images took too long", status=504, code="timeout") from None
            if event.error is not None:
                text = f"{type(event.error).__name__}: {event.error}"
                raise ApiError(text, status=500, code="failed") from event.error
            finished += event.kind == "finished"
            yield event

    async def _event_stream(self, events: Events, plan: Plan, began: float) -> AsyncIterator[bytes]:
        try:
            async for event in self._until(events, plan, began):
                content: dict[str, Any] = {"image_index": event.number}
                if event.kind == "progress":
                    name = "image_generation.progress"
                    content["step"], content["steps"] = event.value
                else:
                    content["b64_json"] = _text(event.file)
                    content["created_at"] = int(time.time())
                    content.update(_of_all(plan))
                    name = "image_generation.completed"
                    if event.kind == "partial":
                        name = "image_generation.partial_image"
                        content["partial_image_index"] = event.value[0]
                yield _sse(name, content)
        except ApiError as error:
            yield _sse("error", error.content)


def _of_all(plan: Plan) -> dict[str, Any]:
    """What is the same for all images of a request."""
    height, width = plan.size
    return {"size": f"{width}x{height}", "output_format": plan.format, "seed": plan.seed}


def _text(file: bytes) -> str:
    return base64.b64encode(file).decode()


def _sse(name: str, content: dict[str, Any]) -> bytes:
    return f"event: {name}\ndata: {json.dumps({'type': name, **content})}\n\n".encode()


async def _api_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    headers = {"retry-after": "1"} if error.status in (429, 503) else None
    return JSONResponse(error.content, error.status, headers)


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    api = ApiError(error.detail, status=error.status_code)
    return JSONResponse(api.content, error.status_code, error.headers)


async def _failure(request: Request, error: Exception) -> Response:
    return JSONResponse(ApiError(f"{type(error).__name__}", status=500).content, 500)
