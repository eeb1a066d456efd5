"""The page over HTTP: what a browser is given, turns, visitors who leave, wrong requests."""

import json
import re
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from tests.model.helpers.demo import API, Visitor, gated, get, pixels_of, post, served
from tests.model.helpers.serving import SECONDS
from tests.model.helpers.tiny import tiny_pipeline

pytest.importorskip("gradio", minversion="6.31")

import bitdance.cli.demo
from bitdance.cli.main import main
from bitdance.integrations.demo.models import demo_model
from bitdance.integrations.demo.reconstruction import MAX_FILE_BYTES


@pytest.fixture(scope="module")
def model():
    return demo_model(tiny_pipeline(), "tiny")


@pytest.fixture(scope="module")
def port(model):
    with served([model], max_waiting=3) as (_, port):
        yield port


def settings(name="boot", seed=7, count=1):
    """Values of the fields: class, images, steps, guidance, seed."""
    return [name, count, 2, 2.0, str(seed)]


def expected(model, name="boot", seed=7):
    return model.pipeline(name, num_inference_steps=2, seed=seed).images[0]


def test_the_page_loads_nothing_from_elsewhere(port):
    status, headers, body = get(port, "/")
    assert status == 200
    policy = dict(part.split(" ", 1) for part in headers["content-security-policy"].split("; "))
    assert policy["default-src"] == "'self'"
    for sources in policy.values():
        assert set(sources.split()) <= {
            "'self'", "'none'", "'unsafe-inline'", "'unsafe-eval'", "data:", "blob:"
        }  # fmt: skip
    text = body.decode()
    loaded = re.findall(r"<(?:script|img|iframe|link)\b[^>]*\b(?:src|href)=\"([^\"]+)", text)
    assert loaded
    assert not [url for url in loaded if "//" in url]
    theme = get(port, "/theme.css")[2].decode()
    assert "@import" not in theme
    assert not re.findall(r"url\(\s*['\"]?(?:https?:)?//", theme)


def test_nothing_is_told_to_others(port):
    config = json.loads(get(port, "/config")[2])
    assert config["analytics_enabled"] is False
    assert config["run_history"] is False
    assert config["footer_links"] == []
    assert config["stylesheets"] == []
    assert {d["api_visibility"] for d in config["dependencies"]} == {"private"}
    assert json.loads(get(port, f"{API}/info")[2])["named_endpoints"] == {}
    assert get(port, "/docs")[0] == 404
    assert get(port, f"{API}/file=/etc/passwd")[0] in (403, 404)
    assert get(port, f"{API}/file={__file__}")[0] in (403, 404)


def test_a_run(model, port):
    visitor = Visitor(port, "run")
    assert visitor.join(visitor.tabs[0], settings(count=2))[0] == 200
    messages = list(visitor.messages())
    assert "patch 4 of 4" in str(messages)
    assert "patch 1 of 4" in str(messages)
    status, grid, gallery, details = messages[-1]["output"]["data"]
    assert "Seed 7." in status
    assert np.array_equal(pixels_of(grid)[0], expected(model))
    assert len(pixels_of(grid)) == len(gallery) == 2
    assert np.array_equal(pixels_of(details)[0], expected(model))
    for picture in gallery:
        path = picture["image"]["url"].partition(f"{port}")[2]
        assert get(port, path)[2].startswith(b"\x89PNG")
    _, _, gallery, _ = visitor.draw(*settings("bag"))
    assert len(gallery) == 3


def test_visitors_take_turns_and_get_their_own_pictures(model, port, monkeypatch):
    reached, go_on = gated(model, monkeypatch)
    order, sample = [], model.sample

    def noted(wanted, callback):
        order.append(wanted.seed)
        return sample(wanted, callback)

    monkeypatch.setattr(model, "sample", noted)
    visitors = [Visitor(port, f"visitor{i}") for i in range(4)]
    for i, visitor in enumerate(visitors):  # the first is under way, three wait
        assert visitor.join(visitor.tabs[0], settings(("boot", "bag")[i % 2], i))[0] == 200
        assert reached.wait(SECONDS)
    status, answer = Visitor(port, "late").join(visitors[0].tabs[0], settings())
    assert (status, "Queue is full" in str(answer)) == (503, True)
    go_on.set()
    with ThreadPoolExecutor(4) as pool:
        last = list(pool.map(lambda visitor: list(visitor.messages())[-1], visitors))
    assert order == [0, 1, 2, 3]
    for i, message in enumerate(last):
        _, grid, gallery, _ = message["output"]["data"]
        assert np.array_equal(pixels_of(grid)[0], expected(model, ("boot", "bag")[i % 2], i))
        assert len(gallery) == 1


def test_a_visitor_who_stops_waits_no_more(model, port, monkeypatch):
    reached, go_on = gated(model, monkeypatch)
    first, second = Visitor(port, "first"), Visitor(port, "second")
    assert first.join(first.tabs[0], settings())[0] == 200
    assert reached.wait(SECONDS)
    _, joined = second.join(second.tabs[0], settings(seed=1))
    drawn = []
    sample = model.sample
    monkeypatch.setattr(model, "sample", lambda *given: drawn.append(given) or sample(*given))
    body = {"session_hash": "second", "fn_index": second.tabs[0], "event_id": joined["event_id"]}
    assert post(port, f"{API}/cancel", body)[0] == 200
    go_on.set()
    assert "Seed 7." in str(list(first.messages())[-1])
    assert "Seed 9." in first.draw(*settings(seed=9))[0]  # after the turn of the second
    assert [wanted.seed for wanted, _ in drawn] == [9]


