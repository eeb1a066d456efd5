import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from bitdance.cli.main import main
from bitdance.io.image_grid import grid
from bitdance.models.config import PRESETS
from bitdance.pipelines.class_conditional import BitDancePipeline
from tests.model.helpers.terminal import open_terminal, read_rest
from tests.model.helpers.tiny import tiny_model, tiny_pipeline

ROOT = Path(__file__).parent.parent.parent.parent


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli") / "model"
    tiny_pipeline().save_pretrained(folder)
    return folder


def _generate(saved, out, *more):
    fixed = ["--model", str(saved), "--num-inference-steps", "2", "--out", str(out), "--quiet"]
    return main(["generate", *fixed, *more])


def test_generate_a_grid(saved, tmp_path, capsys):
    out = tmp_path / "new" / "grid.png"
    assert _generate(saved, out, "--class", "boot", "3", "--num-images", "3") == 0
    assert Image.open(out).size == (3 * 8 + 4, 2 * 8 + 2)  # a row per class
    assert f"6 images, seed 0: {out}" in capsys.readouterr().out
    expected = BitDancePipeline.from_pretrained(saved)(
        [0] * 3 + [3] * 3, num_inference_steps=2
    ).images
    assert np.array_equal(np.asarray(Image.open(out)), np.asarray(grid(expected, 3)))


def test_generate_a_folder(saved, tmp_path):
    assert _generate(saved, tmp_path / "images", "--class", "night dress", "--num-images", "5") == 0
    names = sorted(path.name for path in (tmp_path / "images").iterdir())
    assert names == [f"{i:05d}-class3.png" for i in range(5)]


def test_the_file_of_a_seed_does_not_depend_on_the_batch(saved, tmp_path):
    for name, size in (("a.png", "1"), ("b.png", "4")):
        options = ("--class", "1", "--num-images", "4", "--seed", "9", "--batch-size", size)
        assert _generate(saved, tmp_path / name, *options) == 0
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--class", "dragon"], "class must be 0 to 4 or a name, got 'dragon'"),
        (["--class", "5"], "class must be 0 to 4 or a name, got '5'"),
        (["--class", "0", "--seed", "-1"], "seed must be an integer from 0 to 2^64 - 1, got -1"),
        (["--class", "0", "--device", "tpu"], "tpu"),
    ],
)
def test_errors_are_one_line(saved, tmp_path, capsys, more, message):
    assert _generate(saved, tmp_path / "x.png", *more) == 1
    printed = capsys.readouterr()
    assert printed.err.startswith("bitdance generate: ")
    assert message in printed.err
    assert printed.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_missing_and_broken_models(tmp_path, capsys):
    assert _generate(tmp_path / "nothing", tmp_path / "x.png", "--class", "0") == 1
    assert "is not a file, a folder or a repository id" in capsys.readouterr().err
    (tmp_path / "model.pt").write_bytes(b"no checkpoint")
    assert _generate(tmp_path / "model.pt", tmp_path / "x.png", "--class", "0") == 1
    assert "model.pt is not a complete checkpoint file" in capsys.readouterr().err


def test_unwritable_output_is_refused_before_the_work(saved, tmp_path, capsys, monkeypatch):
    def never(*_, **__):
        pytest.fail("the model was loaded first")

    monkeypatch.setattr(BitDancePipeline, "from_pretrained", never)
    (tmp_path / "file").write_text("")
    assert _generate(saved, tmp_path / "file" / "x.png", "--class", "0") == 1
    assert "bitdance generate: " in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["paint"],
        ["generate"],
        ["generate", "--model", "m", "--class", "0", "--num-inference-steps", "0"],
    ],
)
def test_wrong_usage_exits_with_2(arguments, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2


def test_help_explains(capsys):
    for arguments in (["--help"], ["generate", "--help"], ["reconstruct", "--help"]):
        with pytest.raises(SystemExit) as stopped:
            main(arguments)
        assert stopped.value.code == 0
    assert "side by side" in capsys.readouterr().out


def test_reconstruct(saved, tmp_path, capsys):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (21, 30, 3), dtype=np.uint8))
    image.save(tmp_path / "photo.png")
    arguments = ["reconstruct", "--model", str(saved), str(tmp_path / "photo.png")]
    assert main([*arguments, "--out", str(tmp_path / "out")]) == 0
    pair = Image.open(tmp_path / "out" / "photo-reconstructed.png")
    assert pair.size == (2 * 30 + 2, 20)  # cropped to whole cells
    assert " dB: " in capsys.readouterr().out
    (tmp_path / "text.png").write_text("no image")
    assert main(["reconstruct", "--model", str(saved), str(tmp_path / "text.png")]) == 1
    assert "text.png is not a complete image" in capsys.readouterr().err


