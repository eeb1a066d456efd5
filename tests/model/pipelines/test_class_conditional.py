import argparse
import json
import sys

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image

from bitdance.io.files import CheckpointError
from bitdance.models.config import PRESETS
from bitdance.pipelines.class_conditional import BitDancePipeline
from tests.model.helpers.hub import Hub
from tests.model.helpers.terminal import Terminal
from tests.model.helpers.tiny import tiny_config, tiny_pipeline


@pytest.fixture(scope="module")
def pipeline():
    return tiny_pipeline()


@pytest.fixture
def saved(pipeline, tmp_path):
    pipeline.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


LATENT = {"num_inference_steps": 2, "output_type": "latent"}


def _latent(pipeline, labels=(1, 3), **options):
    return pipeline(labels, **LATENT, **options).images


def test_output_types(pipeline):
    options = {"num_inference_steps": 2, "seed": 5}
    images = pipeline([0, 1, 2], **options).images
    assert [image.size for image in images] == [(8, 8)] * 3
    arrays = pipeline([0, 1, 2], output_type="np", **options).images
    pixels = pipeline([0, 1, 2], output_type="uint8", **options).images
    tensor = pipeline([0, 1, 2], output_type="pt", **options).images
    latent = pipeline([0, 1, 2], output_type="latent", **options).images
    assert arrays.shape == (3, 8, 8, 3)
    assert pixels.dtype == torch.uint8
    grey = pixels.permute(0, 2, 3, 1).numpy()
    assert np.array_equal(np.stack([np.asarray(image) for image in images]), grey)
    assert arrays.dtype == np.float32
    assert np.array_equal(arrays, grey.astype(np.float32) / 255)
    assert tensor.is_contiguous()
    assert np.array_equal(tensor.permute(0, 2, 3, 1).numpy(), arrays)
    assert latent.shape == (3, 16, 1)
    for kind, shape in (
        ("np", (0, 8, 8, 3)),
        ("pt", (0, 3, 8, 8)),
        ("uint8", (0, 3, 8, 8)),
        ("latent", (0, 16, 1)),
    ):
        assert pipeline([], output_type=kind, **options).images.shape == shape
    assert pipeline([], **options).images == []


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
    assert not torch.equal(first, _latent(pipeline, seed=1, guidance_scale=1.0))
    assert not torch.equal(first, _latent(pipeline, seed=1, guidance_schedule="constant"))


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

        pipeline = BitDancePipeline(BitDanceModel(PRESETS["B-1x"]))
    assert len(set(pipeline.classes)) == 1000
    assert pipeline.label("golden retriever") == 207


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seed": -1}, r"seed must be an integer from 0 to 2\^64 - 1, got -1"),
        ({"seed": [1, 2, 3]}, r"seed must be one per image \(2\), got 3"),
        (
            {"sample_ids": [0, 2**32]},
            r"sample_ids must be an integer from 0 to 2\^32 - 1, got 4294967296",
        ),
        ({"num_inference_steps": 0}, "steps must be an integer from 1 to 1000000, got 0"),
        ({"batch_size": 0}, "batch_size must be an integer of at least 1, got 0"),
        ({"guidance_scale": float("nan")}, "guidance_scale must be finite, got nan"),
        (
            {"guidance_schedule": "cosine"},
            "guidance_schedule must be 'linear' or 'constant', got 'cosine'",
        ),
        (
            {"output_type": "jpg"},
            "output_type must be 'pil', 'np', 'pt', 'uint8' or 'latent', got 'jpg'",
        ),
    ],
)
def test_wrong_arguments_are_refused(pipeline, options, message):
    with pytest.raises(ValueError, match=message):
        pipeline([0, 1], **options)


def test_parts_of_the_model_may_be_replaced(saved):
    pipeline, other = BitDancePipeline.from_pretrained(saved), tiny_pipeline(seed=1)
    pipeline.set_progress_bar_config(disable=True)
    packed = _latent(pipeline)
    pipeline.decode(packed)
    pipeline.model.vae = other.model.vae
    found = pipeline.decode(packed, output_type="uint8")
    assert torch.equal(found, other.decode(packed, output_type="uint8"))
    pipeline.model.head = other.model.head
    changed = _latent(pipeline)
    assert not torch.equal(changed, packed)
    assert torch.equal(changed, _latent(pipeline, use_kernels=False))
    with pytest.raises(AttributeError):
        pipeline.model = other.model


