"""Workflows through a stub of ComfyUI: pictures, the cache, progress, cancelling, errors."""

import copy
import json

import numpy as np
import pytest
import torch
from PIL import Image

from bitdance import BitDancePipeline, BitDanceT2IPipeline
from bitdance.models.loading.bundled import bundled_folder
from bitdance.models.quantization import quantization_of
from tests.integrations.comfyui.executor import PromptError
from tests.integrations.comfyui.stub import FOLDER, ComfyUI
from tests.model.helpers.hub import Hub
from tests.model.helpers.tiny import tiny_pipeline


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """ComfyUI with the nodes, and a tiny model of classes in a folder."""
    with pytest.MonkeyPatch.context() as patch:
        comfy = ComfyUI(tmp_path_factory.mktemp("run") / "ComfyUI").install(patch)
        tiny_pipeline().save_pretrained(comfy.base / "models/bitdance/owner/tiny")
        comfy.copy_nodes(patch)
        yield comfy


@pytest.fixture
def comfy(installed):
    """The same without results of earlier tests."""
    installed.executor._cache.clear()
    installed.on_progress = lambda *_: None
    return installed


@pytest.fixture(scope="module")
def pipeline(installed):
    """The tiny model, outside of ComfyUI."""
    pipeline = BitDancePipeline.from_pretrained(installed.base / "models/bitdance/owner/tiny")
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def example(name, **changes):
    """A workflow of the folder, with other inputs of its nodes: ``{"2": {"seed": 1}}``."""
    prompt = json.loads((FOLDER / "examples" / name).read_text())
    for node, inputs in changes.items():
        prompt[node.removeprefix("node")]["inputs"].update(inputs)
    return prompt


def classes(**changes):
    """The tiny model draws, decodes and saves."""
    inputs = {"model": "owner/tiny", "dtype": "float32", "device": "cpu", "quantization": "none"}
    sample = {
        "model": ["1", 0], "classes": "boot\nnight dress", "seed": 7, "steps": 2, "guidance": 3.0,
        "batch_size": 2, "previews": 2,
    }  # fmt: skip
    prompt = {
        "1": {"class_type": "BitDanceLoadClassModel", "inputs": inputs},
        "2": {"class_type": "BitDanceSampleClasses", "inputs": sample},
        "3": {
            "class_type": "BitDanceDecode",
            "inputs": {"codes": ["2", 0], "vae": ["1", 1], "images_at_a_time": 3},
        },
        "4": {"class_type": "SaveImage", "inputs": {"images": ["3", 0], "filename_prefix": "tiny"}},
    }
    for node, values in changes.items():
        prompt[node.removeprefix("node")]["inputs"].update(values)
    return prompt


def succeeded(comfy, prompt):
    outcome = comfy.run(prompt)
    assert outcome.status == "success", outcome.error
    return outcome


def test_the_first_example_draws_what_the_pipeline_draws(comfy):
    pytest.importorskip("tokenizers")
    prompt = example("emoji.json", node2={"steps": 2, "batch_size": 2})
    outcome = succeeded(comfy, prompt)
    pipe = BitDanceT2IPipeline.from_pretrained("emoji")
    expected = pipe(
        prompt["2"]["inputs"]["prompt"], num_inference_steps=2, num_images_per_prompt=2, seed=0,
        output_type="np",
    ).images  # fmt: skip
    images = outcome.outputs["3"][0]
    assert np.array_equal(images.numpy(), expected)
    names = [shown["filename"] for shown in outcome.ui["4"]["images"]]
    for name, array in zip(names, expected, strict=True):
        saved = np.asarray(Image.open(comfy.base / "output" / name))
        assert np.array_equal(saved, np.round(array * 255).astype(np.uint8))


