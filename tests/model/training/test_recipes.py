"""The recipes: the published numbers, and a run of one for ImageNet at a small size."""

import dataclasses
import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from bitdance.cli.main import main
from bitdance.models.config import AUTOENCODER_PRESETS, HEAD_PRESETS, PRESETS
from bitdance.models.qwen3 import Qwen3Config
from bitdance.pipelines.class_conditional import BitDancePipeline
from bitdance.training.config import read_config
from tests.model.helpers.tiny import AUTOENCODER, tiny_model

RECIPES = Path(__file__).parents[3] / "recipes" / "imagenet"
TEXT_RECIPES = RECIPES.with_name("text_to_image")
EPOCH = 1_281_167 // 1024


@pytest.mark.parametrize("name", PRESETS)
def test_a_recipe_has_the_published_numbers(name):
    run = read_config(RECIPES / f"{name.lower()}.toml")
    assert run.model_config(AUTOENCODER_PRESETS["d16c32"]) == PRESETS[name]
    optim, data = run.optim, run.data
    assert (optim.steps, optim.batch_size) == (800 * EPOCH, 1024)
    assert (optim.learning_rate(20_000), optim.learning_rate(optim.steps)) == (6e-4, 1e-5)
    assert optim.learning_rate(19_999) == 6e-4 > optim.learning_rate(30_000)
    assert optim.average_decay(1) == 0.9999
    assert (optim.betas, optim.weight_decay, optim.grad_clip) == ((0.9, 0.95), 0.05, 1.0)
    assert data.crop_decay == (700 * EPOCH, 750 * EPOCH)
    assert (data.size, data.flip, data.min_crop, data.shift) == (256, True, 0.8, 0)
    assert run.model.class_dropout_prob == 0.1
    assert run.model.perturb_rate == (0.1 if name.startswith("B") else 0.05)
    assert run.init == ""


def test_the_autoencoder_is_the_published_one():
    run = read_config(RECIPES / "autoencoder.toml")
    assert run.autoencoder == AUTOENCODER_PRESETS["d16c32"]
    assert run.init == read_config(RECIPES / "b-1x.toml").autoencoder_path


@pytest.mark.parametrize("parallel_num", [16, 64])
def test_recipes_for_text_have_the_published_numbers(parallel_num):
    run = read_config(TEXT_RECIPES / f"14b-{parallel_num}x.toml")
    llm = Qwen3Config(hidden_size=5120, num_hidden_layers=40, num_attention_heads=40,
                      num_key_value_heads=8, intermediate_size=17408)  # fmt: skip
    config = run.model_config(llm, AUTOENCODER_PRESETS["d16c32"])
    assert config.head == HEAD_PRESETS["t2i-14b"]
    assert config.parallel_num == parallel_num
    optim, shape = run.optim, run.text_to_image
    assert (optim.steps, optim.seed, optim.eps) == (1_000_000, 4396, 1e-15)
    assert (optim.learning_rate(1999), optim.learning_rate(optim.steps - 1)) == (1e-5, 1e-5)
    assert optim.learning_rate(999) == 5e-6
    assert (optim.betas, optim.grad_clip) == ((0.9, 0.95), 1.0)
    assert (shape.text_weight, shape.vision_weight, shape.diff_batch_mul) == (0.01, 1.0, 1)
    assert (shape.perturb_rate, run.data.text_dropout, run.data.max_tokens) == (0.1, 0.1, 37_376)


def archive(path):
    """Two classes of four pictures, as ILSVRC2012 has them."""
    with tarfile.open(path, "w") as outer:
        for name in ("n01", "n02"):
            inner = io.BytesIO()
            with tarfile.open(fileobj=inner, mode="w") as tar:
                for i in range(4):
                    noise = np.random.default_rng(i).integers(0, 256, (40, 30, 3), dtype=np.uint8)
                    picture = io.BytesIO()
                    Image.fromarray(noise).save(picture, format="JPEG")
                    member = tarfile.TarInfo(f"{name}_{i}.JPEG")
                    member.size = picture.tell()
                    tar.addfile(member, io.BytesIO(picture.getvalue()))
            member = tarfile.TarInfo(f"{name}.tar")
            member.size = inner.tell()
            outer.addfile(member, io.BytesIO(inner.getvalue()))
    return path


def test_a_recipe_runs_on_the_archive_and_on_its_codes(tmp_path, monkeypatch):
    monkeypatch.setattr("bitdance.training.log.Log.plot", lambda *_: None)  # takes a second each
    images, autoencoder, codes = (tmp_path / name for name in ("x.tar", "ae.pt", "codes"))
    archive(images)
    config = dataclasses.replace(AUTOENCODER, z_channels=8)
    torch.save({"state_dict": tiny_model(autoencoder=config).vae.state_dict()}, autoencoder)
    encode = ["tokenize", str(images), "--autoencoder", str(autoencoder), "--size", "16"]
    more = ["--crops", "1", "--flips", "--out", str(codes), "--quiet"]
    assert main([*encode, *more]) == 0
    smaller = [
        "model.dim=32", "model.n_layer=1", "model.n_head=2", "model.diff_layers=1",
        "model.diff_dim=32", "model.diff_adanln_layers=1", "model.num_classes=2",
        "model.cls_token_num=2", "optim.steps=2", "optim.warmup=0", "optim.decay_start=1",
        "optim.batch_size=4", "optim.autocast=off", "data.size=16", "data.crop_decay=[1, 2]",
        "num_inference_steps=1", "optim.log_every=1",
    ]  # fmt: skip
    train = ["train", "model", str(RECIPES / "b-16x.toml"), "--autoencoder", str(autoencoder)]
    for source in (images, codes):
        out = tmp_path / f"run-{source.name}"
        where = ["--data", str(source), "--out", str(out), "--quiet", "--set", *smaller]
        assert main([*train, *where]) == 0
        pipeline = BitDancePipeline.from_pretrained(out / "model")
        assert pipeline.classes == ("n01", "n02")
        assert pipeline.config.parallel_num == 16
