"""From a released folder to pictures, and what is refused on the way."""

import dataclasses
import json
import sys
import types
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from bitdance import BitDanceT2IPipeline, GenerationCancelled
from bitdance.io.files import CheckpointError
from bitdance.pipelines import prompts
from bitdance_kernels import unpack_signs
from tests.model.models.test_text_to_image import CONFIG, tiny

SPECIAL = {"<|vision_start|>": 40, "<|res_4|>": 41, "<|res_6|>": 42}
SPECIAL |= {f"<|query_{i}|>": 42 + i for i in range(1, 4)}
SIZE = {"height": 8, "width": 12}
NONSENSE = (
    None,
    -1,
    10**7,
    2**62,
    10**400,
    0.5,
    float("inf"),
    True,
    "a",
    [],
    {"a": [1]},
    [1] * 10**4,
)


class Words:
    """Spells texts, with 30 letters."""

    unk_token_id = None

    def encode(self, text):
        return [ord(letter) % 30 for letter in text]

    def convert_tokens_to_ids(self, token):
        return SPECIAL.get(token, self.unk_token_id)


def release(folder, model, parts=1, **changes):
    """Write a folder as published; with parts an index and as many files."""
    config = model.config
    llm = {"model_type": "qwen3", "hidden_act": "silu", "eos_token_id": 1, **config.llm.to_dict()}
    head = {
        name: getattr(config.head, name)
        for name in ("ch_target", "ch_cond", "ch_latent", "depth_latent", "depth_adanln")
    }
    head |= {"use_swiglu": config.head.use_swiglu, "parallel_num": config.parallel_num}
    ae = config.autoencoder
    shape = {
        name: getattr(ae, name)
        for name in ("ch", "num_res_blocks", "z_channels", "in_channels", "out_ch")
    }
    shape |= {"ch_mult": list(ae.ch_mult), "double_z": False}
    for name, content in (
        ("config", llm | changes),
        ("vision_head_config", head),
        ("ae_config", {"ddconfig": shape, "gan_decoder": ae.gan_decoder}),
    ):
        (folder / f"{name}.json").write_text(json.dumps(content))
    for name, part in (
        ("vision_head", model.vision_head),
        ("ae", model.ae),
        ("projector", model.embed_vision_mlp),
    ):
        save_file(part.state_dict(), folder / f"{name}.safetensors")
    state = model.llm_model.state_dict()
    if parts == 1:
        save_file(state, folder / "model.safetensors")
    else:
        files = {name: f"model-{i % parts}.safetensors" for i, name in enumerate(state)}
        for file in set(files.values()):
            save_file({n: state[n] for n, f in files.items() if f == file}, folder / file)
        index = {"metadata": {"total_size": 1}, "weight_map": files}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def pipeline():
    pipeline = BitDanceT2IPipeline(tiny(), Words())
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def draw(pipeline, prompts=("a dog", "snow"), **settings):
    return pipeline(prompts, **SIZE, **{"num_inference_steps": 2} | settings).images


@pytest.mark.parametrize("parts", [1, 3])
def test_a_released_folder(tmp_path, parts):
    folder = release(tmp_path, tiny(), parts)
    loaded = BitDanceT2IPipeline.from_pretrained(folder, tokenizer=Words())
    assert loaded.config == dataclasses.replace(
        CONFIG,
        head=dataclasses.replace(CONFIG.head, P_mean=0.0, P_std=1.0),
        autoencoder=dataclasses.replace(CONFIG.autoencoder, num_codebooks=4),
    )
    assert torch.equal(draw(loaded, output_type="pt"), draw(pipeline(), output_type="pt"))
    half = BitDanceT2IPipeline.from_pretrained(folder, tokenizer=Words(), dtype=torch.bfloat16)
    assert {p.dtype for p in half.model.parameters()} == {torch.bfloat16}
    assert draw(half, output_type="latent").shape == (2, 24, 1)


