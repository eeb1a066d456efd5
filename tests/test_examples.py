"""The examples run, at small sizes, and show what they say."""

import re
from pathlib import Path

import pytest

from tests.forked import run_script

ROOT = Path(__file__).parent.parent


@pytest.fixture
def run(tmp_path):
    """Output of an example."""

    def run(name, *arguments):
        output = tmp_path / "output"
        status = run_script(ROOT / "examples" / name, [*map(str, arguments)], output)
        assert status == 0, output.read_text()
        return output.read_text()

    return run


def test_every_example_has_a_test():
    here = Path(__file__).read_text() + (ROOT / "tests/test_docs.py").read_text()
    for path in (ROOT / "examples").glob("*.py"):
        assert path.name in here, f"no test runs examples/{path.name}"


def test_packed_to_parquet(run, tmp_path):
    out = run("packed_to_parquet.py", "--out", tmp_path / "out", "--images", 600)
    assert "600 images of 16 tokens of 64 bits" in out
    assert "the most frequent class: " in out
    assert "degrees" in out
    assert "read back: equal" in out
    again = run("packed_to_parquet.py", "--data", tmp_path / "out/again", "--out", tmp_path / "two")
    assert again.replace("two", "out") == out
    similar = run("code_search.py", "--data", tmp_path / "out/codes", "--queries", 50)
    share, chance = map(float, re.findall(r"([\d.]+)%", similar))
    assert share > 3 * chance


def test_code_search(run):
    out = run("code_search.py", "--codes", 3000, "--queries", 50)
    assert "50 changed copies among 3000 codes of 64 bits" in out
    found = [float(x) for x in re.findall(r"changed: +([\d.]+)% nearest", out)]
    assert found[0] == 100
    assert found == sorted(found, reverse=True)


def test_block_causal_attention(run):
    out = run("block_causal_attention.py", "--steps", 80, "--patches", 3)
    losses = [float(x) for x in re.findall(r"loss ([\d.]+)", out)]
    assert losses[0] > 0.6
    assert losses[-1] < 0.1 * losses[0]
    right, same = map(float, re.findall(r"([\d.]+)%", out))
    assert right > 95
    assert same == 100


def test_train_autoencoder(run):
    out = run("train_autoencoder.py", "--steps", 120, "--batch-size", 64)
    errors = [float(x) for x in re.findall(r"error ([\d.]+)", out)]
    assert errors[-1] < 0.4 * errors[0]
    decibels, bits, used, of = map(float, re.findall(r"[\d.]+", out[out.index("new images") :]))
    assert decibels > 10
    assert (bits, of) == (256, 16)
    assert used >= 12


@pytest.mark.nightly
def test_imagenet_dry_run(run, tmp_path):
    """Images, codes, training and samples on two processes, metrics."""
    sizes = ("--images", 130, "--samples", 130, "--steps", 2)
    out = run("imagenet_dry_run.py", "--out", tmp_path / "dry", *sizes)
    assert "130 images of 64 codes of 32 bits, each 4 times" in out
    assert "130 of 130 images have equal bits on one process and on two" in out
    assert (tmp_path / "dry/metrics/metrics.md").read_text() in out
    assert "| Fréchet distance (classifier, 128 features) |" in out


@pytest.mark.parametrize(
    ("kind", "images", "settings"),
    [
        ("patch_official", 2, ("--labels", 0, 1)),
        ("patch_text_to_image", 1, ("--size", 4, 8, "--prompt", "a dog")),
    ],
)
def test_speed_up_official(run, kind, images, settings):
    """A look-alike takes the place of the authors' model."""
    build = f"tests.model.integrations.test_{kind}:small"
    out = run("speed_up_official.py", build, *settings, "--num-inference-steps", 4, "--rounds", 1)
    assert re.search(rf"{images} images: [\d.]+ s before, [\d.]+ s after: [\d.]+x", out)
    assert float(re.search(r"([\d.]+)% of the values", out)[1]) > 99
