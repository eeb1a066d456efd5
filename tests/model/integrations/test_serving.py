"""The server on the loopback: bits, limits, and clients that behave badly."""

import json
import os
import random
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from bitdance import BitDanceT2IPipeline
from bitdance.cli.main import main
from tests.model.helpers.serving import (
    Gate,
    begin,
    call,
    error_of,
    events_of,
    pixels,
    served,
    wait_for,
)
from tests.model.helpers.tiny import tiny_pipeline
from tests.model.helpers.words import SizedWords
from tests.model.models.test_text_to_image import tiny as tiny_text_to_image
from tests.reliability import long_runs
from tests.reliability.long_runs import growth

for needed in ("starlette", "uvicorn", "prometheus_client"):
    pytest.importorskip(needed)

from bitdance.integrations.serving.app import AppLimits  # noqa: E402
from bitdance.integrations.serving.models import Limits  # noqa: E402

REQUESTS = int(os.environ.get("BITDANCE_SERVING_REQUESTS", "60"))
"""Requests of the test of memory, in twenties; 5000 take minutes."""


@pytest.fixture(scope="module")
def pipeline():
    return tiny_pipeline()


@pytest.fixture(scope="module")
def server(pipeline):
    """Engine and port of a server for tests that leave it as it was."""
    with served(pipeline, app_limits=AppLimits(max_body_bytes=20_000)) as it:
        yield it


def values(port):
    """Metrics by name and labels."""
    from prometheus_client.parser import text_string_to_metric_families

    text = call(port, method="GET", path="/metrics")[2].decode()
    samples = [s for family in text_string_to_metric_families(text) for s in family.samples]
    return {(s.name, *s.labels.values()): s.value for s in samples}


def test_images_are_those_that_the_pipeline_draws_alone(pipeline, server):
    """Requests of several kinds, sizes and formats arrive at random in the batch."""
    engine, port = server
    draw = random.Random(0)
    requests = [
        {
            "prompt": draw.choice(["boot", "bag", "2", "night dress"]),
            "n": draw.choice([1, 1, 2, 3]), "seed": draw.choice([0, 7, 2**64 - 1]) - number % 2,
            "num_inference_steps": draw.choice([1, 2]),
            "guidance_scale": draw.choice([1, 2.5, 4.0]),
        }
        for number in range(14)
    ]  # fmt: skip
    for request in requests:
        request["seed"] %= 2**64
    with ThreadPoolExecutor(7) as pool:
        answers = list(pool.map(lambda request: call(port, request), requests))
    for request, (status, headers, body) in zip(requests, answers, strict=True):
        assert (status, headers["content-type"]) == (200, "application/json")
        content = json.loads(body)
        assert (content["size"], content["output_format"]) == ("8x8", "png")
        assert content["seed"] == request["seed"]
        alone = pipeline(
            [request["prompt"]] * request["n"], seed=request["seed"],
            num_inference_steps=request["num_inference_steps"],
            guidance_scale=request["guidance_scale"],
        ).images  # fmt: skip
        assert len(content["data"]) == len(alone)
        for got, expected in zip(content["data"], alone, strict=True):
            assert np.array_equal(pixels(got["b64_json"]), np.asarray(expected)), request
    assert engine.accepted == 0
    assert values(port)["bitdance_images_total",] >= sum(r["n"] for r in requests)


