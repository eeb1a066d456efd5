"""The configuration of a file of weights comes from its settings and is compared with shapes."""

import argparse
import dataclasses
import json

import pytest
import torch

from bitdance import BitDancePipeline
from bitdance.cli.main import main
from bitdance.io.files import CheckpointError
from bitdance.io.weights import write_tensors
from bitdance.models.autoencoder.autoencoder import BinaryAutoencoder
from bitdance.models.class_conditional import BitDanceModel
from bitdance.models.config import AUTOENCODER_PRESETS, PRESETS, AutoencoderConfig, ModelConfig
from bitdance.models.loading.checkpoint_config import (
    claims_of_arguments,
    infer_autoencoder_config,
    infer_config,
)
from bitdance.models.loading.meta_device import build_on_meta
from tests.model.helpers.tiny import tiny_config, tiny_pipeline


def arguments(config, name, **changes):
    """The arguments that the authors' script for several tokens per step saves."""
    values = {
        "model": name, "image_size": config.resolution, "down_size": config.down_size,
        "patch_size": config.patch_size, "num_classes": config.num_classes,
        "cls_token_num": config.cls_token_num, "latent_dim": config.latent_dim,
        "diff_batch_mul": config.diff_batch_mul, "grad_checkpointing": True, "trained_vae": "a.pt",
        "drop_rate": 0.0, "perturb_schedule": "constant", "perturb_rate": config.perturb_rate,
        "perturb_rate_max": 0.3, "time_schedule": config.time_schedule,
        "time_shift": config.time_shift, "parallel_num": config.parallel_num,
        "P_std": config.P_std, "P_mean": config.P_mean, "parallel_mode": config.parallel_mode,
        "ema": 0.9999, "lr": 6e-4, "results_dir": "results", "no_compile": False,
    }  # fmt: skip
    return argparse.Namespace(**{**values, **changes})


