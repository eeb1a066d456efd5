"""Text-to-image models in every published layout, from folders and from a hub."""

import json
import sys
import types
from functools import partial

import pytest
import torch
from safetensors.torch import load_file, save_file

from bitdance import BinaryAutoencoder, BitDancePipeline, BitDanceT2IPipeline
from bitdance.io.files import CheckpointError
from bitdance.pipelines.release import locate_release, read_release
from bitdance.pipelines.text_to_image_files import read_sampling
from tests.model.helpers.hub import Hub
from tests.model.helpers.releases import qwen_model, write_diffusers, write_flat, write_three_files
from tests.model.pipelines.test_text_to_image import SIZE, Words

WRITERS = {
    "flat": write_flat,
    "flat, sharded": partial(write_flat, shards=3),
    "diffusers": write_diffusers,
    "diffusers, sharded": partial(write_diffusers, shards=2),
    "three files": lambda folder, model: write_three_files(folder, model)[0],
    "three files, bare": lambda folder, model: write_three_files(folder, model, bare=True)[0],
}
load = partial(BitDanceT2IPipeline.from_pretrained, tokenizer=Words())


@pytest.fixture(scope="module")
def model():
    return qwen_model()


@pytest.fixture
def hub(tmp_path, monkeypatch):
    return Hub(tmp_path / "cache").install(monkeypatch)


@pytest.fixture
def tokenizers(monkeypatch):
    """In place of the package: where tokenizers are loaded from."""
    loaded = []

    class Tokenizer(Words):
        @classmethod
        def from_file(cls, path):
            loaded.append(path)
            return cls()

    module = types.ModuleType("tokenizers")
    module.Tokenizer = Tokenizer
    module.__spec__ = types.SimpleNamespace(name="tokenizers")
    monkeypatch.setitem(sys.modules, "tokenizers", module)
    return loaded


def assert_state(pipeline, expected):
    state = pipeline.model.state_dict()
    assert state.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(state[name], tensor), name


@pytest.mark.parametrize("layout", [name for name in WRITERS if "three" not in name])
def test_folders_are_loaded(tmp_path, model, layout):
    loaded = load(WRITERS[layout](tmp_path / "model", model))
    assert loaded.config.llm == model.config.llm
    assert loaded.config.head == model.config.head
    assert loaded.config.parallel_num == 4
    assert_state(loaded, model.state_dict())


@pytest.mark.parametrize("bare", [False, True])
def test_three_files_are_loaded_with_their_scales(tmp_path, model, bare):
    """Without an output projection the embeddings are taken for tied; images do not need it."""
    folder, rounded = write_three_files(tmp_path / "model", model, bare=bare)
    loaded = load(folder)
    assert loaded.config.llm.tie_word_embeddings == bare
    assert loaded.config.parallel_num == 4, "one more than the queries of the tokenizer"
    assert_state(loaded, rounded)
    half = load(folder, dtype="bfloat16")
    assert_state(half, {name: tensor.bfloat16() for name, tensor in rounded.items()})
    images = loaded("a", **SIZE, num_inference_steps=1, output_type="latent").images
    assert images.shape == (1, 24, 1)


def test_a_broken_link_is_no_missing_file(tmp_path):
    (tmp_path / "sampling_config.json").symlink_to("nowhere")
    with pytest.raises(FileNotFoundError, match=r"no such file: .*sampling_config\.json"):
        read_sampling(tmp_path)


@pytest.mark.parametrize("layout", WRITERS)
def test_a_hub_is_asked_for_what_is_needed(tmp_path, model, hub, tokenizers, layout):
    """Names, then small files and the tokenizer, then weights; nothing else and nothing twice."""
    folder = WRITERS[layout](tmp_path / "model", model)
    for name in ("README.md", "extra.safetensors", "tokenizer/extra.bin"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"0")
    hub.repositories["owner/name"] = folder
    loaded = BitDanceT2IPipeline.from_pretrained("owner/name", revision="v1")
    assert_state(loaded, load(folder).model.state_dict())
    assert {revision for revision, _ in hub.options} == {"v1"}
    assert [path.split("cache/owner--name/")[1] for path in tokenizers] == [
        "tokenizer.json" if "flat" in layout else "tokenizer/tokenizer.json"
    ]
    kinds = [kind for kind, *_ in hub.requests]
    assert kinds.count("list") == 1
    assert len(kinds) <= 6
    gets = [names for kind, _, *rest in hub.requests if kind == "get" for names in rest]
    assert not any(name.endswith(".safetensors") for names in gets[:-1] for name in names)
    downloaded = hub.downloaded("")
    assert len(downloaded) == len(set(downloaded))
    unused = ("README.md", "extra.safetensors", "extra.bin", "projector/config.json")
    assert sorted(downloaded) == sorted(
        name for name in hub.files("owner/name")
        if not name.endswith(unused) or name == "projector/config.json"
    )  # fmt: skip
    assert any(name.endswith("chat_template.jinja") for name in downloaded)


