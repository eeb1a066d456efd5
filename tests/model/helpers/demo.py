"""The page of `bitdance demo` on the loopback in a thread, and what a browser sends to it."""

import base64
import contextlib
import io
import json
import re
import threading
import time
from http.client import HTTPConnection

import numpy as np
from PIL import Image

from bitdance import BitDanceT2IPipeline
from bitdance.pipelines.text_to_image_files import SamplingConfig
from tests.model.helpers.serving import SECONDS, wait_for
from tests.model.helpers.words import SizedWords
from tests.model.models.test_text_to_image import tiny as tiny_text_to_image

API = "/gradio_api"


CLASSES = {"subject": "boot", "seed": "7", "num_inference_steps": 2, "num_images": 2}
TEXTS = {"subject": "a cat", "negative_prompt": "dogs", "seed": "7", "num_images": 2}


def text_pipeline():
    """A pipeline of prompts whose images have 8 x 12 pixels."""
    sampling = SamplingConfig(height=8, width=12, num_inference_steps=2, guidance_scale=3.0)
    return BitDanceT2IPipeline(tiny_text_to_image(), SizedWords(), sampling)


@contextlib.contextmanager
def served(models, **options):
    """The runner and the port of a page."""
    from bitdance.integrations.demo.runner import Runner
    from bitdance.integrations.demo.server import create_app, temporary_files
    from bitdance.integrations.serving.server import make_server

    runner = Runner()
    with temporary_files():
        app = create_app(models, runner, **options)
        server = make_server(app, host="127.0.0.1", port=0, log_level="critical")
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        wait_for(lambda: server.started or not thread.is_alive())
        try:
            yield runner, server.servers[0].sockets[0].getsockname()[1]
        finally:
            runner.close()
            server.should_exit = server.force_exit = True
            thread.join(SECONDS)
            assert not thread.is_alive()


def get(port, path):
    """Status, headers in lower case and body of an answer."""
    return _send(port, "GET", path)


def post(port, path, content, headers=None):
    """The same for a body in JSON, or in bytes."""
    if not isinstance(content, bytes):
        headers, content = {"content-type": "application/json"}, json.dumps(content)
    return _send(port, "POST", path, content, headers or {})


def _send(port, *request):
    connection = HTTPConnection("127.0.0.1", port, timeout=SECONDS)
    try:
        connection.request(*request)
        answer = connection.getresponse()
        headers = {name.lower(): value for name, value in answer.getheaders()}
        return answer.status, headers, answer.read()
    finally:
        connection.close()


class Visitor:
    """A page that is open in a browser.

    Args:
        port: port of the server.
        name: what tells it from others.
    """

    def __init__(self, port, name):
        self.port, self.name = port, name
        self.config = json.loads(get(port, "/config")[2])
        self.tabs = [
            dependency["id"]
            for dependency in self.config["dependencies"]
            if dependency["types"]["generator"]
        ]

    def function(self, event, number=0):
        """Number of the function of the event with this name."""
        found = [
            dependency["id"]
            for dependency in self.config["dependencies"]
            if event in [name for _, name in dependency["targets"]]
        ]
        return found[number]

    def join(self, function, values):
        """Status and content of the answer to an event."""
        body = {"data": values, "fn_index": function, "session_hash": self.name}
        status, _, answer = post(self.port, f"{API}/queue/join", body)
        return status, json.loads(answer)

    def messages(self):
        """Messages to the page until nothing of it is in the queue."""
        connection = HTTPConnection("127.0.0.1", self.port, timeout=SECONDS)
        end = time.monotonic() + SECONDS
        try:
            connection.request("GET", f"{API}/queue/data?session_hash={self.name}")
            for line in connection.getresponse():
                if line.startswith(b"data: "):
                    message = json.loads(line[6:])
                    if message["msg"] == "close_stream":
                        return
                    assert time.monotonic() < end, "waited in vain"
                    if message["msg"] != "heartbeat":
                        yield message
        finally:
            connection.close()

    def draw(self, *values, tab=0):
        """Status, grid, gallery and details at the end of a run."""
        assert self.join(self.tabs[tab], list(values))[0] == 200
        *_, last = self.messages()
        assert last["msg"] == "process_completed"
        assert last["success"], last
        return last["output"]["data"]


def pixels_of(html):
    """Arrays of the PNG images in a part of the page, in their order."""
    found = re.findall(r'src="data:image/png;base64,([^"]+)"', html)
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(text)))) for text in found]


def gated(model, monkeypatch, after=0):
    """Events: a run has drawn another patch after so many; it may go on."""
    reached, go_on = threading.Event(), threading.Event()
    sample = model.sample

    def held(settings, callback):
        def on_step(pipeline, step, *given):
            if step >= after:
                reached.set()
                assert go_on.wait(SECONDS)
            return callback(pipeline, step, *given)

        return sample(settings, on_step)

    monkeypatch.setattr(model, "sample", held)
    return reached, go_on
