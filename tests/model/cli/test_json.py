"""What commands print for programs."""

import argparse
import dataclasses
import json
import math
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import bitdance.cli.bench
import bitdance.cli.evaluate
import bitdance.cli.main
from bitdance.cli.main import main
from bitdance.cli.report import Report, run_and_print
from bitdance.evaluation.evaluate import Evaluation
from bitdance.training.trainer import Trainer
from bitdance_kernels import env_report
from tests.model.helpers.tiny import tiny_pipeline

DOCS = Path(__file__).parents[3] / "docs" / "scripts.md"
STEPS = ["--num-inference-steps", "1"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model, images in a folder for each of its classes, and the recipe of an autoencoder."""
    folder = tmp_path_factory.mktemp("json")
    tiny_pipeline().save_pretrained(folder / "model")
    rng = np.random.default_rng(0)
    for i in range(40):
        path = folder / "photos" / f"class{i % 5}" / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).save(path)
    (folder / "broken.png").write_text("no image")
    (folder / "run.toml").write_text(
        '[data]\npath = "photos"\nsize = 8\n[optim]\nsteps = 1\nwarmup = 0\nbatch_size = 2\n'
        "[autoencoder]\nch = 32\nch_mult = [1, 1]\nz_channels = 8\nnum_codebooks = 1\n"
    )
    return folder


@pytest.fixture
def printed(folder, tmp_path, capsys, monkeypatch):
    """Runs a command in the folder of inputs; returns its object."""
    monkeypatch.chdir(folder)

    def run(*arguments, status=0):
        words = [str(tmp_path / word[1:]) if word.startswith("@") else word for word in arguments]
        assert main([*words, "--json"]) == status
        value = json.loads(capsys.readouterr().out)  # one object, and nothing else
        assert isinstance(value, dict)
        documented(arguments[0], value)
        return value

    return run


def documented(command, value):
    """Check that the page names all keys of the object and of objects in its lists."""
    rows = [line for line in DOCS.read_text().splitlines() if line.startswith(f"| `{command}")]
    keys = set(value)
    for items in value.values():
        if isinstance(items, list) and items and isinstance(items[0], dict):
            keys |= set(items[0])
    assert rows
    assert [key for key in sorted(keys) if f"`{key}`" not in "".join(rows)] == []


def test_generate(printed, tmp_path):
    found = printed(
        "generate", "--model", "model", *STEPS, "--class", "1", "--num-images", "2", "--seed", "3",
        "--out", "@images",
    )  # fmt: skip
    files = [str(tmp_path / "images" / f"0000{i}-class1.png") for i in range(2)]
    assert found == {"images": 2, "seed": 3, "files": files, "bits": None}
    assert all(Path(file).is_file() for file in files)
    out, bits = tmp_path / "grid.png", tmp_path / "bits.npy"
    found = printed(
        "generate", "--model", "model", *STEPS, "--class", "all", "--out", "@grid.png",
        "--bits", "@bits.npy",
    )  # fmt: skip
    assert found == {"images": 5, "seed": 0, "files": [str(out)], "bits": str(bits)}


def test_sample_then_metrics(printed, tmp_path):
    given = ("sample", "--model", "model", *STEPS, "--num-per-class", "2", "--out", "@many")
    out = str(tmp_path / "many" / "samples.npz")
    expected = {"images": 10, "generated": 10, "seed": 0, "out": out}
    assert printed(*given) == expected
    assert printed(*given) == expected | {"generated": 0}
    (tmp_path / "few.py").write_text(
        "def few(weights, device):\n"
        "    print('printed by the network')\n"
        "    return lambda images: (images.double().mean((2, 3)), None)\n"
    )
    sys.path.insert(0, str(tmp_path))
    try:
        found = printed(
            "metrics", out, "--reference", out, "--features", "few:few", "--out", "@found"
        )
    finally:
        sys.path.remove(str(tmp_path))
    assert (found["samples"], found["reference"]) == (10, 10)
    assert found["frechet"] == pytest.approx(0, abs=1e-6)
    assert found["inception_score"] is None
    assert found["files"] == [str(tmp_path / "found" / f"metrics.{s}") for s in ("json", "md")]


def test_reconstruct(printed, tmp_path, capsys):
    found = printed(
        "reconstruct", "--model", "model", "photos/class0/0.png", "broken.png",
        "--on-error", "skip", "--out", "@pairs",
    )  # fmt: skip
    assert found["skipped"] == 1
    (image,) = found["images"]
    assert image["image"] == "photos/class0/0.png"
    assert Path(image["out"]).is_file()
    assert image["bytes"] == 16
    assert math.isfinite(image["psnr_db"])


def test_info(printed, monkeypatch):
    assert printed("info", "model")["bits_per_image"] == 16 * 8
    monkeypatch.setattr(env_report, "collect", lambda: {"version": "1"})  # it looks for compilers
    monkeypatch.setattr(env_report, "text", str)
    assert printed("info") == {"version": "1"}


def test_export(printed, tmp_path):
    found = printed("export", "--model", "model", "--out", "@exported")["files"]
    there = [path for path in (tmp_path / "exported").iterdir() if not path.name.startswith(".")]
    assert {f["file"]: f["bytes"] for f in found} == {str(p): p.stat().st_size for p in there}
    files = printed("export", "--model", "model", "--format", "official", "--out", "@official")
    assert len(files["files"]) == 4


def test_train_then_tokenize(printed, tmp_path, monkeypatch):
    given = ("train", "autoencoder", "run.toml", "--out", "@run", "--quiet")
    out = str(tmp_path / "run")
    assert printed(*given) == {"step": 1, "steps": 1, "signal": None, "out": out}
    found = printed(
        "tokenize", "photos", "--autoencoder", "@run", "--size", "8", "--flips", "--out", "@codes"
    )
    assert found == {
        "images": 40, "variants": 2, "codes_per_image": 16, "bits_per_code": 8,
        "out": str(tmp_path / "codes"),
    }  # fmt: skip
    monkeypatch.setattr(Trainer, "run", lambda self, last: signal.SIGTERM.value)
    assert printed(*given, status=143)["signal"] == 15


def test_tokenize_with_captions(printed, folder, tmp_path):
    line = {"image": str(folder / "photos" / "class0" / "0.png"), "caption": "a square"}
    (tmp_path / "data.jsonl").write_text(json.dumps(line) + "\n")
    found = printed(
        "tokenize", "@data.jsonl", "--captions", "--autoencoder", "model", "--size", "8",
        "--out", "@captioned",
    )  # fmt: skip
    assert found == {
        "images": 1, "captions": 1, "skipped": 0, "bits_per_code": 8,
        "sizes": [{"height": 8, "width": 8, "images": 1}], "out": str(tmp_path / "captioned"),
    }  # fmt: skip


def test_evaluate(printed, tmp_path, monkeypatch):
    figures = Evaluation(
        psnr_db=math.inf, test_images=40, samples=5, classifier_accuracy=0.5, sample_accuracy=0.5,
        sample_accuracy_by_class={"class0": 1.0}, frechet=1.0, frechet_real=0.5, bits_real=[0.5],
        bits_samples=[0.25],
    )  # fmt: skip
    module = bitdance.cli.evaluate
    monkeypatch.setattr(module, "evaluate", lambda *_, **__: (figures, None, None))
    monkeypatch.setattr(module, "write", lambda *_: None)
    found = printed("evaluate", "photos", "--model", "model", "--split", "train", "--out", "@out")
    names = ("evaluation.json", "evaluation.md", "evaluation.png", "classifier.safetensors")
    assert found == dataclasses.asdict(figures) | {
        "psnr_db": None, "split": "train", "files": [str(tmp_path / "out" / n) for n in names]
    }  # fmt: skip


def test_bench(printed, tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    speed = bitdance.cli.bench.Speed("decode", 8.0, "images", (2.0, 1.0, 4.0))
    monkeypatch.setattr(bitdance.cli.bench, "measure", lambda *_, **__: [speed])
    found = printed("bench", "--model", "model", "--out", "@speed.svg")
    assert found["plot"] == str(tmp_path / "speed.svg")
    assert found["operations"] == [
        {"name": "decode", "amount": 8, "unit": "images", "seconds": [2, 1, 4], "rate": 4}
    ]


def test_an_error_is_a_line_on_stderr_and_stdout_is_empty(capsys):
    assert main(["info", "nowhere", "--json"]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("bitdance info: error: ")


def test_what_json_has_not(capsys):
    values = {"nan": math.nan, "inf": [-math.inf], "path": Path("a"), "odd": "ü\udcff", 1: (True,)}
    options = argparse.Namespace(json=True)
    assert run_and_print(lambda options: Report(values, "text", 7), options) == 7
    expected = {"nan": None, "inf": [None], "path": "a", "odd": "ü\udcff", "1": [True]}
    assert json.loads(capsys.readouterr().out) == expected


def test_every_command_that_ends_has_it():
    parser = bitdance.cli.main._parser()
    (commands,) = (a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    without = [name for name, p in commands.choices.items() if "--json" not in p.format_help()]
    assert without == ["demo", "serve", "train", "completion"]  # train has kinds, which have it
