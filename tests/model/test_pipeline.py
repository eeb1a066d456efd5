import argparse
import json
import sys
import types

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image

from bitdance.io.weights import CheckpointError
from bitdance.models.config import PRESETS
from bitdance.pipelines.base import GenerationCancelled
from bitdance.pipelines.class_conditional import BitDance
from tests.model.helpers.tiny import tiny_config, tiny_pipeline


@pytest.fixture(scope="module")
def pipeline():
    return tiny_pipeline()


@pytest.fixture
def saved(pipeline, tmp_path):
    pipeline.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def _latent(pipeline, labels=(1, 3), **options):
    return pipeline.generate(
        labels, steps=2, output_type="latent", progress=False, **options
    )  # fmt: skip


def test_output_types(pipeline):
    options = {"steps": 2, "progress": False, "seed": 5}
    images = pipeline.generate([0, 1, 2], **options)
    assert [image.size for image in images] == [(8, 8)] * 3
    arrays = pipeline.generate([0, 1, 2], output_type="np", **options)
    tensor = pipeline.generate([0, 1, 2], output_type="pt", **options)
    latent = pipeline.generate([0, 1, 2], output_type="latent", **options)
    assert arrays.shape == (3, 8, 8, 3)
    assert arrays.dtype == np.uint8
    assert np.array_equal(tensor.permute(0, 2, 3, 1).numpy(), arrays)
    assert np.array_equal(np.stack([np.asarray(image) for image in images]), arrays)
    assert latent.shape == (3, 16, 1)
    for kind, shape in (("np", (0, 8, 8, 3)), ("pt", (0, 3, 8, 8)), ("latent", (0, 16, 1))):
        assert pipeline.generate([], output_type=kind, **options).shape == shape
    assert pipeline.generate([], **options) == []


def test_an_image_is_the_same_alone_and_in_any_batch(pipeline):
    labels = [0, 3, 3, 1, 4]
    together = _latent(pipeline, labels, seed=11)
    assert torch.equal(_latent(pipeline, labels, seed=11, batch_size=2), together)
    for i, label in enumerate(labels):
        alone = _latent(pipeline, [label], seed=11, sample_ids=[i])
        assert torch.equal(alone[0], together[i])
    own = _latent(pipeline, labels, seed=[3, 4, 5, 6, 7])
    assert torch.equal(_latent(pipeline, [3], seed=5)[0], own[2])


def test_seed_and_guidance_change_the_image(pipeline):
    first = _latent(pipeline, seed=1)
    assert torch.equal(first, _latent(pipeline, seed=1))
    assert not torch.equal(first, _latent(pipeline, seed=2))
    assert not torch.equal(first, _latent(pipeline, seed=1, cfg_scale=1.0))
    assert not torch.equal(first, _latent(pipeline, seed=1, cfg_schedule="constant"))


def test_classes_by_name_and_number(pipeline):
    assert pipeline.label("Sneaker") == pipeline.label("4") == pipeline.label(4) == 4
    with pytest.raises(
        ValueError, match="class must be 0 to 4 or a name, got 'dress'; perhaps nig"
    ):
        pipeline.label("dress")
    for wrong in (5, -1, "7"):
        with pytest.raises(ValueError, match=f"class must be 0 to 4 or a name, got {wrong!r}"):
            pipeline.label(wrong)


def test_imagenet_has_names():
    with torch.device("meta"):
        from bitdance.models.class_conditional import BitDanceModel

        pipeline = BitDance(BitDanceModel(PRESETS["B-1x"]))
    assert len(set(pipeline.classes)) == 1000
    assert pipeline.label("golden retriever") == 207


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seed": -1}, r"seed must be an integer from 0 to 2\^64 - 1, got -1"),
        ({"seed": [1, 2, 3]}, r"seed must be one per picture \(2\), got 3"),
        (
            {"sample_ids": [0, 2**32]},
            r"sample_ids must be an integer from 0 to 2\^32 - 1, got 4294967296",
        ),
        ({"steps": 0}, "steps must be an integer of at least 1, got 0"),
        ({"batch_size": 0}, "batch_size must be an integer of at least 1, got 0"),
        ({"cfg_scale": float("nan")}, "cfg_scale must be finite, got nan"),
        ({"cfg_schedule": "cosine"}, "cfg_schedule must be 'linear' or 'constant', got 'cosine'"),
        ({"output_type": "jpg"}, "output_type must be 'pil', 'np', 'pt' or 'latent', got 'jpg'"),
    ],
)
def test_wrong_arguments_are_refused(pipeline, options, message):
    with pytest.raises(ValueError, match=message):
        pipeline.generate([0, 1], progress=False, **options)