def test_tied_embeddings(tmp_path):
    model = tiny(llm=dataclasses.replace(CONFIG.llm, tie_word_embeddings=True))
    release(tmp_path, model)
    again = dict(model.llm_model.state_dict())
    again["lm_head.weight"] = again["model.embed_tokens.weight"].clone()
    for state in (model.llm_model.state_dict(), again):
        save_file(state, tmp_path / "model.safetensors")
        loaded = BitDanceT2IPipeline.from_pretrained(tmp_path, tokenizer=Words())
        assert loaded.model.llm_model.lm_head is None


def index(folder, content):
    (folder / "model.safetensors.index.json").write_text(json.dumps(content))


DAMAGES = {
    "cut": (
        lambda f: (f / "ae.safetensors").write_bytes((f / "ae.safetensors").read_bytes()[:900]),
        r"ae\.safetensors is not a complete safetensors file",
    ),
    "missing": (
        lambda f: save_file({"fc1.bias": torch.zeros(24)}, f / "projector.safetensors"),
        r"projector\.safetensors does not fit .* 3 missing: fc1\.weight, fc2\.weight",
    ),
    "other head": (
        lambda f: (f / "vision_head_config.json").write_text(json.dumps({"ch_target": 8})),
        "HeadConfig: ch_cond is missing",
    ),
    "other model": (
        lambda f: (f / "config.json").write_text(json.dumps({"model_type": "llama"})),
        "model_type must be 'qwen3', got 'llama'",
    ),
    "no JSON": (lambda f: (f / "ae_config.json").write_text("{"), r"ae_config\.json is not JSON"),
    "empty index": (lambda f: index(f, {}), r"index\.json must map tensors to files beside it"),
    "elsewhere": (
        lambda f: index(f, {"weight_map": {"lm_head.weight": "../model.safetensors"}}),
        r"index\.json must map tensors to files beside it",
    ),
    "a part": (
        lambda f: index(f, {"weight_map": {"lm_head.weight": "projector.safetensors"}}),
        r"language model does not fit Qwen3ForCausalLM.* 2 missing: model\.layers\.0",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_folders(tmp_path, damage):
    change, message = DAMAGES[damage]
    change(release(tmp_path, tiny()))
    with pytest.raises(CheckpointError, match=message):
        BitDanceT2IPipeline.from_pretrained(tmp_path, tokenizer=Words())


@pytest.mark.parametrize("file", ["config", "vision_head_config", "ae_config"])
def test_every_nonsense_value_of_a_release_is_one_line(tmp_path, file):
    """No key of any of its files, and no value, leads to another error or to much work."""
    path = release(tmp_path, tiny()) / f"{file}.json"
    content = json.loads(path.read_text())
    places = [(name,) for name in content]
    if file == "ae_config":
        places += [("ddconfig", name) for name in content["ddconfig"]]
    for place in places:
        for value in NONSENSE:
            changed = json.loads(json.dumps(content))
            parent = changed if len(place) == 1 else changed[place[0]]
            parent[place[-1]] = value
            path.write_text(json.dumps(changed))
            message = refusal(tmp_path)
            assert "\n" not in message
            assert len(message) < 1500


def refusal(folder):
    try:
        BitDanceT2IPipeline.from_pretrained(folder, tokenizer=Words())
    except CheckpointError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "projector.safetensors"])
def test_missing_files(tmp_path, name):
    (release(tmp_path, tiny()) / name).unlink()
    with pytest.raises(FileNotFoundError, match=name):
        BitDanceT2IPipeline.from_pretrained(tmp_path, tokenizer=Words())


