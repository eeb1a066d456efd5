"""Loading of autoencoders from released files, folders of runs and releases, and models."""

import json

import pytest
import torch
from safetensors.torch import save_file

from bitdance.cli.main import main
from bitdance.io.files import CheckpointError
from bitdance.io.weights import write_tensors
from bitdance.models.autoencoder.autoencoder import BinaryAutoencoder
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
        FileNotFoundError, match=r"has no trained autoencoder \(autoencoder\.json or"
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
    shape = {**AUTOENCODER.to_dict(), "z_channels": 16}
    (tmp_path / "y_config.json").write_text(json.dumps(shape))
    with pytest.raises(CheckpointError, match=r"does not fit BinaryAutoencoder.*of another shape"):
        BinaryAutoencoder.from_pretrained(path)


def test_commands_take_an_autoencoder_alone(tmp_path, autoencoder, capsys):
    path = released(tmp_path / "ae.safetensors", autoencoder, "safetensors")
    picture = tmp_path / "x.png"
    tiny_pipeline()([0], num_inference_steps=1).images[0].save(picture)
    assert main(["info", str(path), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["autoencoder"] == autoencoder.config.to_dict()
    assert main(["info", str(path)]) == 0
    assert "8 bits for 2 x 2 pixels" in capsys.readouterr().out
    out = tmp_path / "out"
    assert main(["reconstruct", "--model", str(path), str(picture), "--out", str(out)]) == 0
    assert (out / "x-reconstructed.png").exists()