def test_callback_sees_every_step_and_can_stop(pipeline):
    steps = []

    def record(pipe, step, total, tensors):
        assert pipe is pipeline
        steps.append((step, total, tuple(tensors["packed"].shape)))

    _latent(pipeline, callback_on_step_end=record, cfg_scale=1.0)
    assert steps == [(i, 4, (2, 4, 1)) for i in range(4)]
    with pytest.raises(GenerationCancelled, match="stopped after AR step 2 of 4"):
        _latent(pipeline, callback_on_step_end=lambda pipe, step, *_: step < 1)

    def interrupt(pipe, *_):
        pipe.interrupt = True

    with pytest.raises(GenerationCancelled, match="stopped after AR step 1 of 4"):
        _latent(pipeline, callback_on_step_end=interrupt)
    assert len(_latent(pipeline)) == 2  # and goes on as before


def test_progress_bar_counts_steps(pipeline, capsys):
    pipeline.generate([0, 1, 2], steps=1, batch_size=2)
    assert "8/8" in capsys.readouterr().err


def test_saved_models_give_equal_bits(pipeline, saved):
    loaded = BitDance.from_pretrained(saved)
    assert loaded.config == pipeline.config
    assert loaded.classes == pipeline.classes
    assert torch.equal(_latent(loaded, seed=3), _latent(pipeline, seed=3))
    assert {p.name.split("-")[0] for p in saved.iterdir()} == {"config.json", "model"}
    loaded.save_pretrained(saved)  # over itself
    assert len(list(saved.iterdir())) == 2


def test_official_checkpoints(pipeline, tmp_path):
    state = pipeline.model.state_dict()
    path = tmp_path / "BitDance.pt"
    torch.save({"model": state, "ema": state, "args": argparse.Namespace(lr=1.0)}, path)
    loaded = BitDance.from_pretrained(path, config=tiny_config())
    assert torch.equal(_latent(loaded, seed=3), _latent(pipeline, seed=3))


def test_autoencoder_from_its_own_file(pipeline, tmp_path):
    state = pipeline.model.state_dict()
    own = {k: v for k, v in state.items() if not k.startswith("vae.")}
    torch.save({"model": own}, tmp_path / "model.pt")
    vae = {k.removeprefix("vae."): v for k, v in state.items() if k.startswith("vae.")}
    vae["loss.discriminator.weight"] = torch.zeros(3)  # what only training needs is left out
    torch.save({"state_dict": vae}, tmp_path / "ae.pt")
    with pytest.raises(CheckpointError, match=r"\d+ missing: vae.encoder"):
        BitDance.from_pretrained(tmp_path / "model.pt", config=tiny_config())
    loaded = BitDance.from_pretrained(
        tmp_path / "model.pt", tokenizer=tmp_path / "ae.pt", config=tiny_config()
    )
    assert torch.equal(_latent(loaded, seed=3), _latent(pipeline, seed=3))


def test_dtype(saved):
    loaded = BitDance.from_pretrained(saved, dtype=torch.bfloat16)
    assert {p.dtype for p in loaded.model.parameters()} == {torch.bfloat16}
    assert len(loaded.generate([1], steps=1, progress=False)) == 1


def test_the_decoder_is_laid_out_once(pipeline):
    weights = [p for p in pipeline.model.vae.decoder.parameters() if p.dim() == 4]
    assert weights
    assert all(w.is_contiguous(memory_format=torch.channels_last) for w in weights)


def test_shapes_of_no_preset_are_refused(pipeline, tmp_path):
    path = tmp_path / "model.safetensors"
    safetensors.torch.save_model(pipeline.model, path)
    with pytest.raises(CheckpointError, match=r"has the shapes of no preset .* give config="):
        BitDance.from_pretrained(path)
    with pytest.raises(ValueError, match=r"config must be one of B-1x, .* got 'B-2x'"):
        BitDance.from_pretrained(path, config="B-2x")


def test_what_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="is no file, no folder and no repository id"):
        BitDance.from_pretrained(tmp_path / "nothing")
    with pytest.raises(FileNotFoundError, match="hub"):
        BitDance.from_pretrained("nobody/nothing", local_files_only=True)
    (tmp_path / "empty").mkdir()
    with pytest.raises(
        CheckpointError, match=r"has no config.json: it was not written by save_pre"
    ):
        BitDance.from_pretrained(tmp_path / "empty")


