"""Tiles, slices and offloading from the command line."""

import json

import numpy as np
import pytest
from PIL import Image

from bitdance.cli import arguments
from bitdance.cli.main import main
from bitdance.models.autoencoder.tiling import Tiling
from bitdance.sampling.image_decoder import ImageDecoder
from tests.model.cli.test_generate_prompts import _tokenizer, model  # noqa: F401  (fixtures)
from tests.model.helpers.tiny import tiny_pipeline


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli") / "model"
    tiny_pipeline().save_pretrained(folder)
    return folder


@pytest.fixture
def seen(monkeypatch):
    """How autoencoders are set when they decode."""
    found = []
    call = ImageDecoder.__call__

    def look(self, *args, **kwargs):
        found.append((self.autoencoder.tiling, self.autoencoder.use_slicing))
        return call(self, *args, **kwargs)

    monkeypatch.setattr(ImageDecoder, "__call__", look)
    return found


TILES = ["--tiling", "--tile-size", "4"]


def test_generate_decodes_so(saved, model, tmp_path, seen):  # noqa: F811
    out = ["--quiet", "--num-inference-steps", "1"]
    for subject in (
        ["--model", str(saved), "--class", "0", "1"],
        ["--model", str(model), "--prompt", "a fox", "an owl"],
    ):
        pictures = []
        for options in ([], ["--slicing"], [*TILES, "--slicing"], ["--tiling"]):
            path = tmp_path / "x.png"
            assert main(["generate", *subject, *out, *options, "--out", str(path)]) == 0
            pictures.append(np.asarray(Image.open(path)).astype(int))
        whole, sliced, tiled, large = pictures
        assert (sliced == whole).all()
        assert (large == whole).all(), "smaller than the tile by default"
        assert abs(tiled - whole).max() <= 1
    assert set(seen) == {
        (None, False), (None, True), (Tiling(4, exact=True), True),
        (Tiling(arguments.TILE_SIZE, exact=True), False),
    }  # fmt: skip


def test_sample_and_reconstruct_decode_so(saved, tmp_path, seen):
    command = ["sample", "--model", str(saved), "--class", "0", "--num-per-class", "2"]
    command += ["--num-inference-steps", "1", "--quiet", "--out", str(tmp_path / "samples")]
    assert main([*command, *TILES, "--slicing"]) == 0
    assert seen == [(Tiling(4, exact=True), True)]
    Image.new("RGB", (16, 24), (200, 20, 20)).save(tmp_path / "a.png")
    command = ["reconstruct", "--model", str(saved), "--out", str(tmp_path / "out")]
    assert main([*command, *TILES, str(tmp_path / "a.png")]) == 0
    assert seen[1:] == [(Tiling(4, exact=True), False)]


def test_info_counts_them(model, capsys):  # noqa: F811
    def report(*options):
        size = ["--height", "64", "--width", "64", "--batch-size", "4", "--dtype", "float32"]
        assert main(["info", str(model), *size, *options, "--json"]) == 0
        return json.loads(capsys.readouterr().out)["memory"]

    whole, sliced = report(), report("--slicing")
    assert whole["decoding"] > 3.5 * sliced["decoding"]
    assert sliced["decoding"] > 1.5 * report("--tiling", "--tile-size", "16")["decoding"]
    assert whole["weights"] == sliced["weights"]
    assert report("--num-inference-steps", "100")["buffers"] > whole["buffers"]


@pytest.mark.parametrize("command", ["generate", "sample", "reconstruct", "info"])
def test_a_tile_size_needs_tiling(command, saved, tmp_path, capsys):
    given = {
        "generate": ["--class", "0", "--model", str(saved)],
        "sample": ["--model", str(saved), "--out", str(tmp_path / "samples")],
        "reconstruct": ["--model", str(saved), "x.png", "--out", str(tmp_path / "out")],
        "info": [str(saved)],
    }
    assert main([command, *given[command], "--tile-size", "4"]) == 1
    assert "--tile-size must be left out without --tiling, got 4" in capsys.readouterr().err
    assert not (tmp_path / "samples").exists()


def test_offload_needs_a_card(saved, model, tmp_path, capsys):  # noqa: F811
    for command in (
        ["generate", "--class", "0", "--model", str(saved)],
        ["generate", "--prompt", "a", "--model", str(model)],
        ["sample", "--model", str(saved), "--out", str(tmp_path / "samples")],
    ):
        assert main([*command, "--offload"]) == 1
        assert "--offload must be left out with --device cpu" in capsys.readouterr().err


@pytest.mark.parametrize("subject", ["--class", "--prompt"])
def test_offload_leaves_the_weights_on_the_host(saved, model, tmp_path, monkeypatch, subject):  # noqa: F811
    """On a card; here its name stands for the CPU."""
    monkeypatch.setattr(arguments, "check_device", lambda device: None)
    monkeypatch.setattr("bitdance.cli.main.check_device", lambda device: None, raising=False)
    offloaded = []
    for pipeline in (arguments.BitDancePipeline, arguments.BitDanceT2IPipeline):
        enable = pipeline.enable_model_cpu_offload

        def on_cpu(self, device, enable=enable):
            offloaded.append((device, next(self.model.parameters()).device.type))
            return enable(self, "cpu")

        monkeypatch.setattr(pipeline, "enable_model_cpu_offload", on_cpu)
    given = saved if subject == "--class" else model
    command = ["generate", "--model", str(given), subject, "0", "--device", "cuda", "--offload"]
    command += ["--num-inference-steps", "1", "--quiet", "--out", str(tmp_path / "x.png")]
    assert main(command) == 0
    assert offloaded == [("cuda", "cpu")]