OFFICIAL = {
    "B-16x at 512 pixels": ("BitDance-B", dataclasses.replace(PRESETS["B-16x"], resolution=512)),
    "10 classes": ("BitDance-B", dataclasses.replace(PRESETS["B-16x"], num_classes=10)),
    "64 tokens a step": (
        "BitDance-B", dataclasses.replace(PRESETS["B-16x"], parallel_num=64, cfg_scale=1.0)
    ),
    "L-4x": ("BitDance-L", dataclasses.replace(PRESETS["L-1x"], parallel_num=4, cfg_scale=1.0)),
    "standard mode": (
        "BitDance-B", dataclasses.replace(PRESETS["B-4x"], parallel_mode="standard")
    ),
    "time shift": ("BitDance-B", dataclasses.replace(PRESETS["B-1x"], time_shift=2.0)),
    "times": (
        "BitDance-B",
        dataclasses.replace(PRESETS["B-4x"], time_schedule="uniform", P_mean=0.0, P_std=1.0),
    ),
    "patches of codes": (
        "BitDance-B", dataclasses.replace(PRESETS["B-4x"], patch_size=2, perturb_rate=0.0)
    ),
    "16 bits": (
        "BitDance-B",
        dataclasses.replace(
            PRESETS["B-1x"], latent_dim=16,
            autoencoder=AutoencoderConfig(z_channels=16, num_codebooks=2),
        ),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", OFFICIAL)
def test_training_arguments_define_the_configuration(tmp_path, name):
    """At full size, on the meta device."""
    model, config = OFFICIAL[name]
    tensors = build_on_meta(lambda: BitDanceModel(config), "a test").state_dict()
    for given in (arguments(config, model), dict(vars(arguments(config, model)))):
        said = claims_of_arguments(given if isinstance(given, dict) else vars(given))
        assert infer_config(tensors, said, tmp_path) == config


CONTRADICTIONS = {
    "image_size": (16, r"tokens = 64 \(resolution = 16\), but pos_for_diff.weight .* has 16"),
    "num_classes": (9, r"num_classes = 9, but cls_embedding.weight \[6, 96\] has 5"),
    "cls_token_num": (4, r"cls_token_num = 4, but cls_embedding.weight .* has 3"),
    "parallel_num": (16, r"parallel_num = 16, but query_token \[1, 3, 32\] has 4"),
    "latent_dim": (16, r"16.*but proj_in|latent_dim must be the autoencoder's z_channels = 8"),
    "model": ("BitDance-B", r"dim = 768, but norm.weight \[32\] has 32"),
}


@pytest.fixture
def tiny_sizes(monkeypatch):
    """The authors' sizes have hundreds of millions of parameters; this one has few."""
    monkeypatch.setitem(PRESETS, "T-4x", tiny_config())
    return tiny_config(parallel_mode="standard", time_shift=2.0, cfg_scale=2.0)


def save(path, pipeline, **more):
    state = pipeline.model.state_dict()
    torch.save({"model": state, "ema": state, "optimizer": {}, "epochs": 3, **more}, path)
    return path


@pytest.mark.parametrize("name", CONTRADICTIONS)
def test_arguments_that_shapes_contradict_are_an_error(tiny_sizes, tmp_path, name):
    value, message = CONTRADICTIONS[name]
    said = arguments(tiny_sizes, "BitDance-T", **{name: value})
    path = save(tmp_path / "x.pt", tiny_pipeline(), args=said)
    with pytest.raises(CheckpointError, match=f"its training arguments say.*(?:{message})"):
        BitDancePipeline.from_pretrained(path)


def test_a_file_with_arguments_loads_as_they_say(tiny_sizes, tmp_path):
    """Shapes alone would match the preset, which has square patches and no time shift."""
    pipeline = tiny_pipeline(parallel_mode="standard", time_shift=2.0)
    path = save(tmp_path / "x.pt", pipeline, args=arguments(tiny_sizes, "BitDance-T"))
    loaded = BitDancePipeline.from_pretrained(path)
    assert loaded.config == pipeline.config
    options = {"num_inference_steps": 2, "output_type": "latent", "seed": 3}
    expected = pipeline([1, 2], **options).images
    assert torch.equal(loaded([1, 2], **options).images, expected)
    as_preset = BitDancePipeline.from_pretrained(save(tmp_path / "y.pt", pipeline))
    assert as_preset.config == PRESETS["T-4x"]
    assert not torch.equal(as_preset([1, 2], **options).images, expected)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_size": "8"}, "resolution must be an integer, got '8'"),
        ({"time_shift": float("nan")}, "time_shift must be a finite number, got nan"),
        ({"parallel_mode": "other"}, "parallel_mode must be 'patch' or 'standard', got 'other'"),
        ({"patch_size": None}, "patch_size|NoneType"),
        ({"down_size": 0}, "down_size must be at least 1, got 0"),
        ({"num_classes": 10**30}, "num_classes must be"),
    ],
)
def test_invalid_arguments_are_an_error(tiny_sizes, tmp_path, changes, message):
    said = arguments(tiny_sizes, "BitDance-T", **changes)
    path = save(tmp_path / "x.pt", tiny_pipeline(), args=said)
    with pytest.raises(CheckpointError, match=f"its training arguments say.*(?:{message})"):
        BitDancePipeline.from_pretrained(path)


def test_unknown_sizes_are_taken_from_the_shapes(tmp_path):
    config = tiny_config(n_head=1, time_shift=3.0, cfg_scale=1.0)
    path = save(tmp_path / "x.pt", tiny_pipeline(n_head=1), args=arguments(config, "BitDance-XS"))
    assert BitDancePipeline.from_pretrained(path).config == config


def test_arguments_of_other_scripts_are_ignored(tmp_path):
    path = save(tmp_path / "x.pt", tiny_pipeline(), args=argparse.Namespace(lr=1.0, model="GPT-B"))
    with pytest.raises(CheckpointError, match=r"has no configuration.*no preset.*give config="):
        BitDancePipeline.from_pretrained(path)
    assert BitDancePipeline.from_pretrained(path, config=tiny_config()).config == tiny_config()


def test_a_given_configuration_that_the_file_contradicts_is_an_error(tiny_sizes, tmp_path):
    path = save(tmp_path / "x.pt", tiny_pipeline(), args=arguments(tiny_sizes, "BitDance-T"))
    for config, message in (
        ("T-4x", "arguments say parallel_mode = 'standard', but the settings of T-4x say 'patch'"),
        (
            dataclasses.replace(tiny_sizes, time_shift=1.0),
            r"arguments say time_shift = 2\.0, but config= say 1\.0",
        ),
    ):
        with pytest.raises(CheckpointError, match=message):
            BitDancePipeline.from_pretrained(path, config=config)
    # What only training needs may be what a preset has not.
    other = arguments(tiny_config(), "BitDance-T", perturb_rate=0.25)
    path = save(tmp_path / "y.pt", tiny_pipeline(), args=other)
    assert BitDancePipeline.from_pretrained(path, config="T-4x").config.perturb_rate == 0.25