def test_a_run_is_stopped(model, port, monkeypatch):
    reached, go_on = gated(model, monkeypatch)
    visitor = Visitor(port, "stops")
    visitor.join(visitor.tabs[0], settings())
    assert reached.wait(SECONDS)
    stop = next(d["id"] for d in visitor.config["dependencies"] if d["types"]["cancel"]) - 1
    body = {"data": [], "fn_index": stop, "session_hash": "stops"}
    status, _, answer = post(port, f"{API}/run/predict", body)
    assert (status, "Stopped." in str(answer)) == (200, True)
    go_on.set()
    assert "Stopped after patch 1 of 4." in str(list(visitor.messages())[-1])


def test_a_visitor_who_leaves_is_forgotten(model, port, monkeypatch):
    from http.client import HTTPConnection

    from bitdance.integrations.demo.visits import Visits

    left, leave = threading.Event(), Visits.leave

    def noted(visits, visitor):
        leave(visits, visitor)
        if visitor == "leaves":
            assert visits.pictures("leaves") == []
            left.set()

    monkeypatch.setattr(Visits, "leave", noted)
    connection = HTTPConnection("127.0.0.1", port, timeout=SECONDS)
    connection.request("GET", f"{API}/heartbeat/leaves")
    connection.getresponse().readline()
    Visitor(port, "leaves").draw(*settings())
    connection.sock.close()
    connection.close()
    assert left.wait(SECONDS)


@pytest.mark.parametrize(
    ("changes", "field", "message"),
    [({0: "zebra"}, 0, "no class 'zebra'"), ({4: "seven"}, 4, "seed must be a whole number")],
    ids=["class", "seed"],
)
def test_a_field_says_what_is_wrong_with_it(port, changes, field, message):
    values = settings()
    for number, value in changes.items():
        values[number] = value
    visitor = Visitor(port, "wrong")
    status, answer = visitor.join(visitor.tabs[0], values)
    if isinstance(answer["detail"], str):  # Gradio's own check of a choice
        assert status == 400
        assert "zebra" in answer["detail"]
        return
    assert status == 422
    wrong = [i for i, field in enumerate(answer["detail"]) if not field["is_valid"]]
    assert wrong == [field]
    assert message in answer["detail"][field]["message"]


@pytest.mark.parametrize(
    "values", [settings(count=10**6), [None] * 5, [{"a": 1}] * 5, [[]] * 5, [], ["boot"]]
)
def test_nonsense_is_refused_without_a_trace(port, values):
    visitor = Visitor(port, "nonsense")
    status, answer = visitor.join(visitor.tabs[0], values)
    assert status >= 400
    assert "Traceback" not in str(answer)
    assert "Seed 7." in visitor.draw(*settings())[0]


def test_a_picture_is_sent_and_rebuilt(model, port, tmp_path):
    from PIL import Image

    path = tmp_path / "a.png"
    Image.new("RGB", (16, 16), "red").save(path)
    visitor = Visitor(port, "sends")
    run = next(d["id"] for d in visitor.config["dependencies"] if len(d["inputs"]) == 3)

    def rebuilt(content):
        file = upload(port, content)
        values = [{"path": file, "meta": {"_type": "gradio.FileData"}}, "tiny", 8]
        assert visitor.join(run, values)[0] == 200
        *_, last = visitor.messages()
        assert last["success"], last
        return last["output"]["data"][0]

    original, _, bits = pixels_of(rebuilt(path.read_bytes()))
    assert (original == (255, 0, 0)).all()
    assert bits.shape == (4 * 3 - 1, 4 * 5 - 1)
    assert "a.png is not a complete image" in rebuilt(b"no picture")


def upload(port, content):
    """The path that the server gives to a file that is sent."""
    head = b'--x\r\ncontent-disposition: form-data; name="files"; filename="a.png"\r\n\r\n'
    headers = {"content-type": "multipart/form-data; boundary=x"}
    status, _, body = post(
        port, f"{API}/upload", head + content + b"\r\n--x--\r\n", headers=headers
    )
    return json.loads(body)[0] if status == 200 else status


def test_a_file_that_is_too_large_is_refused(port):
    assert upload(port, b"\0" * (MAX_FILE_BYTES + 1)) == 413


def test_files_are_removed_at_the_end(model, tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    with served([model]) as (_, port):
        Visitor(port, "a").draw(*settings())
        assert list(tmp_path.rglob("*.png"))
    assert not list(tmp_path.glob("bitdance-demo-*"))


def test_the_command_serves_the_model_that_it_is_given(model, tmp_path, monkeypatch, capsys):
    from bitdance.integrations.demo import server

    model.pipeline.save_pretrained(tmp_path / "own")
    given = []
    monkeypatch.setattr(server, "serve_page", lambda models, **rest: given.append((models, rest)))
    arguments = ["demo", "--model", str(tmp_path / "own"), "--port", "0", "--max-images", "2"]
    assert main(arguments) == 0
    (((own,), options),) = given
    assert (own.name, own.limits.max_images) == ("own", 2)
    assert own.subjects == model.subjects
    assert options == {"host": "127.0.0.1", "port": 0, "max_waiting": 32, "open_browser": False}
    capsys.readouterr()
    for wrong, message in (
        (["--port", "70000"], "--port must be from 0 to 65535, got 70000"),
        (["--config", "B-16x"], "--config must be left out without --model"),
        ([*arguments[1:3], "--tokenizer", "a"], "--tokenizer must be left out with"),
        (["--model", str(tmp_path / "none")], "none"),
    ):
        assert main(["demo", *wrong]) == 1
        assert message in capsys.readouterr().err
    monkeypatch.setattr(bitdance.cli.demo.importlib.util, "find_spec", lambda name: None)
    assert main(["demo"]) == 1
    assert "demo needs gradio: pip install 'bitdance[demo]'" in capsys.readouterr().err
    assert len(given) == 1