@pytest.mark.parametrize("layout", WRITERS)
def test_what_was_downloaded_is_loaded_without_a_connection(tmp_path, model, hub, layout):
    hub.repositories["owner/name"] = WRITERS[layout](tmp_path / "model", model)
    expected = load("owner/name").model.state_dict()
    requests = len(hub.requests)
    assert_state(load("owner/name", local_files_only=True), expected)
    assert len(hub.requests) == requests
    hub.offline = True
    assert_state(load("owner/name"), expected)
    with pytest.raises(FileNotFoundError, match="'owner/other' was not found on the hub: no conn"):
        load("owner/other")
    with pytest.raises(FileNotFoundError, match="not found among the files downloaded before"):
        load("owner/other", local_files_only=True)


def edit(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def resave(path, change):
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


REFUSED = {
    "another language model": (
        "flat", lambda f: edit(f / "config.json", model_type="llama"),
        "model_type must be 'qwen3', got 'llama'",
    ),
    "a head of another width": (
        "flat", lambda f: edit(f / "vision_head_config.json", ch_cond=32), "ch_cond must be 24",
    ),
    "an index of files elsewhere": (
        "flat, sharded",
        lambda f: edit(f / "model.safetensors.index.json", weight_map={"a": "../x"}),
        "must map tensors to files beside it",
    ),
    "another pipeline": (
        "diffusers",
        lambda f: edit(f / "model_index.json", text_encoder=None, _class_name="FluxPipeline"),
        r"text_encoder is missing \(it belongs to a FluxPipeline\)",
    ),
    "another autoencoder": (
        "diffusers",
        lambda f: edit(f / "autoencoder/config.json", ddconfig={"z_channels": 16}),
        "ch_target must be 16",
    ),
    "another file": (
        "three files",
        lambda f: resave(
            f / "text_encoders/Tiny_TextEncoder_FP8.safetensors",
            lambda t: t.pop("text_encoder.model.embed_tokens.weight"),
        ),
        r"model\.embed_tokens\.weight is missing",
    ),
    "a scale of blocks": (
        "three files",
        lambda f: resave(
            f / "diffusion_models/Tiny_MainModel_FP8.safetensors",
            lambda t: t.update({"diffusion_head.net.cond_embed.weight_scale": torch.ones(2, 3)}),
        ),
        r"cond_embed\.weight_scale must be a number, or 32 of them, got torch\.float32 \[2, 3\]",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_other_models_are_refused_before_weights_are_downloaded(tmp_path, model, hub, case):
    layout, change, message = REFUSED[case]
    folder = WRITERS[layout](tmp_path / "model", model)
    change(folder)
    hub.repositories["owner/name"] = folder
    with pytest.raises(CheckpointError, match=message):
        load("owner/name")
    assert hub.downloaded(".safetensors") == []
    with pytest.raises(CheckpointError, match=message):
        load(folder)


def test_missing_files_are_named_before_weights_are_downloaded(tmp_path, model, hub):
    folder = write_flat(tmp_path / "model", model)
    hub.repositories["owner/name"] = folder
    for name in ("projector.safetensors", "ae_config.json"):
        (folder / name).unlink()
        with pytest.raises(FileNotFoundError, match=f"'owner/name' has no file '{name}'"):
            load("owner/name")
    (folder / "vision_head_config.json").unlink()
    with pytest.raises(CheckpointError, match=r"no vision_head_config.json and no model_index"):
        load("owner/name")
    assert hub.downloaded(".safetensors") == []


def test_a_subfolder_is_a_model(tmp_path, model, hub, tokenizers):
    hub.repositories["owner/name"] = tmp_path / "both"
    folder = write_diffusers(tmp_path / "both" / "64x", model)
    write_flat(tmp_path / "both" / "16x", model)
    options = {"subfolder": "64x"}
    loaded = BitDanceT2IPipeline.from_pretrained("owner/name", **options)
    assert_state(loaded, model.state_dict())
    assert all(name.startswith("64x/") for name in hub.downloaded(""))
    again = BitDanceT2IPipeline.from_pretrained("owner/name", local_files_only=True, **options)
    assert_state(again, model.state_dict())
    assert_state(load(folder.parent, subfolder="16x"), model.state_dict())
    with pytest.raises(FileNotFoundError, match="'owner/name/32x' has no files"):
        load("owner/name", subfolder="32x")
    with pytest.raises(FileNotFoundError, match="no such folder"):
        load(folder.parent, subfolder="32x")


@pytest.mark.parametrize("layout", ["flat", "diffusers", "three files"])
def test_of_a_model_only_the_autoencoder_is_downloaded(tmp_path, model, hub, layout):
    hub.repositories["owner/name"] = WRITERS[layout](tmp_path / "model", model)
    found = BinaryAutoencoder.from_pretrained("owner/name")
    expected = load(tmp_path / "model").model.ae.state_dict()
    assert all(torch.equal(found.state_dict()[name], t) for name, t in expected.items())
    assert len(hub.downloaded(".safetensors")) == 1
    other = write_flat(tmp_path / "other", qwen_model(1))
    mixed = load(other, autoencoder="owner/name").model.ae.state_dict()
    assert all(torch.equal(mixed[name], tensor) for name, tensor in expected.items())


def test_a_folder_of_components_is_a_folder_of_autoencoders(tmp_path, model, hub):
    folder = write_diffusers(tmp_path / "model", model)
    hub.repositories["owner/name"] = folder
    expected = model.ae.state_dict()
    for source in ("owner/name", folder):
        found = BinaryAutoencoder.from_pretrained(source, subfolder="autoencoder").state_dict()
        assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    with pytest.raises(CheckpointError, match="says ch = 32, but config= says 256"):
        BinaryAutoencoder.from_pretrained("owner/name", config="d16c32")


def test_the_tokenizer_of_another_model_is_all_that_is_downloaded_of_it(
    tmp_path, model, hub, tokenizers
):
    folder = write_three_files(tmp_path / "model", model)[0]
    for path in (folder / "tokenizer").iterdir():
        path.unlink()
    hub.repositories["owner/words"] = write_flat(tmp_path / "words", model)
    load = partial(BitDanceT2IPipeline.from_pretrained, folder)
    assert isinstance(load(tokenizer="owner/words").tokenizer, Words)
    assert sorted(hub.downloaded("")) == [
        "chat_template.jinja", "tokenizer.json", "tokenizer_config.json",
    ]  # fmt: skip
    with pytest.raises(FileNotFoundError, match="has no text tokenizer"):
        load(tokenizer=folder)


def test_the_class_conditional_pipeline_says_whose_model_it_is(tmp_path, model, hub):
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "BitDance_B_1x.pt").write_bytes(b"0")
    hub.repositories |= {
        "owner/text": write_diffusers(tmp_path / "text", model), "owner/files": tmp_path / "files",
    }  # fmt: skip
    with pytest.raises(CheckpointError, match=r"a text-to-image model: load it with BitDanceT2IP"):
        BitDancePipeline.from_pretrained("owner/text")
    with pytest.raises(
        CheckpointError, match=r"files BitDance_B_1x\.pt; to load one give 'owner/n"
    ):
        BitDancePipeline.from_pretrained("owner/files")
    assert hub.downloaded("") == []


def test_two_candidates_for_one_of_three_files_are_named(tmp_path, model):
    folder = write_three_files(tmp_path / "model", model)[0]
    save_file({"a": torch.zeros(1)}, folder / "vae" / "other_vae.safetensors")
    with pytest.raises(CheckpointError, match=r"two files that may be its autoencoder: vae/Tiny"):
        load(folder)


def test_training_begins_with_any_layout(tmp_path, model, hub):
    expected = model.state_dict()
    for layout in ("flat, sharded", "diffusers"):
        hub.repositories["owner/name"] = WRITERS[layout](tmp_path / layout, model)
        hub.cache = tmp_path / f"cache {layout}"
        for folder in (locate_release(tmp_path / layout), locate_release("owner/name")):
            found = read_release(folder)
            assert found.keys() == expected.keys()
            assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    folder = write_three_files(tmp_path / "three", model)[0]
    with pytest.raises(FileNotFoundError, match="of a language model"):
        read_release(folder)


def test_a_language_model_alone_is_judged_first(tmp_path, model, hub):
    folder = write_flat(tmp_path / "model", model, shards=2)
    for pattern in ("vision*", "ae*", "projector*"):
        for path in folder.glob(pattern):
            path.unlink()
    hub.repositories["owner/name"] = folder
    found = read_release(locate_release("owner/name"))
    assert found.keys() == {f"llm_model.{name}" for name in model.llm_model.state_dict()}
    hub.cache = tmp_path / "another cache"
    hub.requests.clear()
    edit(folder / "config.json", model_type="llama")
    with pytest.raises(CheckpointError, match="model_type must be 'qwen3', got 'llama'"):
        locate_release("owner/name")
    assert hub.downloaded(".safetensors") == []
    (folder / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"has no config\.json: it is not a language model"):
        locate_release("owner/name")