def test_the_second_example_saves_the_bits_of_what_it_draws(comfy):
    prompt = example("reconstruct.json", node2={"steps": 2, "batch_size": 1})
    outcome = succeeded(comfy, prompt)
    drawn, decoded = (outcome.outputs[node][0] for node in ("3", "6"))
    assert drawn.shape == decoded.shape == (2, 32, 32, 3)
    assert float((drawn - decoded).abs().mean()) < 0.1  # the bits of an image are another's
    (file,) = outcome.ui["5"]["codes"]
    assert (file["subfolder"], file["type"]) == ("codes", "output")
    saved = comfy.base / "output" / "codes" / file["filename"]
    assert saved.stat().st_size < 2000

    saved.rename(comfy.base / "input" / "mine.bits.safetensors")
    prompt["5"] = {
        "class_type": "BitDanceLoadCodes", "inputs": {"file": "mine.bits.safetensors"},
    }  # fmt: skip
    again = succeeded(comfy, prompt)
    assert again.executed == ["5", "6", "7"]
    assert torch.equal(again.outputs["6"][0], decoded)


def test_negative_prompt_size_and_guidance_reach_a_model_of_ones_own(comfy):
    pytest.importorskip("tokenizers")
    settings = {
        "prompt": "red apple, twemoji style", "negative_prompt": "noto style", "steps": 1,
        "guidance": 2.5, "batch_size": 1, "width": 0, "height": 0, "seed": 2**64 - 1,
        "previews": 0,
    }  # fmt: skip
    (comfy.base / "models/bitdance/mine").symlink_to(bundled_folder("emoji"))
    prompt = example("emoji.json", node1={"model": "mine"}, node2=settings)
    codes = succeeded(comfy, prompt).outputs["2"][0]
    pipe = BitDanceT2IPipeline.from_pretrained("emoji")
    expected = pipe(
        settings["prompt"], negative_prompt="noto style", num_inference_steps=1,
        guidance_scale=2.5, seed=2**64 - 1, output_type="latent",
    ).images  # fmt: skip
    assert torch.equal(codes.packed, expected)
    assert (codes.height, codes.width, codes.seed, codes.sample_ids) == (64, 64, 2**64 - 1, (0,))
    assert all(preview is None for _, _, preview in comfy.progress)


def test_images_of_classes_and_their_progress(comfy, pipeline):
    outcome = succeeded(comfy, classes())
    expected = pipeline(
        ["boot", "night dress"], num_images_per_prompt=2, num_inference_steps=2, guidance_scale=3.0,
        seed=7, output_type="np",
    ).images  # fmt: skip
    assert np.array_equal(outcome.outputs["3"][0].numpy(), expected)
    assert outcome.executed == ["1", "2", "3", "4"]
    sampling, decoding = comfy.progress[:4], comfy.progress[4:]
    assert [step[:2] for step in sampling] == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert [step[:2] for step in decoding] == [(3, 4), (4, 4)]
    shown = [step[0] for step in sampling if step[2] is not None]
    assert shown == [2, 3]
    for format_, image, pixels in (step[2] for step in sampling if step[2] is not None):
        assert (format_, image.size, image.mode) == ("JPEG", (8, 8), "RGB")
        assert pixels > 0


@pytest.mark.parametrize(
    ("previews", "after"), [(0, []), (1, [2]), (3, [1, 2, 3]), (64, [1, 2, 3])]
)
def test_previews_are_spread_over_the_steps(comfy, previews, after):
    succeeded(comfy, classes(node2={"previews": previews}))
    assert [step[0] for step in comfy.progress if step[2] is not None] == after


def test_the_last_preview_shows_all_patches_but_the_last(comfy):
    outcome = succeeded(comfy, classes(node2={"previews": 3}))
    last = np.asarray(comfy.progress[2][2][1])
    final = np.round(outcome.outputs["3"][0][0].numpy() * 255).astype(np.uint8)
    gray = (last == 128).all(-1)
    assert gray[4:, 4:].all()
    assert not gray[:4, :4].all()
    assert not np.array_equal(last, final)


def test_only_what_a_change_concerns_runs_again(comfy):
    prompt = classes()
    assert succeeded(comfy, copy.deepcopy(prompt)).executed == ["1", "2", "3", "4"]
    assert succeeded(comfy, copy.deepcopy(prompt)).executed == []
    assert succeeded(comfy, classes(node2={"seed": 8})).executed == ["2", "3", "4"]
    assert succeeded(comfy, classes(node2={"seed": 8}, node3={"images_at_a_time": 1})).executed == [
        "3", "4",
    ]  # fmt: skip


