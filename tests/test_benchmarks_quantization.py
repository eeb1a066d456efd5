"""What float8 and int8 change, as the benchmark counts it."""

import torch

from benchmarks import tables
from benchmarks.model import quantization
from tests.model.helpers.tiny import PACKABLE, tiny_pipeline


def _pipeline(way):
    pipeline = tiny_pipeline(**PACKABLE)
    pipeline.num_inference_steps = 3
    return pipeline if way == "float32" else pipeline.quantize(way)


@torch.no_grad()
def test_bits_are_compared_step_by_step_and_at_the_end():
    original = _pipeline("float32")
    steps = quantization.tokens_of_steps(original, 3)
    image = quantization.sampled(original, 3, seed=1)
    same = quantization.equal_bits(_pipeline("float32"), steps, image)
    assert set(same.values()) == {1.0}
    changed = quantization.equal_bits(_pipeline("fp8"), steps, image)
    least, mean = (changed[f"equal bits of {x}"] for x in ("the step with fewest", "a step"))
    assert 0.5 < least <= mean < 1
    # A bit that is given by hand is a bit that the next steps see.
    others = [-tokens for tokens in steps]
    assert (
        quantization.equal_bits(_pipeline("float32"), others, image)["equal bits of a step"] < 0.9
    )


def test_memory_is_a_byte_an_element_and_four_a_row():
    weights = [
        layer.weight
        for block in _pipeline("float32")._blocks
        for layer in block.modules()
        if isinstance(layer, torch.nn.Linear)
    ]
    saved = sum(3 * weight.numel() - 4 * len(weight) for weight in weights) / 1e6
    for way in ("fp8", "int8_weight_only"):
        whole, rounded = (quantization.megabytes(_pipeline(w)) for w in ("float32", way))
        assert abs(whole - rounded - saved) < 1e-9


def test_times_are_relative_to_those_of_the_first_way():
    pipelines = {way: _pipeline(way) for way in ("float32", "int8_weight_only")}
    found = quantization.relative_times(pipelines, 2)
    assert found["float32"] == 1
    assert found["int8_weight_only"] > 0


def test_ways_are_rows_of_a_table():
    ways = {"float32": {"MB of blocks": 13.9, "equal images": 1.0}, "fp8": {"MB of blocks": 3.57}}
    table = tables.quantization({"quantization": {"ways": ways}})
    assert table.splitlines()[2:] == ["| float32 | 13.9 | 100.00% |", "| fp8 | 3.6 |  |"]
