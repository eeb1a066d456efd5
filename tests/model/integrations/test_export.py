"""Files for the authors' code: their keys, arguments and configuration."""

import argparse
import json

import pytest
import torch
from safetensors.torch import load_file

from bitdance.cli.main import main
from bitdance.integrations.official.export import write_official
from bitdance.io.weights import write_tensors
from bitdance.models.autoencoder.autoencoder import BinaryAutoencoder
from bitdance.models.config import PRESETS, AutoencoderConfig
from bitdance.models.loading.checkpoint_config import arguments_of, claims_of_arguments
from bitdance.pipelines.class_conditional import BitDancePipeline
from tests.model.helpers.tiny import tiny_pipeline


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_a_model_is_exported_with_its_arguments(tmp_path, capsys):
    pipeline = tiny_pipeline(parallel_mode="standard", time_shift=2.0)
    pipeline.save_pretrained(tmp_path / "own")
    out = tmp_path / "official"
    command = ["export", "--model", str(tmp_path / "own"), "--format", "official"]
    assert main([*command, "--out", str(out)]) == 0
    assert capsys.readouterr().out.count("bytes: ") == 4
    with torch.serialization.safe_globals([argparse.Namespace]):
        content = torch.load(out / "model.pt", weights_only=True)
    assert same(content["ema"], pipeline.model.state_dict())
    assert content["args"].parallel_mode == "standard"
    assert (content["args"].image_size, content["args"].time_shift) == (8, 2.0)
    fields = {"n_head": 2, "cfg_scale": 2.0}
    (tmp_path / "x.json").write_text(json.dumps(fields))  # heads of other widths than theirs
    again = BitDancePipeline.from_pretrained(out / "model.pt", config=tmp_path / "x.json")
    assert again.config == pipeline.config
    assert same(again.model.state_dict(), pipeline.model.state_dict())
    vae = pipeline.model.vae.state_dict()
    assert same(torch.load(out / "autoencoder.pt", weights_only=True)["state_dict"], vae)
    assert same(load_file(out / "ae.safetensors"), vae)
    assert main([*command, "--out", str(out)]) == 1
    assert "model.pt exists" in capsys.readouterr().err


def test_an_autoencoder_is_exported_alone(tmp_path, capsys):
    autoencoder = tiny_pipeline().model.vae
    run, out = tmp_path / "run", tmp_path / "out"
    run.mkdir()
    write_tensors(run / "autoencoder.safetensors", autoencoder.state_dict())
    (run / "autoencoder.json").write_text(json.dumps(autoencoder.config.to_dict()))
    command = ["export", "--model", str(run), "--format", "official", "--out", str(out)]
    assert main(command) == 0
    assert not (out / "model.pt").exists()
    for source in (out, out / "autoencoder.pt", out / "ae.safetensors"):
        loaded = BinaryAutoencoder.from_pretrained(source)
        assert loaded.config == autoencoder.config
        assert same(loaded.state_dict(), autoencoder.state_dict())
    capsys.readouterr()


@pytest.mark.parametrize("kind", ["conv", "conv_attention"])
def test_the_configuration_of_an_autoencoder_is_theirs(tmp_path, kind):
    config = AutoencoderConfig(
        ch=32, ch_mult=(1, 2), num_res_blocks=1, z_channels=8, num_codebooks=2, architecture=kind,
        gan_decoder=True,
    )  # fmt: skip
    write_official(tmp_path, BinaryAutoencoder(config))
    said = json.loads((tmp_path / "ae_config.json").read_text())
    shape = {"double_z": False, "z_channels": 8, "in_channels": 3, "out_ch": 3, "ch": 32,
             "ch_mult": [1, 2], "num_res_blocks": 1}  # fmt: skip
    if kind == "conv_attention":
        shape |= {"attn_blocks": 2, "n_heads": 16, "resolution": 256}
    assert said == {"ddconfig": shape, "gan_decoder": True, "num_codebooks": 2}
    assert AutoencoderConfig.from_dict(said) == config


@pytest.mark.parametrize("name", PRESETS)
def test_arguments_of_a_published_model_are_read_back(name):
    arguments = arguments_of(PRESETS[name])
    assert arguments["model"] == f"BitDance-{name[0]}"
    (claim,) = claims_of_arguments(arguments)
    assert all(getattr(PRESETS[name], field) == value for field, value in claim.fields.items())
    assert {"dim", "resolution", "parallel_num", "P_mean"} <= claim.fields.keys()