def test_pictures():
    it = pipeline()
    packed = draw(it, output_type="latent")
    assert (packed.shape, packed.dtype) == ((2, 24, 1), torch.uint8)
    images = draw(it)
    assert [image.size for image in images] == [(12, 8)] * 2
    pixels = draw(it, output_type="uint8")
    grey = pixels.permute(0, 2, 3, 1).numpy()
    assert np.array_equal(grey, np.stack([np.asarray(image) for image in images]))
    assert torch.equal(it.decode(packed, **SIZE, output_type="uint8"), pixels)
    assert np.array_equal(draw(it, output_type="np"), grey.astype(np.float32) / 255)
    assert torch.equal(draw(it, output_type="pt"), pixels.float() / 255)
    assert torch.equal(draw(it, num_images_per_prompt=1, output_type="latent"), packed)
    assert torch.equal(draw(it, batch_size=1, output_type="latent"), packed)
    (alone,) = draw(it, "snow", seed=0, sample_ids=[1], output_type="latent")
    assert torch.equal(alone, packed[1])
    assert not torch.equal(draw(it, seed=[3, 4], output_type="latent"), packed)
    assert not torch.equal(draw(it, guidance_scale=1.0, output_type="latent"), packed)
    assert draw(it, []) == []


def test_stopping():
    it, seen = pipeline(), []

    def stop(pipeline, step, timestep, tensors):
        assert pipeline is it
        seen.append((step, timestep, tensors["packed_latents"].shape))
        pipeline.interrupt = step == 1
        return tensors

    options = {"callback_on_step_end_tensor_inputs": ["packed_latents"]}
    with pytest.raises(GenerationCancelled, match="stopped after AR step 2 of 6"):
        draw(it, callback_on_step_end=stop, **options)
    assert seen == [(0, 5, (4, 4, 1)), (1, 4, (4, 4, 1))]


def test_latents_that_a_callback_replaces_are_gone_on_with():
    it, chosen = pipeline(), torch.where(torch.arange(8) % 3 == 0, 1.0, -1.0).expand(4, 4, 8)

    def replace(pipeline, step, timestep, tensors):
        return {"latents": chosen if step == 2 else tensors["latents"]}

    def same(pipeline, step, timestep, tensors):
        return {"latents": tensors["latents"].clone()}

    plain = unpack_signs(draw(it, output_type="latent"))
    found = unpack_signs(draw(it, output_type="latent", callback_on_step_end=replace))
    assert torch.equal(found[:, :8], plain[:, :8])
    assert torch.equal(found[:, 8:12], chosen[:2])
    assert not torch.equal(found[:, 12:], plain[:, 12:])
    copied = draw(it, output_type="latent", callback_on_step_end=same)
    assert torch.equal(unpack_signs(copied), plain)


