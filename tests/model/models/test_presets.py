"""Published configurations by name, with fields replaced."""

import dataclasses

import pytest

from bitdance.io.files import CheckpointError
from bitdance.models.config import AUTOENCODER_PRESETS, PRESETS, AutoencoderConfig
from bitdance.models.loading.autoencoder_files import given_config
from bitdance.models.loading.checkpoint_config import read_claim
from bitdance.training.config import parse_run, run_to_dict

OPTIM = {"steps": 200}


def autoencoder_run(**values):
    return parse_run({"data": {"path": "x", "size": 256}, "optim": OPTIM, "autoencoder": values})


def model_run(**values):
    return parse_run({
        "data": {"path": "x", "size": 256}, "optim": OPTIM, "autoencoder_path": "ae",
        "model": values,
    })  # fmt: skip


@pytest.mark.parametrize("name", AUTOENCODER_PRESETS)
def test_a_run_takes_the_autoencoder_of_a_preset(name):
    run = autoencoder_run(preset=name)
    assert run.autoencoder == AUTOENCODER_PRESETS[name]
    assert parse_run(run_to_dict(run)) == run, "the saved configuration has all fields"
    other = autoencoder_run(preset=name, ch=64, num_res_blocks=1).autoencoder
    assert other == dataclasses.replace(AUTOENCODER_PRESETS[name], ch=64, num_res_blocks=1)


@pytest.mark.parametrize("name", PRESETS)
def test_a_run_takes_the_model_of_a_preset(name):
    run = model_run(preset=name)
    assert run.model_config(AUTOENCODER_PRESETS["d16c32"]) == PRESETS[name]
    assert parse_run(run_to_dict(run)) == run
    other = model_run(preset=name, num_classes=10, dim=64, n_head=2)
    expected = dataclasses.replace(PRESETS[name], num_classes=10, dim=64, n_head=2)
    assert other.model_config(AUTOENCODER_PRESETS["d16c32"]) == expected


def test_fields_of_a_preset_that_others_make_unused_are_dropped():
    conv = autoencoder_run(preset="UniWeTok", architecture="conv").autoencoder
    assert conv == AUTOENCODER_PRESETS["d32c128"]
    assert model_run(preset="B-1x", time_schedule="uniform").model.time_schedule == "uniform"


@pytest.mark.parametrize(
    ("make", "values", "message"),
    [
        (autoencoder_run, {"preset": "d8"}, r"^run: autoencoder\.preset must be one of d16c32,"),
        (model_run, {"preset": "B-64x"}, r"^run: model\.preset must be .* got 'B-64x'"),
        (model_run, {"preset": ["B-1x"]}, r"model\.preset must be one of"),
        (autoencoder_run, {"preset": "d16c32", "z_channels": 30}, "num_codebooks must be a"),
        (model_run, {"preset": "B-16x", "n_head": 7}, "dim must be a multiple of 4"),
        (model_run, {"preset": "B-16x", "resolution": 512}, r"unknown key model\.resolution"),
        (
            autoencoder_run, {"preset": "d16c32", "n_heads": 4},
            r"autoencoder\.n_heads must be left out \(architecture 'conv'",
        ),
    ],
)  # fmt: skip
def test_wrong_presets_and_contradictions(make, values, message):
    with pytest.raises(ValueError, match=message):
        make(**values)


def test_files_of_settings_may_name_a_preset(tmp_path):
    path = tmp_path / "x.toml"
    path.write_text('preset = "B-16x"\nresolution = 512\n')
    assert read_claim(path).fields == {**PRESETS["B-16x"].to_dict(), "resolution": 512}
    path.write_text('[model]\npreset = "B"\n')
    with pytest.raises(CheckpointError, match="preset must be one of B-1x"):
        read_claim(path)
    path.write_text('[autoencoder]\npreset = "d32c128"\nch = 32\n')
    expected = dataclasses.replace(AUTOENCODER_PRESETS["d32c128"], ch=32)
    assert given_config(path) == expected
    assert given_config("d16c32") == AutoencoderConfig()
    path.write_text('preset = "d64"\n')
    with pytest.raises(CheckpointError, match="preset must be one of d16c32"):
        given_config(path)
    with pytest.raises(ValueError, match=r"config must be one of d16c32, .* got 'B-16x'"):
        given_config("B-16x")