def test_a_configuration_beside_the_file_is_used(tiny_sizes, tmp_path):
    path = tmp_path / "model.safetensors"
    write_tensors(path, tiny_pipeline().model.state_dict())
    beside = tmp_path / "model_config.json"
    beside.write_text(json.dumps({"n_head": 2, "time_shift": 2, "parallel_mode": "standard"}))
    loaded = BitDancePipeline.from_pretrained(path).config
    assert loaded == dataclasses.replace(tiny_sizes, cfg_scale=loaded.cfg_scale)
    beside.write_text(json.dumps({"dim": 64}))
    with pytest.raises(CheckpointError, match=r"model_config.json say dim = 64, but norm\.weight"):
        BitDancePipeline.from_pretrained(path)
    beside.write_text(json.dumps({"dims": 64}))
    with pytest.raises(CheckpointError, match=r"unknown key dims"):
        BitDancePipeline.from_pretrained(path)
    beside.write_text("[")
    with pytest.raises(CheckpointError, match=r"model_config.json is not JSON"):
        BitDancePipeline.from_pretrained(path)
    beside.unlink()
    beside.symlink_to("moved.json")
    with pytest.raises(FileNotFoundError, match=r"model_config\.json"):
        BitDancePipeline.from_pretrained(path)


def test_the_weights_of_a_saved_folder_have_its_configuration(tmp_path):
    pipeline = tiny_pipeline()
    pipeline.save_pretrained(tmp_path)
    (file,) = tmp_path.glob("model-*.safetensors")
    loaded = BitDancePipeline.from_pretrained(file)
    assert (loaded.config, loaded.classes) == (pipeline.config, pipeline.classes)
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match="is altered"):
        BitDancePipeline.from_pretrained(file)


@pytest.mark.parametrize("kind", ["toml", "json", "nested.json"])
def test_config_on_the_command_line(tmp_path, capsys, kind):
    pipeline = tiny_pipeline(time_shift=2.0)
    path = tmp_path / "model.safetensors"
    write_tensors(path, pipeline.model.state_dict())
    fields = {"n_head": 2, "time_shift": 2.0, "cfg_scale": 2.0}
    config = tmp_path / f"config.{kind}"
    if kind == "toml":
        config.write_text("".join(f"{name} = {value}\n" for name, value in fields.items()))
    else:
        config.write_text(json.dumps({"model": fields} if "nested" in kind else fields))
    assert main(["info", str(path)]) == 1
    error = capsys.readouterr().err
    assert "give config=... (--config)" in error
    assert error.count("\n") == 1
    more = ["--config", str(config)]
    assert main(["info", str(path), "--json", *more]) == 0
    said = json.loads(capsys.readouterr().out)
    assert ModelConfig.from_dict(said["model"]) == pipeline.config
    if kind == "toml":
        out = tmp_path / "out"
        assert main(["export", "--model", str(path), *more, "--out", str(out)]) == 0
        assert BitDancePipeline.from_pretrained(out).config == pipeline.config
        picture = str(tmp_path / "x.png")
        quick = ["--class", "0", "--num-inference-steps", "1", "--quiet", "--out", picture]
        assert main(["generate", "--model", str(path), *more, *quick]) == 0
        size = ["--size", "8", "--out", str(tmp_path / "again")]
        assert main(["reconstruct", "--model", str(path), *more, picture, *size]) == 0
    capsys.readouterr()
    for wrong, message in (
        ("missing.json", "no such file"), ("B-2x", "config must be one of B-1x"),
    ):  # fmt: skip
        assert main(["info", str(path), "--config", wrong]) == 1
        assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    "config",
    [
        *AUTOENCODER_PRESETS.values(),
        AutoencoderConfig(ch=32, ch_mult=(2, 1, 3), num_res_blocks=2, z_channels=12, in_channels=1,
                          out_ch=3, num_codebooks=1, gan_decoder=True),
        AutoencoderConfig(ch=64, ch_mult=(1, 2), z_channels=16, num_codebooks=2, gan_decoder=True,
                          architecture="conv_attention", attn_blocks=3, n_heads=16),
    ],
)  # fmt: skip
def test_shapes_define_an_autoencoder(tmp_path, config):
    tensors = build_on_meta(lambda: BinaryAutoencoder(config), "a test").state_dict()
    assert infer_autoencoder_config(tensors, tmp_path) == config
    del tensors["decoder.conv_in.weight"]
    with pytest.raises(
        CheckpointError, match=r"no autoencoder: decoder\.conv_in\.weight is missing"
    ):
        infer_autoencoder_config(tensors, tmp_path)