def test_a_model_whose_files_change_is_loaded_again(comfy, tmp_path):
    folder = comfy.base / "models/bitdance/changing"
    tiny_pipeline(seed=0).save_pretrained(folder)
    prompt = classes(node1={"model": "changing"})
    before = succeeded(comfy, copy.deepcopy(prompt)).outputs["3"][0]
    assert succeeded(comfy, copy.deepcopy(prompt)).executed == []
    tiny_pipeline(seed=1).save_pretrained(folder)
    after = succeeded(comfy, copy.deepcopy(prompt))
    assert after.executed == ["1", "2", "3", "4"]
    assert not torch.equal(after.outputs["3"][0], before)


@pytest.mark.parametrize("step", [1, 3])
def test_cancelling_stops_after_the_step_and_leaves_the_model_usable(comfy, pipeline, step):
    seen = []

    def cancel(value, total, preview):
        seen.append(value)
        if value == step:
            comfy.interrupt()

    comfy.on_progress = cancel
    outcome = comfy.run(classes())
    assert (outcome.status, outcome.node) == ("interrupted", "2")
    assert seen == list(range(1, step + 1))
    assert outcome.executed == ["1"]
    loaded = outcome.outputs["1"][0]
    assert not loaded.interrupt
    assert loaded._running == set()

    comfy.on_progress = lambda *_: None
    again = succeeded(comfy, classes())
    assert again.executed == ["2", "3", "4"]  # the model was kept
    expected = pipeline(
        ["boot", "night dress"], num_images_per_prompt=2, num_inference_steps=2, guidance_scale=3.0,
        seed=7, output_type="np",
    ).images  # fmt: skip
    assert np.array_equal(again.outputs["3"][0].numpy(), expected)


@pytest.mark.parametrize(("node", "finished"), [("3", 1), ("4", 3)])
def test_decoding_and_encoding_are_cancelled_between_images(comfy, node, finished):
    """After the first image that node 3 decodes, and the first that node 4 encodes."""
    changes = {"node2": {"steps": 1, "batch_size": 1}, "node3": {"images_at_a_time": 1}}
    succeeded(comfy, example("reconstruct.json", **changes))
    steps = comfy.progress[0][1]
    assert [total for _, total, _ in comfy.progress[steps:]] == [2, 2, 2, 2, 2]
    comfy.executor._cache.clear()

    def cancel(value, total, preview):
        if len(comfy.progress) == steps + finished:
            comfy.interrupt()

    comfy.on_progress = cancel
    outcome = comfy.run(example("reconstruct.json", **changes))
    assert (outcome.status, outcome.node) == ("interrupted", node)
    assert len(comfy.progress) == steps + finished


def test_a_button_pressed_before_the_node_stops_it(comfy):
    """Also where no step was reported yet."""
    comfy.run(classes())
    comfy.executor._cache.clear()
    comfy.on_progress = lambda *_: comfy.interrupt()
    outcome = comfy.run(classes(node2={"previews": 0, "batch_size": 1}))
    assert (outcome.status, outcome.node) == ("interrupted", "2")


def encode(file, model="owner/tiny"):
    prompt = classes(node1={"model": model})
    prompt["2"] = {"class_type": "LoadImage", "inputs": {"image": file}}
    prompt["5"] = {
        "class_type": "BitDanceEncode", "inputs": {"image": ["2", 0], "vae": ["1", 1]},
    }  # fmt: skip
    prompt["3"]["inputs"]["codes"] = ["5", 0]
    return prompt


def test_an_image_of_ones_own_is_encoded_and_decoded(comfy, pipeline):
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    Image.fromarray(pixels).save(comfy.base / "input/own.png")
    outcome = succeeded(comfy, encode("own.png"))
    images = torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255
    with torch.no_grad():
        expected = pipeline.model.vae(images * 2 - 1)[0]
    decoded = outcome.outputs["3"][0]
    error = decoded.permute(0, 3, 1, 2) - ((expected + 1) / 2).clamp(0, 1)
    assert float(error.abs().max()) <= 0.5 / 255 + 1e-4
    assert torch.equal(outcome.outputs["5"][0].packed, pipeline.encode(images))


REFUSED = {
    "an unknown class": (classes(node2={"classes": "boots"}), "2", "label: class must be 0 to 4"),
    "no class": (classes(node2={"classes": " \n"}), "2", "classes must have a name or number"),
}  # fmt: skip


