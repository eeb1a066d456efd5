"""Weights that are rounded and moved one at a time while a model is loaded."""

import dataclasses
from functools import partial

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import _disable_current_modes

from bitdance import BitDancePipeline, BitDanceT2IPipeline
from bitdance.io import weights
from bitdance.io.files import CheckpointError
from bitdance.models.live_memory import LiveMemory
from bitdance.models.loading.meta_device import build_on_meta
from bitdance.models.quantization import (
    QUANTIZATIONS,
    Float8Linear,
    quantization_of,
    quantized_from_file,
)
from bitdance.models.streamed_weights import stream_weights
from bitdance_kernels import dequantize_rows
from tests.model.helpers.releases import LLM, write_diffusers, write_flat, write_three_files
from tests.model.helpers.tiny import PACKABLE, tiny_model, tiny_pipeline
from tests.model.models.test_text_to_image import HEAD, tiny
from tests.model.pipelines.test_text_to_image import SIZE, Words

load = partial(BitDanceT2IPipeline.from_pretrained, tokenizer=Words())


def wide(width=32, layers=2):
    """A model whose layers can be quantized."""
    llm = dataclasses.replace(
        LLM, hidden_size=width, intermediate_size=3 * width, num_hidden_layers=layers,
        head_dim=width // 4,
    )  # fmt: skip
    head = dataclasses.replace(HEAD, ch_cond=width, ch_latent=width)
    return tiny(llm=llm, head=head)


def size(module):
    return sum(t.nbytes for t in (*module.parameters(), *module.buffers()))


class Counted(LiveMemory):
    """Counts tensors that have values."""

    def _remember(self, id, storage, size):
        super()._remember(id, storage, 0 if storage.device.type == "meta" else size)


def counted(call):
    """The result of a call, and the largest number of bytes of the tensors it has made."""
    with Counted() as memory:
        result = call()
    return result, memory.peak


@pytest.fixture
def mapped(monkeypatch):
    """Tensors of files, which are mapped into memory, are not counted."""
    read = weights.read_tensors

    def uncounted(path):
        with _disable_current_modes():
            return read(path)

    monkeypatch.setattr(weights, "read_tensors", uncounted)


@pytest.mark.parametrize("quantization", [None, *QUANTIZATIONS])
@pytest.mark.usefixtures("mapped")
def test_beside_the_model_there_is_one_layer_in_memory(tmp_path, quantization):
    model = wide(96, layers=6)
    folder = write_flat(tmp_path / "model", model)
    largest = max(t.nbytes for t in model.state_dict().values())
    loaded, peak = counted(lambda: load(folder, quantization=quantization))
    assert quantization_of(loaded.model) == quantization
    kept = size(loaded.model)
    assert kept <= peak <= kept + 4 * largest
    if quantization is not None:
        assert peak < size(model) / 2


def test_quantizing_later_frees_each_layer_before_the_next():
    pipeline = tiny_pipeline(**PACKABLE, n_layer=12)
    largest = max(p.nbytes for p in pipeline.model.layers.parameters())
    _, peak = counted(lambda: pipeline.quantize("fp8_weight_only"))
    rounded = sum(b.nbytes for blocks in pipeline._blocks for b in blocks.buffers())
    assert peak <= rounded + 4 * largest


@pytest.mark.parametrize("write", [write_flat, partial(write_diffusers, shards=2)])
@pytest.mark.parametrize("quantization", QUANTIZATIONS)
def test_a_model_is_that_which_is_quantized_after_it_was_loaded(tmp_path, write, quantization):
    folder = write(tmp_path / "model", wide())
    for dtype in ("float32", "bfloat16"):
        later = load(folder, dtype=dtype).quantize(quantization).model.state_dict()
        found = load(folder, dtype=dtype, quantization=quantization).model.state_dict()
        assert found.keys() == later.keys()
        assert all(torch.equal(found[name], later[name]) for name in later)