def _edit(folder, change):
    path = folder / "config.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(format="other"), "format must be 'bitdance-1', got 'other'"),
        (lambda c: c.pop("weights"), "config.json is damaged: .*weights is missing"),
        (lambda c: c["model"].update(dim=31), "is damaged: .*dim must be a multiple of 4"),
        (lambda c: c["weights"].update(file="../x"), r"there is no file '\.\./x' beside it"),
        (lambda c: c["weights"].update(sha256="0" * 64), "is altered: its checksum is not the"),
        (lambda c: c["model"].update(n_layer=3), r"does not fit BitDanceModel.*missing: layers.2"),
    ],
)
def test_damaged_folders_are_refused(saved, change, message):
    _edit(saved, change)
    with pytest.raises(CheckpointError, match=message):
        BitDance.from_pretrained(saved)


def test_a_folder_has_its_own_autoencoder_and_configuration(saved):
    for name, value in (("tokenizer", saved), ("config", tiny_config())):
        with pytest.raises(ValueError, match=f"{name} must be left out where source is a folder"):
            BitDance.from_pretrained(saved, **{name: value})


def test_altered_weights_are_noticed(saved):
    (path,) = saved.glob("model-*.safetensors")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="is altered"):
        BitDance.from_pretrained(saved)


def test_a_failed_save_leaves_the_earlier_model(pipeline, saved, monkeypatch):
    from bitdance.io import weights

    before = BitDance.from_pretrained(saved)

    def full(path, text):
        raise OSError("No space left on device")

    monkeypatch.setattr(weights, "write_text", full)
    with pytest.raises(OSError, match="No space left"):
        tiny_pipeline(seed=1).save_pretrained(saved)
    again = BitDance.from_pretrained(saved)
    assert torch.equal(_latent(again), _latent(before))


def test_generated_images_can_be_saved(pipeline, tmp_path):
    image = pipeline.generate([0], steps=1, progress=False)[0]
    image.save(tmp_path / "x.png")
    assert np.array_equal(np.asarray(Image.open(tmp_path / "x.png")), np.asarray(image))


def test_bits_decode_to_the_generated_images(pipeline):
    options = {"steps": 2, "progress": False, "seed": 3}
    packed = pipeline.generate([0, 1, 2], output_type="latent", **options)
    arrays = pipeline.generate([0, 1, 2], output_type="np", **options)
    assert np.array_equal(pipeline.decode(packed, batch_size=2, output_type="np"), arrays)
    for wrong in (packed[:, 1:], packed.int(), packed[0]):
        with pytest.raises(ValueError, match=r"packed must be uint8 \['n', 16, 1\], got"):
            pipeline.decode(wrong)


def test_hub_repositories_are_downloaded_once_asked(pipeline, saved, monkeypatch):
    """The client library stands aside: what it is asked for, and what its errors become."""
    asked = []

    def snapshot_download(repository, **options):
        asked.append((repository, options))
        if repository != "somebody/model":
            raise OSError("404 Client Error")
        return str(saved)

    client = types.ModuleType("huggingface_hub")
    client.snapshot_download = snapshot_download
    monkeypatch.setitem(sys.modules, "huggingface_hub", client)
    loaded = BitDance.from_pretrained("somebody/model", revision="v1", local_files_only=True)
    assert torch.equal(_latent(loaded), _latent(pipeline))
    _, options = asked[0]
    assert (options["revision"], options["local_files_only"]) == ("v1", True)
    with pytest.raises(FileNotFoundError, match="'somebody/else' was not found on the hub: 404"):
        BitDance.from_pretrained("somebody/else")


def test_weights_of_another_model_are_not_downloaded(saved, tmp_path, monkeypatch):
    """The configuration is judged before files of gigabytes are asked for."""
    asked = []

    def snapshot_download(repository, *, allow_patterns, **_):
        asked.append(allow_patterns)
        return str(saved if repository == "somebody/model" else tmp_path / repository)

    client = types.ModuleType("huggingface_hub")
    client.snapshot_download = snapshot_download
    monkeypatch.setitem(sys.modules, "huggingface_hub", client)
    (file,) = saved.glob("model-*.safetensors")
    BitDance.from_pretrained("somebody/model")
    assert asked == [["config.json"], ["config.json", file.name]]
    for name, text in (("text", '{"model_type": "qwen3"}'), ("broken", "{"), ("none", None)):
        (tmp_path / "other" / name).mkdir(parents=True)
        if text is not None:
            (tmp_path / "other" / name / "config.json").write_text(text)
        asked.clear()
        with pytest.raises(CheckpointError, match=r"config\.json"):
            BitDance.from_pretrained(f"other/{name}")
        assert asked == [["config.json"]]