def test_info(saved, capsys):
    assert main(["info", str(saved), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    model = BitDancePipeline.from_pretrained(saved).model
    assert report["parameters"]["all"] == sum(p.numel() for p in model.parameters())
    assert report["bits_per_image"] == 16 * 8
    assert main(["info", str(saved)]) == 0
    assert "16 tokens of 8 bits" in capsys.readouterr().out
    assert main(["info"]) == 0
    assert "pack_signs" in capsys.readouterr().out


def test_ctrl_c_leaves_nothing_half_written(saved, tmp_path):
    out = tmp_path / "x.png"
    command = [sys.executable, "-m", "bitdance.cli", "generate", "--model", str(saved)]
    terminal, stderr = open_terminal()
    running = subprocess.Popen(
        [*command, "--class", "0", "--num-images", "64", "--num-inference-steps", "5000",
         "--out", str(out)],
        cwd=ROOT, stderr=stderr, env={**os.environ, "PYTHONUNBUFFERED": "1"},
        # As in a terminal: a shell makes what it puts into the background ignore the signal.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    os.close(stderr)
    seen = b""
    while b"/32" not in seen:  # the progress bar: generation has begun
        seen += os.read(terminal, 100)
    time.sleep(0.2)
    running.send_signal(signal.SIGINT)
    rest = read_rest(terminal)
    assert running.wait(60) == 130
    assert rest.endswith(b"stopped\r\n")
    assert b"Traceback" not in seen + rest
    assert list(tmp_path.iterdir()) == []


def test_b_16x_from_an_official_checkpoint_and_from_our_folder(tmp_path):
    """Fewer and narrower layers, at random: the command line gives the bits of the .pt file."""
    preset = PRESETS["B-16x"]
    narrow = {"dim": 128, "n_layer": 2, "n_head": 2, "diff_dim": 128, "diff_layers": 2}
    autoencoder = dataclasses.replace(preset.autoencoder, ch=32, num_res_blocks=1)
    model = tiny_model(**{**preset.to_dict(), **narrow, "autoencoder": autoencoder})
    config = model.config
    official = tmp_path / "BitDance_B_16x.pt"
    torch.save({"ema": model.half().state_dict(), "epoch": 1}, official)
    pipeline = BitDancePipeline.from_pretrained(official, config=config, dtype=torch.float16)
    official.unlink()
    pipeline.save_pretrained(tmp_path / "folder")
    pipeline.model.float()  # what the folder is loaded as otherwise
    expected = pipeline(
        ["golden retriever"], num_inference_steps=1, seed=5, output_type="latent"
    ).images
    out, bits = tmp_path / "x.png", tmp_path / "bits.npy"
    options = ["--num-inference-steps", "1", "--seed", "5", "--out", str(out), "--quiet"]
    command = [sys.executable, "-m", "bitdance.cli", "generate", "--model", tmp_path / "folder"]
    command += ["--class", "golden retriever", *options, "--bits", bits]
    subprocess.run(command, cwd=ROOT, check=True)
    assert np.asarray(Image.open(out)).shape == (256, 256, 3)
    assert expected.shape == (1, 256, 4)
    assert 0.3 < np.unpackbits(np.load(bits)).mean() < 0.7
    assert np.array_equal(np.load(bits), expected)
