"""``bitdance tokenize --captions``: each image in its bucket, with all captions."""

import json
import logging

import numpy as np
import pytest
import torch
from PIL import Image

from bitdance.cli.main import main
from bitdance.data import tokenize_captions as module
from bitdance.data.captioned_dataset import CaptionedDataset
from bitdance.data.captioned_writer import CaptionedWriter
from bitdance.data.crops import center_crop
from bitdance.data.images import to_float
from bitdance.models.autoencoder.autoencoder import BinaryAutoencoder
from tests.model.helpers.text_to_image_run import write_autoencoder

SIZES = [(20, 20), (31, 17), (16, 40), (24, 23), (50, 20)]
BUCKETS = ["16x16", "16x8", "8x16"]
EXPECTED = [(16, 16), (8, 16), (16, 8), (16, 16), (8, 16)]


@pytest.fixture
def source(tmp_path):
    """Five images of noise with two captions each; returns the path of their list."""
    rng, lines = np.random.default_rng(0), []
    for i, (width, height) in enumerate(SIZES):
        Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8)).save(
            tmp_path / f"{i}.png"
        )
        lines.append({"image": f"{i}.png", "captions": [f"picture {i}", f"bild {i}"]})
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, lines)))
    write_autoencoder(tmp_path)
    return tmp_path / "a.jsonl"


def run(source, out, *options):
    return main(
        ["tokenize", str(source), "--captions", "--autoencoder", str(source.parent), "--out",
         str(out), "--quiet", *options]
    )  # fmt: skip


@pytest.mark.parametrize(("batch", "limit"), [(1, "PIXELS"), (1, "SIZE"), (256, "SIZE")])
def test_codes_are_those_of_the_cropped_images(
    tmp_path, source, capsys, monkeypatch, batch, limit
):  # fmt: skip
    monkeypatch.setattr(module, f"_BATCH_{limit}", batch)
    monkeypatch.setattr(module, "_WINDOW", 2)
    assert run(source, tmp_path / "out", "--parallel-num", "4", "--sizes", *BUCKETS) == 0
    assert "5 images (8 x 16: 2, 16 x 8: 1, 16 x 16: 2) with 10 captions" in capsys.readouterr().out
    data = CaptionedDataset(tmp_path / "out")
    assert data.metadata == {"sizes": [[16, 16], [16, 8], [8, 16]]}
    autoencoder = BinaryAutoencoder.from_pretrained(source.parent)
    found = {data.id(i): i for i in range(len(data))}
    for size in set(EXPECTED):
        images = [i for i in range(5) if EXPECTED[i] == size]
        for part in [images] if batch > 1 else [[i] for i in images]:
            crops = [np.array(center_crop(Image.open(tmp_path / f"{i}.png"), *size)) for i in part]
            x = to_float(torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2).contiguous())
            with torch.no_grad():
                expected = autoencoder.encode(x, packed=True).flatten(1, 2).numpy()
            for i, codes in zip(part, expected, strict=True):
                number = found[f"{i}.png"]
                assert data.captions(number) == [f"picture {i}", f"bild {i}"]
                assert tuple(data.grids[number] * 2) == size
                assert np.array_equal(data.codes(number), codes)


def test_a_budget_of_pixels_makes_sizes_of_whole_patches(tmp_path, source):
    options = ["--max-pixels", "300", "--max-ratio", "3", "--parallel-num", "4"]
    assert run(source, tmp_path / "out", *options) == 0
    data = CaptionedDataset(tmp_path / "out")
    assert (data.grids % 2 == 0).all()
    assert (data.grids.prod(1) * 4 <= 300).all()
    assert len(np.unique(data.grids, axis=0)) == 3


def test_a_writer_does_not_keep_all(tmp_path):
    with CaptionedWriter(tmp_path / "out", channels=8, max_bytes=40) as writer:
        for i in range(9):
            grid = (2, 2 + i % 2)
            writer.write(f"{i}", np.full((*grid, 1), i, np.uint8), ["a"])
            assert sum(of_grid.bytes for of_grid in writer._pending.values()) <= 40
    data = CaptionedDataset(tmp_path / "out")
    assert sorted(int(data.codes(i)[0, 0]) for i in range(9)) == list(range(9))
    assert all(data.id(i) == str(data.codes(i)[0, 0]) for i in range(9))


@pytest.mark.parametrize("break_it", ["image", "caption", "missing"])
def test_what_is_wrong_ends_the_command_or_is_skipped(
    tmp_path, source, capsys, caplog, break_it
):  # fmt: skip
    lines = source.read_text().splitlines()
    if break_it == "image":
        (tmp_path / "2.png").write_bytes((tmp_path / "2.png").read_bytes()[:200])
        message = "2.png is not a complete image"
    elif break_it == "missing":
        (tmp_path / "2.png").unlink()
        message = "2.png is not an image file: No such file or directory"
    else:
        lines[2] = '{"image": "2.png", "captions": [" "]}'
        message = "line 3 has an empty caption"
    source.write_text("\n".join(lines))
    options = ["--parallel-num", "4", "--sizes", *BUCKETS]
    assert run(source, tmp_path / "out", *options) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()
    with caplog.at_level(logging.WARNING):
        assert run(source, tmp_path / "out", *options, "--on-error", "skip") == 0
    assert "4 images" in capsys.readouterr().out
    assert len(CaptionedDataset(tmp_path / "out")) == 4
    assert message in caplog.text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--size", "10"], "--size must be multiples of 8, the pixels of a patch of 4 x 4 tokens"),
        (["--sizes", "8x12"], "--sizes must be multiples of 8"),
        (["--sizes", "8"], "--sizes must be HEIGHTxWIDTH, got '8'"),
        (["--max-pixels", "63"], "--max-pixels must be at least 64, a patch of 8 x 8, got 63"),
        (["--size", "8", "--parallel-num", "8"], "--parallel-num must be a square number, got 8"),
        (["--size", "8", "--max-ratio", "2"], "--max-ratio must be left out without --max-pixels"),
        (["--max-pixels", "64", "--max-ratio", "0.5"], "--max-ratio must be at least 1, got 0.5"),
        (["--size", "8", "--flips"], "--flips must be left out with --captions"),
        (["--size", "8", "--classes", "a"], "--classes must be left out with --captions"),
        (["--size", "8", "--on-error", "check"], "--on-error must be raise or skip"),
    ],
)
def test_wrong_arguments_are_named(tmp_path, source, capsys, options, message):
    assert run(source, tmp_path / "out", *options) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_sizes_are_for_captions(tmp_path, source, capsys):
    command = ["tokenize", str(tmp_path), "--autoencoder", str(tmp_path), "--out", "x"]
    assert main([*command, "--sizes", "8x8"]) == 1
    assert "--sizes must be left out without --captions, got ['8x8']" in capsys.readouterr().err