@pytest.mark.parametrize("bare", [False, True])
def test_float8_files_stay_as_they_are(tmp_path, bare):
    """With a scale for each row, or for a weight; images are those of the values in float32."""
    folder, meant = write_three_files(tmp_path / "model", wide(), bare=bare)
    call = {**SIZE, "num_inference_steps": 2, "seed": 3, "output_type": "latent"}
    expected = load(folder)("a fox", **call).images
    kept = load(folder, quantization="fp8_weight_only")
    assert torch.equal(kept("a fox", **call).images, expected)
    for blocks in kept._blocks:
        for layer in blocks.modules():
            assert not isinstance(layer, nn.Linear)
    name = "llm_model.model.layers.0.mlp.up_proj"
    layer = kept.model.get_submodule(name)
    assert torch.equal(layer.dequantized(torch.float32), meant[f"{name}.weight"])
    # Rounded to float8 a second time, values change where the scale is no power of two.
    again = load(folder).quantize("fp8_weight_only").model.get_submodule(name)
    assert torch.equal(again.dequantized(torch.float32), meant[f"{name}.weight"]) != bare
    rounded = load(folder, quantization="int8_weight_only")
    assert quantization_of(rounded.model) == "int8_weight_only"


def test_a_float8_weight_without_a_scale_is_its_values():
    weight = torch.tensor([[1.5, -448.0], [0.25, 3.0]]).to(torch.float8_e4m3fn)
    layer = quantized_from_file(nn.Linear(2, 2), weight, None, "fp8")
    assert isinstance(layer, Float8Linear)
    assert layer.quantize_inputs
    assert torch.equal(layer.dequantized(torch.float32), weight.float())
    other = quantized_from_file(
        nn.Linear(2, 2), weight.float().to(torch.float8_e5m2), torch.tensor(0.3), "fp8_weight_only"
    )
    values = weight.float().to(torch.float8_e5m2).float() * 0.3
    expected = Float8Linear(_layer(values), quantize_inputs=False)
    assert torch.equal(other.weight, expected.weight)
    assert torch.equal(dequantize_rows(other.weight, other.scale, torch.float32)[0, 0:1] > 0,
                       torch.tensor([True]))  # fmt: skip


def _layer(weight):
    layer = nn.Linear(*reversed(weight.shape), bias=False)
    layer.weight = nn.Parameter(weight)
    return layer


def test_what_cannot_be_quantized_is_refused_before_weights_are_read(tmp_path, monkeypatch):
    folder = write_flat(tmp_path / "model", tiny())
    monkeypatch.setattr("bitdance.pipelines.release.stream_weights", None)
    with pytest.raises(ValueError, match=r"from_pretrained: quantization must be None .* as 24"):
        load(folder, quantization="fp8")


def test_a_weight_that_overflows_is_refused_for_int8(tmp_path):
    pipeline = tiny_pipeline(**PACKABLE)
    with torch.no_grad():
        pipeline.model.layers[1].feed_forward.w2.weight[3, 4] = 1e30
    pipeline.save_pretrained(tmp_path)
    again = partial(BitDancePipeline.from_pretrained, tmp_path, quantization="int8_weight_only")
    assert quantization_of(again().model) == "int8_weight_only"
    with pytest.raises(ValueError, match="from_pretrained: weights must be finite for 'int8"):
        again(dtype="float16")


def test_tensors_that_do_not_fit_change_nothing():
    model = tiny_model()
    bare = build_on_meta(lambda: type(model)(model.config), "a test")
    state = dict(model.state_dict())
    state["norm.weight"] = state["norm.weight"][:3]
    with pytest.raises(CheckpointError, match=r"norm\.weight"):
        stream_weights(bare, state, "a test")
    assert all(tensor.is_meta for tensor in bare.state_dict().values())


def test_parameters_keep_whether_they_need_gradients():
    model = tiny_model()
    bare = build_on_meta(lambda: type(model)(model.config), "a test")
    stream_weights(bare, dict(model.state_dict()), "a test")
    expected = {name: p.requires_grad for name, p in model.named_parameters()}
    assert {name: p.requires_grad for name, p in bare.named_parameters()} == expected
    assert all(
        torch.equal(a, b) for a, b in zip(bare.parameters(), model.parameters(), strict=True)
    )