def test_the_tokenizer_of_a_release_is_loaded(tmp_path, monkeypatch):
    """By tokenizers where there is its file, otherwise by transformers."""
    folder = release(tmp_path, tiny())
    for name in ("tokenizers", "transformers"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setattr(prompts.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match="tokenizer must be given, or tokenizers installed"):
        BitDanceT2IPipeline.from_pretrained(folder)
    monkeypatch.setattr(prompts.importlib.util, "find_spec", lambda name: name)
    with pytest.raises(CheckpointError, match="its text tokenizer needs transformers"):
        BitDanceT2IPipeline.from_pretrained(folder)
    asked = []

    class AutoTokenizer:
        @staticmethod
        def from_pretrained(folder, **options):
            asked.append((folder, options))
            return Words()

    class Tokenizer:
        @staticmethod
        def from_file(path):
            asked.append(path)
            if Path(path).read_text() != "{}":
                raise Exception("no tokenizer")
            return Words()

    module = types.SimpleNamespace(AutoTokenizer=AutoTokenizer)
    monkeypatch.setitem(sys.modules, "transformers", module)
    loaded = BitDanceT2IPipeline.from_pretrained(folder, dtype="bfloat16")
    assert isinstance(loaded.tokenizer, Words)
    assert loaded.dtype == torch.bfloat16
    (folder / "tokenizer.json").write_text("{}")
    monkeypatch.setitem(sys.modules, "tokenizers", types.SimpleNamespace(Tokenizer=Tokenizer))
    assert isinstance(BitDanceT2IPipeline.from_pretrained(folder).tokenizer, Words)
    assert asked == [(folder, {"local_files_only": True}), str(folder / "tokenizer.json")]
    (folder / "tokenizer.json").write_text("[")
    with pytest.raises(CheckpointError, match=r"tokenizer.json is damaged: no tokenizer"):
        BitDanceT2IPipeline.from_pretrained(folder)


def test_what_is_saved_is_loaded(tmp_path):
    class Saved(Words):
        def save(self, path):
            Path(path).write_text("words")

    made = BitDanceT2IPipeline(tiny(), Saved())
    made.save_pretrained(tmp_path / "model")
    loaded = BitDanceT2IPipeline.from_pretrained(tmp_path / "model", tokenizer=Words())
    assert loaded.config == made.config
    for name, value in made.model.state_dict().items():
        assert torch.equal(loaded.model.state_dict()[name], value)
    assert (tmp_path / "model" / "tokenizer.json").read_text() == "words"
    with pytest.raises(TypeError, match="tokenizer must be a tokenizer with save_pretrained or"):
        BitDanceT2IPipeline(tiny(), Words()).save_pretrained(tmp_path / "none")
    with pytest.raises(FileExistsError):
        made.save_pretrained(tmp_path / "model")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]
    with torch.no_grad():
        made.model.ae.decoder.conv_in.weight[0, 0, 0, 0] = torch.nan
    with pytest.raises(ValueError, match=r"weights must be finite, got others in ae\.decoder"):
        made.save_pretrained(tmp_path / "none")


def test_another_autoencoder_takes_the_place_of_that_of_the_release(tmp_path):
    model = tiny()
    for name in ("release", "other"):
        (tmp_path / name).mkdir()
    folder = release(tmp_path / "release", model)
    other = tmp_path / "other"
    release(other, tiny(1))
    load = partial(BitDanceT2IPipeline.from_pretrained, folder, tokenizer=Words())
    found, expected = load(autoencoder=other).model, tiny(1)
    assert torch.equal(found.ae.decoder.conv_in.weight, expected.ae.decoder.conv_in.weight)
    assert torch.equal(found.embed_vision_mlp.fc1.weight, model.embed_vision_mlp.fc1.weight)
    (other / "ae_config.json").write_text(
        (other / "ae_config.json").read_text().replace('"z_channels": 8', '"z_channels": 16')
    )
    with pytest.raises(CheckpointError):
        load(autoencoder=other)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"height": 6}, "height must be a multiple of 4 pixels, got 6"),
        ({"width": 0}, "width must be a multiple of 4 pixels, got 0"),
        ({"width": 16}, r"tokenizer must have <\|res_8\|> for images of 4 x 8 tokens, 4 a step"),
        ({"seed": -1}, "seed must be an integer from 0 to 2"),
        ({"seed": [1]}, r"seed must be one per image \(2\), got 1"),
        ({"batch_size": 0}, "batch_size must be an integer of at least 1, got 0"),
        ({"output_type": "gif"}, "output_type must be"),
        ({"guidance_scale": float("nan")}, "guidance_scale must be finite"),
        ({"num_inference_steps": 0}, "steps"),
    ],
)
def test_arguments_that_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        pipeline()(["a", "b"], **SIZE | {"num_inference_steps": 2} | settings)


def test_an_unknown_token_and_other_latents_are_refused():
    it = pipeline()
    it.tokenizer.unk_token_id = 39
    with pytest.raises(ValueError, match=r"tokenizer must have <\|res_8\|>"):
        it("a", height=16, width=12)
    with pytest.raises(ValueError, match=r"packed_latents must be uint8 \['n', 24, 1\], got"):
        it.decode(torch.zeros(1, 20, 1, dtype=torch.uint8), **SIZE)
