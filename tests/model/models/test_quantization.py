"""Layers in float8 and int8: what they compute, what is replaced, and what is refused."""

import copy

import pytest
import torch
from torch import nn

from bitdance import BitDancePipeline
from bitdance.models.class_conditional import BitDanceModel
from bitdance.models.quantization import (
    QUANTIZATIONS,
    Float8Linear,
    Int8Linear,
    is_quantized,
    quantization_of,
    quantize_blocks,
)
from bitdance.sampling.config import choose_plan, use_plans
from bitdance.sampling.flow_sampler import Schedule
from bitdance.sampling.head_runner import HeadRunner, PlainHead
from bitdance.sampling.weights import PackedLinear
from bitdance_kernels import dequantize_rows, quantize_rows, unpack_weight
from bitdance_kernels.testing import compare
from tests.model.helpers import golden_model
from tests.model.helpers.golden_cases import Case
from tests.model.helpers.tiny import HEADS, PACKABLE, tiny_head, tiny_patch, tiny_pipeline

EVERY = pytest.mark.parametrize("quantization", QUANTIZATIONS)
BLOCKS = ("layers.", "head.net.res_blocks.")


def _pipeline(quantization=None):
    pipeline = tiny_pipeline(**PACKABLE)
    return pipeline if quantization is None else pipeline.quantize(quantization)


def _rounded(pipeline, dtype):
    """A pipeline whose weights have the values of float8 or int8, in their own dtype."""
    with torch.no_grad():
        for block in pipeline._blocks:
            for layer in block.modules():
                if isinstance(layer, nn.Linear):
                    values = quantize_rows(layer.weight, dtype)
                    layer.weight.copy_(dequantize_rows(*values, layer.weight.dtype))
    return pipeline


def _bits(pipeline):
    return pipeline([0, 3, 1], seed=5, num_inference_steps=4, output_type="latent").images