def test_a_refused_call_draws_nothing_from_a_generator(pipeline):
    generator = torch.Generator().manual_seed(3)
    state = generator.get_state()
    for options in (
        {"num_inference_steps": 0}, {"output_type": "x"}, {"batch_size": 0},
        {"guidance_schedule": "x"}, {"callback_on_step_end": 3}, {"sample_ids": [1]},
    ):  # fmt: skip
        with pytest.raises((TypeError, ValueError)):
            pipeline([0, 1], generator=generator, **options)
    with pytest.raises(ValueError, match="one per image"):
        pipeline([0, 1, 2], generator=[generator, generator])
    assert torch.equal(generator.get_state(), state)


def test_images_of_a_label_stand_side_by_side(pipeline):
    several = _latent(pipeline, num_images_per_prompt=2)
    assert torch.equal(several, pipeline([1, 1, 3, 3], **LATENT).images)
    with pytest.raises(ValueError, match="num_images_per_prompt must be an integer of at least 1"):
        _latent(pipeline, num_images_per_prompt=0)
    with pytest.raises(ValueError, match=r"num_images_per_prompt must be at most \d+ \(2\^32 im"):
        _latent(pipeline, num_images_per_prompt=2**64)
    with pytest.raises(ValueError, match="num_inference_steps must be an integer from 1 to"):
        pipeline([1], **{**LATENT, "num_inference_steps": 2**64})


def test_a_generator_gives_its_next_number_as_the_seed(pipeline):
    def generator(seed=3):
        return torch.Generator().manual_seed(seed)

    one = generator()
    first, second = (_latent(pipeline, generator=one) for _ in range(2))
    assert torch.equal(_latent(pipeline, generator=generator()), first)
    assert not torch.equal(second, first)
    each = _latent(pipeline, generator=[generator(3), generator(3)])
    assert torch.equal(each[:1], first[:1])
    halves = torch.randint(2**32, (2,), generator=generator(), dtype=torch.int64).tolist()
    assert torch.equal(_latent(pipeline, seed=halves[0] << 32 | halves[1]), first)
    for options, message in (
        ({"generator": one, "seed": 1}, "only one of seed and generator may be given"),
        ({"generator": [one]}, r"generator must be one per image \(2\), got 1"),
        ({"generator": 5}, "must be a torch.Generator or one per image, got 5"),
        ({"generator": [one, 5]}, "must be a torch.Generator or one per image, got 5"),
    ):
        with pytest.raises((TypeError, ValueError), match=message):
            _latent(pipeline, **options)


def test_a_tuple_instead_of_an_output(pipeline):
    output = pipeline([0, 1], **LATENT)
    (images,) = pipeline([0, 1], **LATENT, return_dict=False)
    assert torch.equal(images, output.images)
    assert output[0] is output["images"] is output.images
    with pytest.raises(TypeError, match="positional"):
        pipeline([0], 4.0)  # diffusers' pipelines differ in the order of what follows
    assert output.to_tuple() == (output.images,)


def test_dtype_may_be_a_name_and_torch_dtype(saved):
    for options in (
        {"dtype": "bfloat16"},
        {"torch_dtype": torch.bfloat16},
        {"dtype": torch.bfloat16},
    ):
        assert BitDancePipeline.from_pretrained(saved, **options).dtype == torch.bfloat16
    for options, message in (
        ({"dtype": "int8"}, "dtype must be float32, bfloat16, float16 or float64, got torch.int8"),
        ({"dtype": "float8_e4m3fn"}, "or float64, got torch.float8_e4m3fn"),
        ({"dtype": "load"}, "dtype must be float32, bfloat16, float16 or float64, got 'load'"),
        ({"torch_dtype": 16}, "torch_dtype must be float32, bfloat16, float16 or float64, got 16"),
        ({"dtype": "float16", "torch_dtype": "float32"}, "dtype and torch_dtype must be the same"),
    ):
        with pytest.raises((TypeError, ValueError), match=message):
            BitDancePipeline.from_pretrained(saved, **options)