@pytest.mark.parametrize("case", list(REFUSED))
def test_errors_name_the_node_and_the_input(comfy, case):
    prompt, node, words = REFUSED[case]
    outcome = comfy.run(copy.deepcopy(prompt))
    assert (outcome.status, outcome.node) == ("error", node)
    assert isinstance(outcome.error, ValueError)
    assert words in str(outcome.error)


def test_an_image_of_another_size_is_refused(comfy):
    Image.new("RGB", (9, 8)).save(comfy.base / "input/wide.png")
    outcome = comfy.run(encode("wide.png"))
    assert (outcome.status, outcome.node) == ("error", "5")
    assert str(outcome.error) == "images of this model are 8 x 8, got 9 x 8"


def test_a_prompt_of_a_size_that_the_model_cannot_draw(comfy):
    pytest.importorskip("tokenizers")
    outcome = comfy.run(example("emoji.json", node2={"width": 72}))
    assert (outcome.status, outcome.node) == ("error", "2")
    assert "width must be a multiple of" in str(outcome.error)


def test_bits_of_another_model_are_refused(comfy):
    prompt = classes()
    prompt["5"] = {
        "class_type": "BitDanceLoadClassModel",
        "inputs": {**prompt["1"]["inputs"], "model": "fashion"},
    }
    prompt["3"]["inputs"]["vae"] = ["5", 1]
    outcome = comfy.run(prompt)
    assert (outcome.status, outcome.node) == ("error", "3")
    assert str(outcome.error) == "images of this model are 32 x 32, got 8 x 8"


