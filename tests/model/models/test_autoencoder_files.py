"""Loading of autoencoders from released files, folders of runs and releases, and models."""

import dataclasses
import json

import pytest
import torch
from safetensors.torch import save_file

from bitdance.cli.main import main
from bitdance.io.files import CheckpointError
from bitdance.io.weights import write_tensors
from bitdance.models.autoencoder.autoencoder import BinaryAutoencoder
from bitdance.pipelines.class_conditional import BitDancePipeline
from tests.model.helpers.hub import Hub
from tests.model.helpers.tiny import AUTOENCODER, tiny_model, tiny_pipeline
from tests.model.models.test_text_to_image import tiny
from tests.model.pipelines.test_text_to_image import release

IMAGES = torch.linspace(-1, 1, 3 * 8 * 8).view(1, 3, 8, 8)


@pytest.fixture(scope="module")
def autoencoder():
    return tiny_model().vae


def released(path, autoencoder, kind):
    state = {k: t.contiguous() for k, t in autoencoder.state_dict().items()}
    more = {**state, "loss.discriminator.weight": torch.zeros(3)}
    if kind == "pt":
        torch.save({"state_dict": more, "epoch": 1}, path)
    else:
        save_file(more, path)
    return path


def official(config):
    shape = {"ch": config.ch, "ch_mult": list(config.ch_mult), "in_channels": 3, "out_ch": 3,
             "num_res_blocks": config.num_res_blocks, "z_channels": config.z_channels,
             "double_z": False}  # fmt: skip
    return {"ddconfig": shape, "num_codebooks": 1}


def assert_same(loaded, autoencoder):
    assert loaded.config == autoencoder.config
    assert not loaded.training
    assert not any(p.requires_grad for p in loaded.parameters())
    assert torch.equal(loaded.encode(IMAGES), autoencoder.encode(IMAGES))


@pytest.mark.parametrize("kind", ["pt", "safetensors"])
@pytest.mark.parametrize("beside", ["ae_x_config.json", "ae_x.json", ""])
def test_released_files_work_alone(tmp_path, autoencoder, kind, beside):
    path = released(tmp_path / f"ae_x.{kind}", autoencoder, kind)
    if beside:
        (tmp_path / beside).write_text(json.dumps(official(autoencoder.config)))
    assert_same(BinaryAutoencoder.from_pretrained(path), autoencoder)
    assert_same(BinaryAutoencoder.from_pretrained(path), autoencoder)
    half = BinaryAutoencoder.from_pretrained(path, dtype=torch.bfloat16)
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}


def test_folders_and_models_have_one(tmp_path, autoencoder):
    run, text, model = (tmp_path / name for name in ("run", "text", "model"))
    run.mkdir()
    write_tensors(run / "autoencoder.safetensors", autoencoder.state_dict())
    (run / "autoencoder.json").write_text(json.dumps(autoencoder.config.to_dict()))
    assert_same(BinaryAutoencoder.from_pretrained(run), autoencoder)
    assert_same(BinaryAutoencoder.from_pretrained(run / "autoencoder.safetensors"), autoencoder)
    tiny_pipeline().save_pretrained(model)
    assert_same(BinaryAutoencoder.from_pretrained(model), autoencoder)
    text.mkdir()
    whole = tiny()
    release(text, whole)
    found = BinaryAutoencoder.from_pretrained(text)
    assert torch.equal(found.encode(IMAGES), whole.ae.encode(IMAGES))
    assert BinaryAutoencoder.from_pretrained("fashion").config.z_channels == 32


def test_averaged_weights_of_uniwetok_win(tmp_path, autoencoder):
    raw = {k: torch.zeros_like(t) for k, t in autoencoder.state_dict().items()}
    averaged = {f"model_ema.{k.replace('.', '')}": t for k, t in autoencoder.state_dict().items()}
    path = tmp_path / "x.pt"
    torch.save({"state_dict": {**raw, **averaged}}, path)
    assert_same(BinaryAutoencoder.from_pretrained(path), autoencoder)
    plain = BinaryAutoencoder.from_pretrained(path, weights="model")
    assert not any(t.any() for t in plain.state_dict().values())


def test_files_without_an_autoencoder_are_refused(tmp_path, autoencoder):
    with pytest.raises(
        FileNotFoundError, match=r"has no trained autoencoder \(autoencoder\.json, "
    ):
        BinaryAutoencoder.from_pretrained(tmp_path)
    write_tensors(tmp_path / "x.safetensors", {"a": torch.ones(3)})
    with pytest.raises(
        CheckpointError, match=r"no autoencoder: encoder\.conv_in\.weight is missing"
    ):
        BinaryAutoencoder.from_pretrained(tmp_path / "x.safetensors")
    path = released(tmp_path / "y.safetensors", autoencoder, "safetensors")
    (tmp_path / "y_config.json").write_text(json.dumps({**official(AUTOENCODER), "ch_mult": [1]}))
    with pytest.raises(CheckpointError, match=r"y_config\.json is damaged: .*ch_mult"):
        BinaryAutoencoder.from_pretrained(path)
    (tmp_path / "y_config.json").unlink()
    (tmp_path / "y_config.json").symlink_to("moved.json")
    with pytest.raises(FileNotFoundError, match=r"y_config\.json"):
        BinaryAutoencoder.from_pretrained(path)
    (tmp_path / "y_config.json").unlink()
    shape = {**AUTOENCODER.to_dict(), "z_channels": 16}
    (tmp_path / "y_config.json").write_text(json.dumps(shape))
    with pytest.raises(CheckpointError, match=r"does not fit BinaryAutoencoder.*of another shape"):
        BinaryAutoencoder.from_pretrained(path)


