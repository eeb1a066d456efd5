"""Weights in float8 with scales, by every ending that such files have."""

import pytest
import torch

from bitdance.io.files import CheckpointError
from bitdance.io.scaled_weights import rescale, split_scales

WEIGHT = torch.tensor([[1.5, -448.0], [0.25, 3.0]]).to(torch.float8_e4m3fn)


@pytest.mark.parametrize("name", ["weight_scale", "scale_weight", "weight.scale", "weight_scales"])
@pytest.mark.parametrize("shape", [(), (1,), (2,), (2, 1)])
def test_a_weight_times_its_scale_is_rounded_once(name, shape):
    scale = torch.tensor([0.3, 0.7])[: max(1, shape[0] if shape else 1)].reshape(shape)
    found, scales = split_scales({"a.weight": WEIGHT, f"a.{name}": scale}, "x")
    assert found.keys() == scales.keys() == {"a.weight"}
    wide = WEIGHT.double() * scale.double().reshape(-1, 1)
    made = rescale(found["a.weight"], scales["a.weight"], torch.bfloat16)
    assert torch.equal(made, wide.float().bfloat16())


def test_what_belongs_to_inputs_and_formats_is_left_out():
    stored = {
        "a.weight": WEIGHT, "a.input_scale": torch.ones(1), "a.scale_input": torch.ones(1),
        "a.comfy_quant": torch.zeros(9, dtype=torch.uint8), "scaled_fp8": torch.zeros(0),
    }  # fmt: skip
    assert split_scales(stored, "x") == ({"a.weight": WEIGHT}, {})
    again = rescale(WEIGHT, None, torch.float32)
    assert torch.equal(again, WEIGHT.float())
    assert rescale(again, None, torch.float32).data_ptr() != again.data_ptr()


@pytest.mark.parametrize(
    ("scales", "message"),
    [
        ({"b.weight_scale": torch.ones(1)}, r"x has b\.weight_scale, but not b\.weight"),
        ({"a.weight_scale": torch.ones(3)}, r"must be a number, or 2 of them, .* \[3\]"),
        ({"a.weight_scale": torch.ones(1, 2)}, r"must be a number, or 2 of them, .* \[1, 2\]"),
        ({"a.weight_scale": torch.ones(1, dtype=torch.int32)}, "got torch.int32"),
        ({"a.weight_scale": torch.tensor(torch.inf)}, "must be finite"),
        (
            {"a.weight_scale": torch.ones(1), "a.scale_weight": torch.ones(1)},
            r"x has two scales of a\.weight",
        ),
    ],
)
def test_scales_that_do_not_fit_are_refused(scales, message):
    with pytest.raises(CheckpointError, match=message):
        split_scales({"a.weight": WEIGHT, **scales}, "x")