INVALID = {
    "a model that is not there": (classes(node1={"model": "gone"}), "1", "'gone' not in"),
    "a path": (classes(node1={"model": "../../secret"}), "1", "not in"),
    "a seed below 0": (classes(node2={"seed": -1}), "2", "out of range"),
    "no images at a time": (classes(node3={"images_at_a_time": 0}), "3", "out of range"),
    "another dtype": (classes(node1={"dtype": "int8"}), "1", "'int8' not in"),
    "a model of texts": (
        {**classes(), "1": example("emoji.json")["1"]}, "2", "not BITDANCE_CLASS_MODEL",
    ),
    "a hub id without owner": (classes(node1={"hub_id": "tiny"}), "1", "hub_id must be owner/name"),
    "a hub id that leads elsewhere": (
        classes(node1={"hub_id": "a/../b"}), "1", "hub_id must be owner/name",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", list(INVALID))
def test_invalid_workflows_are_refused_before_anything_runs(comfy, case):
    prompt, node, words = INVALID[case]
    with pytest.raises(PromptError) as error:
        comfy.run(copy.deepcopy(prompt))
    assert words in " ".join(error.value.args[0][node])


def test_a_hub_id_that_is_a_folder_here_is_refused(comfy, tmp_path, monkeypatch):
    (tmp_path / "own" / "er").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    load = comfy.nodes["BitDanceLoadClassModel"]
    assert "hub_id must be" in load.VALIDATE_INPUTS("own/er")
    with pytest.raises(ValueError, match="hub_id must be owner/name"):
        load().load("fashion", "auto", "default", "none", "own/er")


def test_a_model_of_the_hub_takes_the_place_of_the_other(comfy, tmp_path, monkeypatch, pipeline):
    folder = comfy.base / "models/bitdance/owner/tiny"
    hub = Hub(tmp_path / "cache", **{"some/model": folder}).install(monkeypatch)
    outcome = succeeded(comfy, classes(node1={"hub_id": "some/model"}))
    assert hub.downloaded(".safetensors")
    loaded = outcome.outputs["1"][0].model.state_dict()
    assert all(torch.equal(v, loaded[k]) for k, v in pipeline.model.state_dict().items())


def test_quantization_and_dtype_reach_the_model(comfy):
    settings = {"quantization": "int8_weight_only", "dtype": "bfloat16"}
    loaded = succeeded(comfy, classes(node1=settings)).outputs["1"][0]
    assert quantization_of(loaded.model) == "int8_weight_only"
    assert loaded.dtype == torch.bfloat16


def test_folders_of_models(comfy, tmp_path):
    """Of both kinds, in two folders, at two depths; other things are no models."""
    root = comfy.base / "models/bitdance"
    (root / "text").mkdir()
    (root / "text" / "config.json").write_text('{"model_type": "qwen3"}')
    (root / "three").mkdir()
    (root / "three" / "mainmodel.safetensors").write_bytes(b"")
    (root / "BitDance_B_1x.pt").write_bytes(b"")
    (root / "notes.txt").write_text("")
    (root / "broken").mkdir()
    (root / "broken" / "config.json").write_text("{")
    (root / ".git" / "x").mkdir(parents=True)
    (root / ".git" / "x" / "y.pt").write_bytes(b"")
    more = tmp_path / "more"
    (more / "owner" / "text").mkdir(parents=True)
    (more / "owner" / "text" / "model_index.json").write_text("{}")
    comfy.paths.add_model_folder_path("bitdance", str(more))
    comfy.paths.add_model_folder_path("bitdance", str(tmp_path / "gone"))
    types = {
        kind: comfy.nodes[f"BitDanceLoad{kind}Model"].INPUT_TYPES()["required"]["model"][0]
        for kind in ("Class", "Text")
    }
    of_other_tests = {"changing", "mine"}
    found = {k: [name for name in v if name not in of_other_tests] for k, v in types.items()}
    assert found["Text"] == ["emoji", "broken", "owner/text", "text", "three"]
    assert found["Class"] == ["fashion", "BitDance_B_1x.pt", "owner/tiny"]
    outcome = comfy.run(classes(node1={"model": "BitDance_B_1x.pt"}))
    assert (outcome.status, outcome.node) == ("error", "1")
    assert "BitDance_B_1x.pt" in str(outcome.error)


DAMAGED = {
    "something else": lambda path, data: path.write_bytes(b"no bits"),
    "cut off": lambda path, data: path.write_bytes(data[:-10]),
    "weights": lambda path, data: path.write_bytes(
        b"8\x00\x00\x00\x00\x00\x00\x00"
        + b'{"x":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}'.ljust(0x38)
        + b"\x00"
    ),
}


@pytest.mark.parametrize("case", list(DAMAGED))
def test_damaged_files_of_bits_are_refused(comfy, case):
    save = comfy.nodes["BitDanceSaveCodes"]
    codes = succeeded(comfy, classes()).outputs["2"][0]
    saved = save().save(codes, "mine")["ui"]["codes"][0]["filename"]
    data = (comfy.base / "output" / saved).read_bytes()
    path = comfy.base / "input" / "damaged.bits.safetensors"
    DAMAGED[case](path, data)
    load = comfy.nodes["BitDanceLoadCodes"]
    with pytest.raises(ValueError, match=r"damaged\.bits\.safetensors has no bits of images: "):
        load().load(path.name)
    path.write_bytes(data)
    (again,) = load().load(path.name)
    assert torch.equal(again.packed, codes.packed)
    assert again.sample_ids == codes.sample_ids
    before = load.IS_CHANGED(path.name)
    path.write_bytes(data + b" ")
    assert load.IS_CHANGED(path.name) != before
    path.unlink()
    assert "no such file" in load.VALIDATE_INPUTS(path.name)
    assert "no such file" in load.VALIDATE_INPUTS("../../nodes.py")
    assert not [p for p in (comfy.base / "output").iterdir() if p.name.startswith(".")]


def test_devices_and_dtypes_are_those_of_comfyui(comfy, monkeypatch):
    devices = comfy.module("devices")
    card = torch.device("cuda", 1)
    monkeypatch.setattr(comfy.management, "get_torch_device", lambda: card)
    assert devices.choose_device("default") == card
    assert devices.choose_device("cpu") == torch.device("cpu")
    assert devices.choose_dtype("auto", card) == "bfloat16"
    assert devices.choose_dtype("auto", torch.device("cpu")) == "float32"
    assert devices.choose_dtype("float16", card) == "float16"
    comfy.freed.clear()
    devices.make_room(torch.device("cpu"), 5e9)
    assert comfy.freed == []
    devices.make_room(card, 5e9)
    assert comfy.freed == [(6e9, card)]
