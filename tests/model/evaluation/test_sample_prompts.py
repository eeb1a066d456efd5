"""Images of prompts in the folders of GenEval and DPG-Bench."""

import json
import os
import socket

import numpy as np
import pytest
import torch
from PIL import Image

from bitdance.cli.main import main
from bitdance.distributed import World
from bitdance.evaluation.prompt_lists import Prompt, read_prompts
from bitdance.evaluation.sample_prompts import sample_prompts
from bitdance.io.folder_lock import FolderLock
from bitdance.pipelines import text_to_image
from tests.forked import READY
from tests.model.models.test_text_to_image import tiny
from tests.model.pipelines.test_text_to_image import SIZE, Words, pipeline, release

LINES = [
    {"tag": "single_object", "include": [{"class": "kite"}], "prompt": "a photo of a kite"},
    {"tag": "counting", "prompt": "three red spoons"},
    {"tag": "colors", "prompt": "a blue fox beside a lamp"},
]  # fmt: skip
TEXTS = [line["prompt"] for line in LINES]
SETTINGS = {"num_inference_steps": 2, "seed": 7, **SIZE, "progress": False}


@pytest.fixture
def lists(tmp_path):
    """One list in every form."""
    folder = tmp_path / "lists"
    (folder / "dpg").mkdir(parents=True)
    (folder / "geneval.jsonl").write_text("\n\n".join(map(json.dumps, LINES)) + "\n")
    named = dict(zip(("kite", "102", "fox.v2"), TEXTS, strict=True))
    for name, text in named.items():
        (folder / "dpg" / f"{name}.txt").write_text(text + "\n")
    (folder / "object.json").write_text(json.dumps(named))
    (folder / "list.json").write_text(json.dumps(
        [{"id": "kite", "prompt": TEXTS[0]}, {"item_id": 102, "text": TEXTS[1]},
         {"id": "fox.v2", "prompt": TEXTS[2]}]))  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def expected():
    """Image j of prompt i, arrays [3, 4, H, W, 3]."""
    images = pipeline()(
        TEXTS, num_images_per_prompt=4, num_inference_steps=2, seed=7, **SIZE, output_type="uint8"
    ).images
    return images.permute(0, 2, 3, 1).unflatten(0, (3, 4)).numpy()


def _array(path):
    return np.asarray(Image.open(path))


def test_lists_in_every_form(lists):
    found = read_prompts(lists / "geneval.jsonl", "geneval")
    assert [prompt.name for prompt in found] == ["00000", "00001", "00002"]
    assert [prompt.text for prompt in found] == TEXTS
    assert [json.loads(prompt.metadata) for prompt in found] == LINES
    named = [Prompt(n, t) for n, t in zip(("kite", "102", "fox.v2"), TEXTS, strict=True)]
    for name in ("object.json", "list.json"):
        assert read_prompts(lists / name, "dpg") == named
    assert read_prompts(lists / "dpg", "dpg") == [named[1], named[2], named[0]]


def test_geneval(lists, tmp_path, expected):
    prompts = read_prompts(lists / "geneval.jsonl", "geneval")
    out = tmp_path / "out"
    assert sample_prompts(pipeline(), prompts, out, layout="geneval", **SETTINGS) == 3
    assert sorted(str(p.relative_to(out)) for p in (out / "00001").rglob("*.*")) == [
        "00001/grid.png", "00001/metadata.jsonl",
        *(f"00001/samples/{j:04d}.png" for j in range(4)),
    ]  # fmt: skip
    for i in range(3):
        assert json.loads((out / f"{i:05d}/metadata.jsonl").read_text()) == LINES[i]
        for j in range(4):
            assert np.array_equal(_array(out / f"{i:05d}/samples/{j:04d}.png"), expected[i, j])
    assert Image.open(out / "00000/grid.png").size == (2 * 12 + 2, 2 * 8 + 2)
    # A part of a prompt's images does not count; the others are not made again.
    (out / "00001/grid.png").unlink()
    (out / "00001/samples/0002.png").write_bytes(b"")
    (out / "00002/samples/0000.png").write_bytes(b"mine")
    again = {**SETTINGS, "batch_size": 100}
    assert sample_prompts(pipeline(), prompts, out, layout="geneval", **again) == 1
    assert np.array_equal(_array(out / "00001/samples/0002.png"), expected[1, 2])
    assert (out / "00002/samples/0000.png").read_bytes() == b"mine"
    for changes, text in (
        ({"seed": 8}, r"seed \(was 7, is 8\)"), ({"layout": "dpg"}, r"layout \(was 'geneval'"),
        ({"prompts": prompts[:2]}, r"prompts \(was"), ({"width": 8}, r"width \(was 12, is 8\)"),
    ):  # fmt: skip
        given = {"prompts": prompts, "layout": "geneval", **SETTINGS, **changes}
        with pytest.raises(ValueError, match=f"holds samples with other settings: .*{text}"):
            sample_prompts(pipeline(), folder=out, **given)


def test_the_folder_is_locked_until_an_error(lists, tmp_path, monkeypatch):
    prompts, out, pipe = (
        read_prompts(lists / "geneval.jsonl", "geneval"),
        tmp_path / "out",
        pipeline(),
    )

    def fail(*_, **__):
        with pytest.raises(OSError, match="in use"):
            FolderLock(out)
        raise MemoryError

    monkeypatch.setattr(type(pipe), "__call__", fail)
    with pytest.raises(MemoryError) as caught:
        sample_prompts(pipe, prompts, out, layout="geneval", **SETTINGS)
    FolderLock(out).release()
    assert caught.tb is not None  # its frames have all that they had, the lock too