def test_a_configuration_is_taken_or_contradicted(tmp_path, autoencoder):
    bare = released(tmp_path / "bare.safetensors", autoencoder, "safetensors")
    config = autoencoder.config
    for kind in (config, tmp_path / "given.json"):
        (tmp_path / "given.json").write_text(json.dumps(config.to_dict()))
        assert_same(BinaryAutoencoder.from_pretrained(bare, config=kind), autoencoder)
    with pytest.raises(CheckpointError, match=r"does not fit.*\(ch_mult says 5, the file has 2\)"):
        BinaryAutoencoder.from_pretrained(bare, config="d16c32")
    (tmp_path / "bare_config.json").write_text(json.dumps(official(config)))
    assert_same(BinaryAutoencoder.from_pretrained(bare, config=config), autoencoder)
    groups = dataclasses.replace(config, num_codebooks=2)  # weights do not depend on them
    assert BinaryAutoencoder.from_pretrained(bare, config=groups).config == groups
    with pytest.raises(CheckpointError, match=r"bare_config\.json says ch = 32, but config= says"):
        BinaryAutoencoder.from_pretrained(bare, config="d16c32")


@pytest.mark.parametrize("beside", ["ae_config.json", ""])
def test_commands_take_released_files(tmp_path, autoencoder, capsys, beside):
    path = released(tmp_path / "ae.safetensors", autoencoder, "safetensors")
    if beside:
        (tmp_path / beside).write_text(json.dumps(official(autoencoder.config)))
    picture = tmp_path / "x.png"
    tiny_pipeline()([0], num_inference_steps=1).images[0].save(picture)
    assert main(["info", str(path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["autoencoder"] == autoencoder.config.to_dict()
    out = ["--out", str(tmp_path / "out")]
    assert main(["reconstruct", "--model", str(path), str(picture), *out]) == 0
    size = ["--size", "8", "--quiet", "--out", str(tmp_path / "codes")]
    (tmp_path / "images").mkdir()
    picture.rename(tmp_path / "images" / "x.png")
    assert main(["tokenize", str(tmp_path / "images"), "--autoencoder", str(path), *size]) == 0
    capsys.readouterr()
    assert main(["info", str(path), "--config", "d16c32"]) == 1
    assert "ch" in capsys.readouterr().err


def test_a_model_takes_an_autoencoder_in_every_form(tmp_path, autoencoder):
    whole = tiny_pipeline()
    state = whole.model.state_dict()
    model = tmp_path / "model.pt"
    torch.save({"ema": {k: t for k, t in state.items() if not k.startswith("vae.")}}, model)
    settings = {k: v for k, v in whole.config.to_dict().items() if k != "autoencoder"}
    (tmp_path / "model_config.json").write_text(json.dumps(settings))
    run, other = tmp_path / "run", tmp_path / "other"
    run.mkdir()
    write_tensors(run / "autoencoder.safetensors", autoencoder.state_dict())
    (run / "autoencoder.json").write_text(json.dumps(autoencoder.config.to_dict()))
    whole.save_pretrained(other)
    for source in (released(tmp_path / "ae.pt", autoencoder, "pt"), run, other):
        loaded = BitDancePipeline.from_pretrained(model, autoencoder=source)
        assert loaded.config == whole.config
        assert all(torch.equal(loaded.model.state_dict()[k], t) for k, t in state.items())


def hub(monkeypatch, tmp_path, folder):
    """A hub whose repository "owner/name" has the files of `folder`."""
    return Hub(tmp_path / "cache", **{"owner/name": folder}).install(monkeypatch)


def test_a_file_of_a_repository_is_downloaded_with_its_configuration(
    tmp_path, autoencoder, monkeypatch
):
    folder = tmp_path / "repository"
    folder.mkdir()
    asked = hub(monkeypatch, tmp_path, folder)
    released(folder / "ae_x.pt", autoencoder, "pt")
    released(folder / "ae_y.pt", autoencoder, "pt")
    (folder / "ae_x_config.json").write_text(json.dumps(autoencoder.config.to_dict()))
    assert_same(BinaryAutoencoder.from_pretrained("owner/name/ae_x.pt"), autoencoder)
    assert sorted(asked.downloaded("")) == ["ae_x.pt", "ae_x_config.json"]
    with pytest.raises(FileNotFoundError, match=r"is not a file here; .* has no file 'z\.pt'"):
        BinaryAutoencoder.from_pretrained("owner/name/z.pt")
    with pytest.raises(FileNotFoundError, match=r"'/no/b/c\.pt' is not a file, a folder or"):
        BinaryAutoencoder.from_pretrained("/no/b/c.pt")