def test_images_of_texts_of_several_sizes():
    pipeline = BitDanceT2IPipeline(tiny_text_to_image(), SizedWords())
    pipeline.set_progress_bar_config(disable=True)
    limits = Limits(max_pixels=8 * 12, max_prompt_tokens=60)
    requests = [
        {"prompt": "a cat", "size": "12x8", "seed": 1},
        {"prompt": "two cats", "size": "4x4", "seed": 2, "negative_prompt": "dogs"},
        {"prompt": "", "size": "8x8", "seed": 3, "n": 2, "guidance_scale": 1.0},
    ]
    with served(pipeline, limits=limits) as (_, port):
        both = {"num_inference_steps": 2}
        with ThreadPoolExecutor(3) as pool:
            answers = list(pool.map(lambda r: call(port, r | both), requests))
        for request, answer in zip(requests, answers, strict=True):
            width, height = map(int, request["size"].split("x"))
            rest = {k: v for k, v in request.items() if k not in ("prompt", "size", "n")}
            alone = pipeline(
                request["prompt"], height=height, width=width,
                num_images_per_prompt=request.get("n", 1), **rest, **both,
            ).images  # fmt: skip
            content = json.loads(answer[2])
            assert content["size"] == request["size"]
            for got, expected in zip(content["data"], alone, strict=True):
                assert np.array_equal(pixels(got["b64_json"]), np.asarray(expected)), request
        for fields, words in (
            ({"size": "16x16"}, "size must be of at most 96 pixels, got 16x16"),
            ({"size": "10x8"}, "width must be a multiple of 4"),
            ({"size": "4x16"}, "tokenizer must have <|res_8|>"),
            ({"prompt": "a" * 100}, "must have at most"),
        ):
            status, error = error_of(call(port, {"prompt": "a", "size": "4x4"} | fields))
            assert (status, error["type"]) == (400, "invalid_request_error")
            assert words in error["message"]


def test_a_stream_of_progress_previews_and_images(pipeline, server):
    _, port = server
    request = {
        "prompt": "bag", "seed": 3, "n": 2, "stream": True, "partial_images": 1,
        "num_inference_steps": 2, "output_format": "webp", "output_compression": 90,
    }  # fmt: skip
    status, headers, body = call(port, request)
    assert (status, headers["content-type"]) == (200, "text/event-stream")
    events = events_of(body)
    for number in range(2):
        own = [(name, c) for name, c in events if c["image_index"] == number]
        names = [name.removeprefix("image_generation.") for name, _ in own]
        assert names[-1] == "completed"
        assert set(names) <= {"progress", "partial_image", "completed"}
        steps = [content["step"] for _, content in own if "step" in content]
        assert steps == sorted(set(steps))
        assert set(steps) <= {1, 2, 3, 4}
        final = own[-1][1]
        assert (final["size"], final["output_format"], final["seed"]) == ("8x8", "webp", 3)
        assert pixels(final["b64_json"]).shape == (8, 8, 3)
    partial = [c for name, c in events if name.endswith("partial_image")]
    assert {c["partial_image_index"] for c in partial} <= {0}
    assert pixels(partial[0]["b64_json"]).shape == (8, 8, 3)


def test_a_preview_shows_what_was_sampled_until_its_step(pipeline):
    """Even if it is decoded when the image is complete."""
    seen = {}
    with served(pipeline, slots=1) as (engine, port):
        encode = engine.model.encode

        def late(plan, slot, packed, step):
            wait_for(lambda: slot.finished)
            seen[step] = packed.clone()
            return encode(plan, slot, packed, step)

        engine.model.encode = late
        request = {"prompt": "bag", "stream": True, "partial_images": 3, "num_inference_steps": 2}
        assert call(port, request)[0] == 200
    complete = seen.pop(4)
    assert sorted(seen) == [1, 2, 3]
    for step, packed in seen.items():
        tokens = step * len(packed) // 4
        assert torch.equal(packed[:tokens], complete[:tokens])
        assert not packed[tokens:].any()
        assert complete[tokens:].any()