def _tiles(path):
    both = _array(path)
    return both.reshape(2, 8, 2, 12, 3).swapaxes(1, 2).reshape(4, 8, 12, 3)


def _rank(rank, port, prompts, out):
    torch.set_num_threads(1)
    os.environ |= {
        "RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
    }  # fmt: skip
    with World.from_env() as world:
        given = {**SETTINGS, "layout": "dpg", "world": world}
        assert sample_prompts(pipeline(), prompts, out, **given) == 3


def test_dpg_by_two_processes(lists, tmp_path, expected):
    prompts, out = read_prompts(lists / "object.json", "dpg"), tmp_path / "out"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = [READY.Process(target=_rank, args=(i, port, prompts, out)) for i in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    names = sorted(path.name for path in out.iterdir() if not path.name.startswith("."))
    assert names == ["102.png", "fox.v2.png", "kite.png"]
    for prompt, images in zip(prompts, expected, strict=True):
        assert np.array_equal(_tiles(out / f"{prompt.name}.png"), images)


def test_the_command(lists, tmp_path, expected, monkeypatch, capsys):
    model = tmp_path / "model"
    model.mkdir()
    release(model, tiny())
    monkeypatch.setattr(text_to_image, "check_tokenizers", lambda: None)
    monkeypatch.setattr(text_to_image, "load_tokenizer", lambda folder: Words())
    given = [
        "sample", "--model", str(model), "--prompts", str(lists / "dpg"), "--layout", "dpg",
        "--height", "8", "--width", "12", "--num-inference-steps", "2", "--seed", "7", "--quiet",
    ]  # fmt: skip
    for there in ("", ", those of 3 prompts there before"):
        assert main([*given, "--out", str(tmp_path / "out")]) == 0
        printed = capsys.readouterr().out
        assert f"4 images of 3 prompts, seed 7{there}: {tmp_path / 'out'}" in printed
    assert main(["sample", "--prompts", str(lists / "dpg"), "--out", str(tmp_path / "x")]) == 1
    assert "--prompts and --layout must be given together" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "layout", "content", "message"),
    [
        ("a.jsonl", "geneval", "", "has no prompts"),
        ("a.jsonl", "geneval", '{"prompt": "x"}\n\n{"prompt": }', "line 3 is not JSON"),
        ("a.jsonl", "geneval", '{"text": "x"}', "line 1 must be an object with a prompt"),
        ("a.jsonl", "geneval", '{"prompt": " "}', "the prompt '00000' is empty"),
        ("a.json", "dpg", "[1]", "items must have an id and a prompt, got 1"),
        ("a.json", "dpg", "3", "it must be an object or a list, got 3"),
        ("a.json", "dpg", '{"../x": "a"}', "the id '../x' is no file name"),
        ("a.json", "dpg", '{".x": "a"}', "the id '.x' is no file name"),
        ("a.json", "dpg", '[{"id": 1, "prompt": "a"}, {"id": "1", "prompt": "b"}]', "given twice"),
        ("a.json", "other", "{}", "layout must be 'geneval' or 'dpg', got 'other'"),
        ("a.json", "dpg", b"\xff\xfe", "must be UTF-8"),
    ],
)
def test_lists_that_are_refused(tmp_path, name, layout, content, message):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=message):
        read_prompts(path, layout)


@pytest.mark.parametrize("layout", ["geneval", "dpg"])
def test_pipes_are_not_opened(tmp_path, layout):
    os.mkfifo(tmp_path / "a.txt")
    source = tmp_path / "a.txt" if layout == "geneval" else tmp_path
    with pytest.raises(ValueError, match=r"a\.txt must be a file, got a pipe"):
        read_prompts(source, layout)


def test_what_is_refused_before_the_work(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file or folder"):
        read_prompts(tmp_path / "nothing", "dpg")
    with pytest.raises(ValueError, match="must be a file of JSON lines, got a folder"):
        read_prompts(tmp_path, "geneval")
    with pytest.raises(ValueError, match="has no prompts"):
        read_prompts(tmp_path, "dpg")
    one, given = [Prompt("a", "a dog")], {**SETTINGS, "layout": "dpg"}
    for changes, message in (
        ({"prompts": []}, "prompts must be at least one"), ({"height": 7}, "height must be"),
        ({"layout": "coco"}, "layout must be"), ({"seed": -1}, "seed must be"),
        ({"batch_size": 0}, "batch_size must be"), ({"num_inference_steps": 0}, "steps must be"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            sample_prompts(
                pipeline(), folder=tmp_path / "x", **{"prompts": one, **given, **changes}
            )
    with pytest.raises(TypeError, match="num_inference_steps must be an integer from 1"):
        sample_prompts(pipeline(), one, tmp_path, **{**given, "num_inference_steps": None})
    assert not any(tmp_path.iterdir())
    (tmp_path / "mine").touch()
    with pytest.raises(FileExistsError, match="is not empty"):
        sample_prompts(pipeline(), one, tmp_path, **given)
