"""A server on the loopback in a thread, and clients of it."""

import base64
import contextlib
import io
import json
import socket
import threading
import time
from http.client import HTTPConnection

import numpy as np
from PIL import Image

PATH = "/v1/images/generations"
SECONDS = 60  # after which a test has failed


@contextlib.contextmanager
def served(pipeline, *, slots=3, limits=None, app_limits=None, **options):
    """The engine and the port of a server of a pipeline."""
    from bitdance.integrations.serving.app import create_app
    from bitdance.integrations.serving.engine import Engine
    from bitdance.integrations.serving.models import serve_model
    from bitdance.integrations.serving.server import make_server

    engine = Engine(serve_model(pipeline, "tiny", limits), slots=slots, **options)
    app = create_app(engine, app_limits)
    server = make_server(app, host="127.0.0.1", port=0, log_level="critical")
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    wait_for(lambda: server.started or not thread.is_alive())
    try:
        yield engine, server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = True
        thread.join(SECONDS)
        assert not thread.is_alive()


class Gate:
    """Holds the AR steps of an engine until it is opened.

    Args:
        engine: the engine, before it has slots.
    """

    def __init__(self, engine):
        self.open, self.steps = threading.Event(), 0
        make = engine.model.decoder

        def decoder(kind, slots):
            made = make(kind, slots)
            advance = made.advance

            def held():
                assert self.open.wait(SECONDS)
                self.steps += 1
                return advance()

            made.advance = held
            return made

        engine.model.decoder = decoder


def wait_for(condition):
    """Wait until `condition()` holds, for as long as a test may take."""
    end = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.005)


def call(port, content=None, *, method="POST", path=PATH, headers=None):
    """Status, headers and body of an answer; `content` is bytes or is sent as JSON."""
    connection = HTTPConnection("127.0.0.1", port, timeout=SECONDS)
    try:
        raw = isinstance(content, bytes) or content is None
        connection.request(method, path, content if raw else json.dumps(content), headers or {})
        answer = connection.getresponse()
        return answer.status, dict(answer.getheaders()), answer.read()
    finally:
        connection.close()


def begin(port, **fields):
    """A socket on which a request was sent and nothing is read."""
    body = json.dumps(fields).encode()
    connection = socket.create_connection(("127.0.0.1", port), timeout=SECONDS)
    head = f"POST {PATH} HTTP/1.1\r\nhost: a\r\ncontent-length: {len(body)}\r\n\r\n"
    connection.sendall(head.encode() + body)
    return connection


def traffic(engine, port, count):
    """`count` requests that are answered, with one each that is refused, and some that are left."""
    for i in range(count):
        stream = {"stream": True, "partial_images": 1} if i % 3 == 0 else {}
        request = {"prompt": "bag", "seed": i, "num_inference_steps": 1} | stream
        assert call(port, request)[0] == 200
        assert call(port, {"prompt": "?" * 1000})[0] == 400
        if i % 5 == 0:
            begin(port, **request).close()
    wait_for(lambda: engine.accepted == 0)


def error_of(answer):
    """Status and error of an answer that has the shape of an error of OpenAI's API."""
    status, _, body = answer
    (error,) = json.loads(body).values()
    assert error.keys() == {"message", "type", "param", "code"}
    assert isinstance(error["message"], str)
    assert len(error["message"]) < 500
    return status, error


def pixels(text):
    """The image of a base64 text, as an array."""
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(text))))


def events_of(body):
    """Events of a stream, as (name, content)."""
    events = []
    for block in body.decode().strip().split("\n\n"):
        name, data = block.split("\n")
        content = json.loads(data.removeprefix("data: "))
        assert name == f"event: {content.get('type', 'error')}"
        events.append((name.removeprefix("event: "), content))
    return events