def test_images_are_those_of_rounded_weights():
    """Bit for bit; and they are not those of the weights themselves."""
    original = _bits(_pipeline())
    for quantization, dtype in (
        ("fp8_weight_only", torch.float8_e4m3fn),
        ("int8_weight_only", torch.int8),
    ):
        expected = _bits(_rounded(_pipeline(), dtype))
        assert torch.equal(_bits(_pipeline(quantization)), expected)
        assert not torch.equal(original, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@torch.no_grad()
def test_an_int8_layer_multiplies_by_its_values_times_their_scales(dtype):
    layer = nn.Linear(48, 64).to(dtype)
    quantized, x = Int8Linear(layer), torch.randn(256, 48).to(dtype)
    values, scales = quantize_rows(layer.weight.detach(), torch.int8)
    matrix = dequantize_rows(values, scales, torch.float32)
    assert torch.equal(quantized.dequantized(torch.float32), matrix)
    assert torch.equal(quantized.dequantized(dtype), matrix.to(dtype))
    # C++ multiplies in float32; where nothing was compiled, the weight is rounded first.
    eager = nn.functional.linear(x, matrix.to(dtype), layer.bias)
    truth = nn.functional.linear(x.double(), matrix.double(), layer.bias.double())
    compare("staged", quantized(x), eager, truth, str(dtype))
    with torch.autocast("cpu", torch.bfloat16):
        assert quantized(x).dtype == torch.bfloat16


def test_int8_layers_take_no_more_memory_than_their_values_and_scales():
    pipeline = _pipeline("int8_weight_only")
    for name, tensor in pipeline.model.state_dict().items():
        if name.startswith(BLOCKS) and tensor.dtype == torch.int8:
            layer = pipeline.model.get_submodule(name.removesuffix(".weight"))
            assert tensor.numel() == layer.out_features * (layer.in_features + 4)


def test_weights_that_are_not_finite_are_refused_for_int8():
    for bad in (torch.nan, torch.inf):
        pipeline = _pipeline()
        with torch.no_grad():
            pipeline.model.layers[-1].feed_forward.w2.weight[3, 4] = bad
        with pytest.raises(ValueError, match=r"quantize: weights must be finite for 'int8_w"):
            pipeline.quantize("int8_weight_only")
        assert not is_quantized(pipeline.model)


def test_inputs_are_rounded_too():
    both, weights = _bits(_pipeline("fp8")), _bits(_pipeline("fp8_weight_only"))
    assert not torch.equal(both, weights)


@EVERY
def test_an_image_has_the_bits_that_it_has_alone(quantization):
    pipeline = _pipeline(quantization)
    together = _bits(pipeline)
    alone = pipeline([3], seed=5, sample_ids=[1], num_inference_steps=4, output_type="latent")
    assert torch.equal(alone.images[0], together[1])


@EVERY
@pytest.mark.parametrize("architecture", HEADS)
@torch.no_grad()
def test_an_evaluation_is_that_of_the_network(quantization, architecture):
    network, patch = tiny_head(architecture, ch_target=16).net, tiny_patch(architecture)
    quantize_blocks("test", [network.res_blocks], quantization)
    assert quantization_of(network) == quantization
    schedule = Schedule.of(network, 5)
    runner = HeadRunner(network, 6, patch, schedule.times, torch.float32)
    runner.load()
    plain = PlainHead(network, schedule.times)
    shape = (6,) if patch is None else (6, patch)
    cond, x = torch.randn(*shape, 24), torch.randn(*shape, 16)
    for head in (runner, plain):
        head.begin(cond)
    for i in (0, 5):
        actual, expected = runner.predict(i, x), plain.predict(i, x)
        if quantization == "fp8":  # an input near a tie may be rounded to either side
            assert (actual - expected).norm() <= 0.05 * expected.norm()
        else:
            torch.testing.assert_close(actual, expected)


@EVERY
def test_blocks_are_replaced_and_nothing_else(quantization):
    before, pipeline = _pipeline().model.state_dict(), _pipeline(quantization)
    after = pipeline.model.state_dict()
    for name, tensor in before.items():
        of_block = name.startswith(BLOCKS) and tensor.dim() == 2
        values = torch.int8 if quantization == "int8_weight_only" else torch.uint8
        assert after[name].dtype == (values if of_block else tensor.dtype), name
        assert of_block or torch.equal(after[name], tensor)
    assert is_quantized(pipeline.model)


@pytest.mark.parametrize("quantization", ["fp8_weight_only", "int8_weight_only"])
def test_casts_change_no_weight(quantization):
    pipeline = _pipeline(quantization)
    layer = pipeline.model.layers[0].attention.wo
    before = layer.dequantized(torch.float64)
    copied = copy.deepcopy(pipeline).to(torch.float16)
    moved = copied.model.layers[0].attention.wo
    assert torch.equal(moved.dequantized(torch.float64), before)
    assert copied.model.head.net.res_blocks[0].w1.bias.dtype == torch.float16
    assert _bits(copied).shape == _bits(pipeline).shape


@EVERY
def test_a_loaded_model_is_that_which_is_quantized_later(quantization, tmp_path):
    _pipeline().save_pretrained(tmp_path)
    loaded = BitDancePipeline.from_pretrained(tmp_path, quantization=quantization)
    loaded.set_progress_bar_config(disable=True)
    assert torch.equal(_bits(loaded), _bits(_pipeline(quantization)))


def test_quantizing_applies_to_the_next_call():
    pipeline = _pipeline()
    before = _bits(pipeline)
    pipeline.quantize("fp8_weight_only")
    assert not torch.equal(_bits(pipeline), before)


def test_bad_arguments_are_refused(tmp_path):
    pipeline = _pipeline()
    pipeline.save_pretrained(tmp_path)
    names = "fp8, fp8_weight_only, int8_weight_only"
    with pytest.raises(
        ValueError, match=rf"quantize: quantization must be one of {names}, got 'a'"
    ):
        pipeline.quantize("a")
    with pytest.raises(ValueError, match=rf"from_pretrained: quantization must be one of {names}"):
        BitDancePipeline.from_pretrained(tmp_path / "none", quantization="int8")
    pipeline.quantize("fp8")
    with pytest.raises(ValueError, match="quantize: model must not be quantized"):
        pipeline.quantize("fp8")
    with pytest.raises(ValueError, match="save_pretrained: model must not be quantized"):
        pipeline.save_pretrained(tmp_path)


def test_widths_that_do_not_fit_are_refused_before_anything_is_replaced():
    pipeline = tiny_pipeline(diff_dim=72)
    with pytest.raises(ValueError, match=r"quantization must be None .* such as 216, got"):
        pipeline.quantize("fp8")
    assert not is_quantized(pipeline.model)


@EVERY
@pytest.mark.parametrize("plan", ["packed", "persistent"])
def test_plans_that_cannot_run_quantized_weights_are_refused(plan, quantization):
    arguments = ("head", 4, (64,), torch.float32, torch.device("cpu"))
    named = {"architecture": "mlp", "quantization": quantization}
    assert choose_plan(*arguments, **named) == "library"
    if quantization == "fp8_weight_only" and plan == "packed":
        assert choose_plan(*arguments, **named, plan=plan) == plan
        return
    what = {"fp8": "inputs in float8", "int8_weight_only": "weights in int8"}
    what = what.get(quantization, "weights in float8")
    with pytest.raises(ValueError, match=f"plan must be .* for {what}, got '{plan}'"):
        choose_plan(*arguments, **named, plan=plan)
    with use_plans(head=plan), pytest.raises(ValueError, match=f"for {what}"):
        _bits(_pipeline(quantization))


def test_packed_weights_stay_in_float8():
    """Images by products with packed weights; its norms round elsewhere, and bits may differ."""
    pipeline = _pipeline("fp8_weight_only")
    expected = _bits(pipeline)
    with use_plans(head="packed", trunk="packed"):
        found = _bits(pipeline)
    assert (found == expected).float().mean() > 0.98
    packed = PackedLinear([pipeline.model.layers[0].feed_forward.w1], torch.float16, "swiglu")
    packed.load()
    assert packed.weight.dtype == torch.uint8
    rounded = pipeline.model.layers[0].feed_forward.w1.dequantized(torch.float32)
    assert torch.equal(unpack_weight(packed.weight, "swiglu"), rounded)


@EVERY
@pytest.mark.parametrize(
    "name", ["d3_bitdance_1x", "e3_bitdance_p4_patch", "e4_bitdance_p16_patch"]
)
def test_golden_cases_keep_most_bits(quantization, name):
    """Weights are random, so predictions are near 0, and a bit that flips changes the rest."""
    case = Case.load(name)
    model = BitDanceModel(golden_model.model_config(case))
    case.load_into(model)
    BitDancePipeline(model).quantize(quantization)
    equal = []
    for settings in case.params["samples"]:
        tokens = f"out.sample.{settings['name']}.tokens"
        found = golden_model._sample(case, model.eval(), settings)[tokens]
        equal.append((found == case[tokens]).flatten())
    assert 0.6 < torch.cat(equal).double().mean() < 0.95


def test_gradients_are_refused():
    layer = Float8Linear(nn.Linear(16, 32), quantize_inputs=False)
    with pytest.raises(RuntimeError, match="linear_fp8"):
        layer(torch.zeros(1, 16, requires_grad=True))