def test_to_moves_and_casts(saved):
    pipeline = BitDancePipeline.from_pretrained(saved)
    assert pipeline.to(torch.bfloat16) is pipeline
    assert pipeline.dtype == torch.bfloat16
    assert pipeline.to("cpu", torch.float32).device == torch.device("cpu")
    assert len(_latent(pipeline)) == 2
    assert pipeline.to("meta").device.type == "meta"


def test_progress_bar_counts_steps(pipeline, monkeypatch):
    def shown(labels, **config):
        monkeypatch.setattr(sys, "stderr", Terminal())
        pipeline.set_progress_bar_config(**config)
        pipeline(labels, num_inference_steps=1, batch_size=2)
        return sys.stderr.getvalue()

    try:
        assert "8/8" in shown([0, 1, 2])
        assert shown([0, 1, 2], disable=True) == ""
        assert "drawing" in shown([0], desc="drawing")
    finally:
        pipeline.set_progress_bar_config(disable=True)


def test_saved_models_give_equal_bits(pipeline, saved):
    loaded = BitDancePipeline.from_pretrained(saved)
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
    loaded = BitDancePipeline.from_pretrained(path, config=tiny_config())
    assert torch.equal(_latent(loaded, seed=3), _latent(pipeline, seed=3))


def test_autoencoder_from_its_own_file(pipeline, tmp_path):
    state = pipeline.model.state_dict()
    own = {k: v for k, v in state.items() if not k.startswith("vae.")}
    torch.save({"model": own}, tmp_path / "model.pt")
    vae = {k.removeprefix("vae."): v for k, v in state.items() if k.startswith("vae.")}
    vae["loss.discriminator.weight"] = torch.zeros(3)  # what only training needs is left out
    torch.save({"state_dict": vae}, tmp_path / "ae.pt")
    with pytest.raises(CheckpointError, match=r"\d+ missing: vae.encoder"):
        BitDancePipeline.from_pretrained(tmp_path / "model.pt", config=tiny_config())
    loaded = BitDancePipeline.from_pretrained(
        tmp_path / "model.pt", autoencoder=tmp_path / "ae.pt", config=tiny_config()
    )
    assert torch.equal(_latent(loaded, seed=3), _latent(pipeline, seed=3))


def test_dtype(saved):
    loaded = BitDancePipeline.from_pretrained(saved, dtype=torch.bfloat16)
    assert {p.dtype for p in loaded.model.parameters()} == {torch.bfloat16}
    assert len(loaded([1], num_inference_steps=1).images) == 1


def test_the_decoder_is_laid_out_once(pipeline):
    weights = [p for p in pipeline.model.vae.decoder.parameters() if p.dim() == 4]
    assert weights
    assert all(w.is_contiguous(memory_format=torch.channels_last) for w in weights)


def test_shapes_of_no_preset_are_refused(pipeline, tmp_path):
    path = tmp_path / "model.safetensors"
    safetensors.torch.save_model(pipeline.model, path)
    with pytest.raises(CheckpointError, match=r"its shapes match no preset .* give config="):
        BitDancePipeline.from_pretrained(path)
    with pytest.raises(ValueError, match=r"config must be one of B-1x, .* got 'B-2x'"):
        BitDancePipeline.from_pretrained(path, config="B-2x")


def test_what_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="is not a file, a folder or a repository id"):
        BitDancePipeline.from_pretrained(tmp_path / "nothing")
    with pytest.raises(FileNotFoundError, match=r"hub|among the files downloaded before"):
        BitDancePipeline.from_pretrained("nobody/nothing", local_files_only=True)
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=r"has no config.json, so save_pre"):
        BitDancePipeline.from_pretrained(tmp_path / "empty")


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
        (lambda c: c["weights"].update(sha256="0" * 64), "is altered: its checksum differs"),
        (lambda c: c["model"].update(n_layer=3), r"does not fit BitDanceModel.*missing: layers.2"),
    ],
)
def test_damaged_folders_are_refused(saved, change, message):
    _edit(saved, change)
    with pytest.raises(CheckpointError, match=message):
        BitDancePipeline.from_pretrained(saved)