BAD = {
    "no JSON": (b"{", "body must be JSON"),
    "no text": (b"\xff", "body must be JSON"),
    "nothing": (b"", "body must be JSON"),
    "deep": (b"[" * 19_000, "body must be JSON"),
    "NaN": (b'{"prompt": "bag", "guidance_scale": NaN}', "NaN is no number"),
    "infinite": (b'{"prompt": "bag", "guidance_scale": 1e999}', "guidance_scale"),
    "digits": (b'{"prompt": "bag", "seed": ' + b"9" * 5000 + b"}", "body must be JSON"),
    "a list": ([], "body must be a JSON object"),
    "no prompt": ({}, "prompt: field required"),
    "number": ({"prompt": 1}, "prompt: input should be a valid string"),
    "unknown": ({"prompt": "bag", "foo": 1}, "foo: extra inputs"),
    "class": ({"prompt": "dog"}, "prompt must be a class"),
    "none": ({"prompt": "bag", "n": 0}, "n: input should be greater"),
    "many": ({"prompt": "bag", "n": 11}, "n: input should be less"),
    "true": ({"prompt": "bag", "n": True}, "n: input should be a valid integer"),
    "seed": ({"prompt": "bag", "seed": 2**64}, "seed: input should be less"),
    "steps": ({"prompt": "bag", "num_inference_steps": 251}, "at most 250"),
    "size": ({"prompt": "bag", "size": "9x8"}, "size must be '8x8'"),
    "size of words": ({"prompt": "bag", "size": "large"}, "size must be 'auto' or WIDTH"),
    "url": ({"prompt": "bag", "response_format": "url"}, "response_format"),
    "quality": ({"prompt": "bag", "quality": "hd"}, "quality"),
    "partial": ({"prompt": "bag", "partial_images": 2}, "partial_images needs stream"),
    "negative": ({"prompt": "bag", "negative_prompt": "boot"}, "negative_prompt must be left out"),
    "long": ({"prompt": "a" * 8001}, "prompt must have at most 8000 characters, got 8001"),
}


@pytest.mark.parametrize(("content", "words"), BAD.values(), ids=BAD)
def test_bad_requests_are_refused_in_words(server, content, words):
    engine, port = server
    status, error = error_of(call(port, content))
    assert (status, error["type"]) == (400, "invalid_request_error")
    assert words in error["message"]
    assert engine.accepted == 0


def test_other_paths_methods_and_bodies(server):
    _, port = server
    assert error_of(call(port, path="/nothing"))[0] == 404
    assert error_of(call(port, method="GET"))[0] == 405
    assert error_of(call(port, {"prompt": "bag", "model": "gpt"}))[0] == 404
    assert error_of(call(port, b" " * 20_001))[0] == 413
    models = json.loads(call(port, method="GET", path="/v1/models")[2])
    assert [model["id"] for model in models["data"]] == ["tiny"]
    status, _, body = call(port, method="GET", path="/health")
    assert (status, json.loads(body)) == (200, {"status": "ok"})


def test_a_body_that_does_not_come(pipeline):
    with served(pipeline, app_limits=AppLimits(body_seconds=0.1)) as (_, port):
        status, error = error_of(call(port, b"{", headers={"content-length": "9"}))
        assert (status, error["code"]) == (408, "timeout")


@pytest.mark.parametrize("stream", [False, True])
def test_clients_that_leave_give_their_slots_back(pipeline, stream):
    with served(pipeline, slots=2) as (engine, port):
        gate = Gate(engine)
        clients = [
            begin(port, prompt="bag", n=2, seed=i, stream=stream, num_inference_steps=1)
            for i in range(3)
        ]
        wait_for(lambda: engine.accepted == 6)
        for client in clients:
            client.close()
        wait_for(lambda: values(port).get(("bitdance_requests_total", "cancelled")) == 3)
        gate.open.set()
        wait_for(lambda: engine.accepted == 0)
        assert gate.steps <= 1  # of images that had begun
        assert values(port)["bitdance_cancelled_images_total",] == 6
        body = json.loads(call(port, {"prompt": "bag", "seed": 0, "num_inference_steps": 1})[2])
        alone = pipeline(["bag"], seed=0, num_inference_steps=1).images
        assert np.array_equal(pixels(body["data"][0]["b64_json"]), np.asarray(alone[0]))


