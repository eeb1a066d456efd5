"""Images of prompts from the command line."""

import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from bitdance.cli.main import main
from bitdance.pipelines import text_to_image
from bitdance.pipelines.text_to_image import BitDanceT2IPipeline
from bitdance.pipelines.text_to_image_files import SamplingConfig
from tests.model.models.test_text_to_image import tiny
from tests.model.pipelines.test_text_to_image import Words

PROMPTS = ["a red fox", "an owl"]


class Saved(Words):
    def save(self, path):
        pass


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "model"
    sampling = SamplingConfig(height=8, width=12, num_inference_steps=2, guidance_scale=2.0)
    BitDanceT2IPipeline(tiny(), Saved(), sampling).save_pretrained(folder)
    return folder


@pytest.fixture(autouse=True)
def _tokenizer(monkeypatch):
    monkeypatch.setattr(text_to_image, "check_tokenizers", lambda: None)
    monkeypatch.setattr(text_to_image, "load_tokenizer", lambda folder: Words())


def expected(model, prompts, **settings):
    pipeline = BitDanceT2IPipeline.from_pretrained(model, tokenizer=Words())
    pipeline.set_progress_bar_config(disable=True)
    return [np.asarray(image) for image in pipeline(prompts, seed=3, **settings).images]


def test_a_grid_has_a_row_per_prompt(model, tmp_path):
    command = ["generate", "--model", str(model), "--num-images", "2", "--seed", "3", "--quiet"]
    assert main([*command, "--prompt", *PROMPTS, "--out", str(tmp_path / "grid.png")]) == 0
    grid = np.asarray(Image.open(tmp_path / "grid.png"))
    assert grid.shape == (2 * 8 + 2, 2 * 12 + 2, 3)
    images = expected(model, PROMPTS, num_images_per_prompt=2)
    for i, image in enumerate(images):
        y, x = i // 2 * 10, i % 2 * 14
        assert np.array_equal(grid[y : y + 8, x : x + 12], image)
    wide = tmp_path / "wide.png"
    assert main([*command, "--prompt", *PROMPTS, "--columns", "3", "--out", str(wide)]) == 0
    assert Image.open(wide).size == (3 * 14 - 2, 2 * 10 - 2)
    (tmp_path / "prompts.txt").write_text("a red fox\n\n  an owl\n", encoding="utf-8")
    command += ["--prompts", str(tmp_path / "prompts.txt"), "--out", str(tmp_path / "folder")]
    assert main([*command, "--bits", str(tmp_path / "bits.npy")]) == 0
    names = [f"{i:05d}.png" for i in range(4)]
    assert sorted(path.name for path in (tmp_path / "folder").iterdir()) == names
    for name, image in zip(names, images, strict=True):
        assert np.array_equal(np.asarray(Image.open(tmp_path / "folder" / name)), image)
    assert np.load(tmp_path / "bits.npy").shape == (4, 24, 1)


def test_options_of_prompts(model, tmp_path):
    main([
        "generate", "--model", str(model), "--prompt", "a red fox", "--negative-prompt", "blue",
        "--height", "8", "--width", "12", "--guidance-scale", "3", "--num-inference-steps", "1",
        "--seed", "3", "--out", str(tmp_path / "one.png"), "--quiet",
    ])  # fmt: skip
    settings = {"negative_prompt": "blue", "guidance_scale": 3.0, "num_inference_steps": 1}
    [image] = expected(model, ["a red fox"], **settings)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "one.png")), image)
    assert not np.array_equal(image, expected(model, ["a red fox"])[0])


def test_the_bundled_model_draws_prompts_where_none_is_named(model, tmp_path, monkeypatch, capsys):
    class Package:
        submodule_search_locations = (str(tmp_path / "package"),)

    monkeypatch.setattr("importlib.util.find_spec", lambda name: Package)
    command = ["generate", "--prompt", "an owl", "--seed", "3", "--quiet"]
    command += ["--out", str(tmp_path / "one.png")]
    assert main(command) == 1
    assert "'emoji' is a model of the package bitdance_models, which" in capsys.readouterr().err
    shutil.copytree(model, tmp_path / "package" / "emoji")
    assert main(command) == 0
    assert np.array_equal(
        np.asarray(Image.open(tmp_path / "one.png")), expected(model, "an owl")[0]
    )


def test_a_model_is_exported_in_half_precision(model, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(text_to_image, "load_tokenizer", lambda folder: Saved())
    command = ["export", "--model", str(model), "--out", str(tmp_path / "half")]
    assert main([*command, "--config", "B-16x"]) == 1
    assert "--config must be left out for a text-to-image model" in capsys.readouterr().err
    assert main([*command, "--dtype", "float16"]) == 0
    total = sum(file.stat().st_size for file in (tmp_path / "half").iterdir())
    assert capsys.readouterr().out == f"{total:,} bytes: {tmp_path / 'half'}/\n"
    half = BitDanceT2IPipeline.from_pretrained(tmp_path / "half", tokenizer=Words())
    full = BitDanceT2IPipeline.from_pretrained(model, tokenizer=Words())
    assert half.sampling == full.sampling
    for name, weight in half.model.state_dict().items():
        assert torch.equal(weight, full.model.state_dict()[name].half().float())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--prompt", "a", "--height", "9"], "height must be a multiple of 4 pixels, got 9"),
        (["--prompt", "a", "--height", "12", "--width", "20"], "tokenizer must have <|res_10|>"),
        (["--prompt", "a", "--guidance-schedule", "linear"], "--guidance-schedule must be left"),
        (["--prompt", "a", "--config", "B-16x"], "--config must be left out with --prompt"),
        (["--class", "0", "--height", "8"], "--height must be left out with --class"),
        (["--prompt", "a", "--model", "fashion"], "--model must be a text-to-image model, got"),
        (["--prompts", "none.txt"], "none.txt"),
        (["--prompt", "a" * 40_000], "prompts must have at most"),
        ([], "one of the arguments --class --prompt --prompts is required"),
        (["--prompt", "a", "--class", "0"], "not allowed with argument"),
        (["--prompt", ""], "must be some text"),
    ],
)
def test_what_is_refused(model, tmp_path, capsys, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    command = ["generate", "--model", str(model), *arguments, "--out", "a.png", "--quiet"]
    try:
        status = main(command)
    except SystemExit as end:
        status = end.code
    assert status != 0
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("content", [b"\n \n", b"\xff\xfe"])
def test_a_file_without_prompts_is_refused(model, tmp_path, capsys, content):
    (tmp_path / "prompts").write_bytes(content)
    command = ["generate", "--model", str(model), "--prompts", str(tmp_path / "prompts")]
    assert main([*command, "--out", str(tmp_path / "a.png")]) == 1
    assert "prompts must" in capsys.readouterr().err