def test_a_folder_has_its_own_autoencoder_and_configuration(saved):
    for name, value in (("autoencoder", saved), ("config", tiny_config())):
        with pytest.raises(ValueError, match=f"{name} must be left out if source is a folder"):
            BitDancePipeline.from_pretrained(saved, **{name: value})


def test_altered_weights_are_noticed(saved):
    (path,) = saved.glob("model-*.safetensors")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="is altered"):
        BitDancePipeline.from_pretrained(saved)


def test_a_failed_save_leaves_the_earlier_model(pipeline, saved, monkeypatch):
    from bitdance.io import files

    before = BitDancePipeline.from_pretrained(saved)

    def full(path, text):
        raise OSError("No space left on device")

    monkeypatch.setattr(files, "write_text", full)
    with pytest.raises(OSError, match="No space left"):
        tiny_pipeline(seed=1).save_pretrained(saved)
    again = BitDancePipeline.from_pretrained(saved)
    assert torch.equal(_latent(again), _latent(before))


def test_generated_images_can_be_saved(pipeline, tmp_path):
    image = pipeline([0], num_inference_steps=1).images[0]
    image.save(tmp_path / "x.png")
    assert np.array_equal(np.asarray(Image.open(tmp_path / "x.png")), np.asarray(image))


def test_bits_decode_to_the_generated_images(pipeline):
    options = {"num_inference_steps": 2, "seed": 3}
    packed = pipeline([0, 1, 2], output_type="latent", **options).images
    arrays = pipeline([0, 1, 2], output_type="np", **options).images
    assert np.array_equal(pipeline.decode(packed, batch_size=2, output_type="np"), arrays)
    for wrong in (packed[:, 1:], packed.int(), packed[0]):
        with pytest.raises(ValueError, match=r"packed_latents must be uint8 \['n', 16, 1\], got"):
            pipeline.decode(wrong)


def test_hub_repositories_are_downloaded_once_asked(pipeline, saved, tmp_path, monkeypatch):
    hub = Hub(tmp_path / "cache", **{"somebody/model": saved}).install(monkeypatch)
    loaded = BitDancePipeline.from_pretrained("somebody/model", revision="v1")
    assert torch.equal(_latent(loaded), _latent(pipeline))
    assert set(hub.options) == {("v1", False)}
    loaded = BitDancePipeline.from_pretrained("somebody/model", local_files_only=True)
    assert torch.equal(_latent(loaded), _latent(pipeline))
    assert hub.options[-1] == (None, True)
    with pytest.raises(FileNotFoundError, match="'somebody/else' was not found on the hub: 404"):
        BitDancePipeline.from_pretrained("somebody/else")
    hub.repositories["somebody/models"] = saved.parent
    loaded = BitDancePipeline.from_pretrained("somebody/models", subfolder=saved.name)
    assert torch.equal(_latent(loaded), _latent(pipeline))


def test_weights_of_another_model_are_not_downloaded(saved, tmp_path, monkeypatch):
    """The configuration is judged before files of gigabytes are asked for."""
    hub = Hub(tmp_path / "cache", **{"somebody/model": saved}).install(monkeypatch)
    (file,) = saved.glob("model-*.safetensors")
    (saved / "other.safetensors").write_bytes(b"0")
    BitDancePipeline.from_pretrained("somebody/model")
    assert hub.downloaded("") == ["config.json", file.name]
    for name, text in (("text", '{"model_type": "qwen3"}'), ("broken", "{"), ("none", None)):
        folder = hub.repositories[f"other/{name}"] = tmp_path / "other" / name
        folder.mkdir(parents=True)
        (folder / "model.safetensors").write_bytes(b"0")
        if text is not None:
            (folder / "config.json").write_text(text)
        with pytest.raises(CheckpointError, match=r"config\.json"):
            BitDancePipeline.from_pretrained(f"other/{name}")
    assert hub.downloaded(".safetensors") == [file.name]