def test_a_full_queue_refuses_and_recovers(pipeline):
    with served(pipeline, slots=1, max_waiting=2) as (engine, port), ThreadPoolExecutor(3) as pool:
        gate = Gate(engine)
        request = {"prompt": "bag", "seed": 0, "num_inference_steps": 1}
        accepted = [pool.submit(call, port, request) for _ in range(3)]
        wait_for(lambda: engine.accepted == 3)
        for answer in (call(port, request), call(port, request | {"stream": True})):
            status, error = error_of(answer)
            assert (status, error["type"]) == (429, "rate_limit_error")
            assert error["code"] == "queue_full"
            assert answer[1]["retry-after"] == "1"
        gate.open.set()
        assert [future.result()[0] for future in accepted] == [200] * 3
        assert call(port, request)[0] == 200
        status, error = error_of(call(port, request | {"n": 4}))  # more than ever fit
        assert status == 429


def test_requests_that_take_too_long(pipeline):
    with served(pipeline, app_limits=AppLimits(request_seconds=0.2)) as (engine, port):
        gate = Gate(engine)
        status, error = error_of(call(port, {"prompt": "bag", "num_inference_steps": 1}))
        assert (status, error["code"]) == (504, "timeout")
        name, content = events_of(call(port, {"prompt": "bag", "stream": True})[2])[-1]
        assert (name, content["error"]["code"]) == ("error", "timeout")
        gate.open.set()
        wait_for(lambda: engine.accepted == 0)


def test_failures_are_answers_and_the_next_request_is_served(pipeline):
    broken = tiny_pipeline()
    with torch.no_grad():
        broken.model.cls_embedding.weight[3] = float("nan")
    with served(broken) as (engine, port):
        request = {"prompt": "1", "seed": 0, "num_inference_steps": 1}
        status, error = error_of(call(port, request | {"prompt": "3", "n": 2}))
        assert (status, error["type"], error["code"]) == (500, "server_error", "failed")
        assert "finite" in error["message"]
        assert call(port, request)[0] == 200
        make = engine.model.decoder

        def failing(kind, slots):
            decoder = make(kind, slots)
            decoder.advance = lambda: 1 / 0
            engine.model.decoder = make
            return decoder

        engine.model.decoder = failing
        status, error = error_of(call(port, request | {"num_inference_steps": 2}))
        assert (status, error["message"]) == (500, "ZeroDivisionError: division by zero")
        assert call(port, request | {"num_inference_steps": 2})[0] == 200
        wait_for(lambda: engine.accepted == 0)


def test_kinds_take_turns_when_there_is_room_for_one(pipeline):
    with served(pipeline, max_kinds=1) as (engine, port), ThreadPoolExecutor(6) as pool:
        requests = [
            {"prompt": "bag", "seed": i, "num_inference_steps": 1 + i % 3} for i in range(6)
        ]
        answers = list(pool.map(lambda request: call(port, request)[0], requests))
        assert answers == [200] * 6
        assert len(engine._lanes) == 1


def test_a_server_that_stops_answers_those_that_wait(pipeline):
    with ThreadPoolExecutor(1) as pool, served(pipeline) as (engine, port):
        gate = Gate(engine)
        waiting = pool.submit(call, port, {"prompt": "bag", "num_inference_steps": 1})
        wait_for(lambda: engine.accepted == 1)
        stopping = pool._work_queue.empty and ThreadPoolExecutor(1).submit(engine.stop)
        wait_for(lambda: engine._stopping)
        gate.open.set()
        stopping.result()
        status, error = error_of(waiting.result())
        assert (status, error["type"]) == (500, "server_error")
        assert call(port, method="GET", path="/health")[0] == 503
        assert error_of(call(port, {"prompt": "bag"}))[0] == 503


@pytest.mark.skipif(not growth.is_available(), reason="needs glibc 2.33 on Linux")
def test_nothing_grows_with_requests():
    """Requests that are answered, refused and left."""
    assert long_runs.watch_requests(REQUESTS) == REQUESTS


def test_the_command_says_what_is_missing(monkeypatch, capsys):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main(["serve"]) == 1
    assert "serve needs starlette: pip install 'bitdance[serve]'" in capsys.readouterr().err
    monkeypatch.undo()
    assert main(["serve", "--port", "70000"]) == 1
    assert "--port must be from 0 to 65535, got 70000" in capsys.readouterr().err
