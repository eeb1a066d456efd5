"""Every 16-bit pattern, width and small mask; of float32 those around the borders."""

import pytest
import torch

from bitdance_kernels.binary._shared import bits as reference_bits
from tests.reliability import exhaustive


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_every_pattern_of_16_bits(dtype):
    assert exhaustive.check_halves(dtype) == 2**16


def test_every_pair_of_bytes():
    assert exhaustive.check_bytes() == 2**16


def test_every_width():
    assert exhaustive.check_widths() == exhaustive.WIDTHS


def test_every_small_mask():
    assert exhaustive.check_masks() == exhaustive.MASKS


def test_floats_around_the_borders():
    firsts = exhaustive.borders(2**12)
    assert exhaustive.check_floats(firsts, 2**12) == 2**12 * len(firsts)
    assert firsts[0] == -(2**31)
    assert firsts[-1] == 2**31 - 2**12


@pytest.mark.parametrize("rule", ["positive or zero", "by the sign bit", "NaN is 1"])
def test_another_rule_is_found(monkeypatch, rule):
    """The reference reads numbers otherwise; the rule of this suite does not come from it."""
    wrong = {
        "positive or zero": lambda p: (p >= 0) & (p <= 0x7F800000),
        "by the sign bit": lambda p: p >= 0,
        "NaN is 1": lambda p: p > 0,
    }[rule]
    monkeypatch.setattr(exhaustive, "_positive", lambda patterns, dtype: wrong(patterns))
    with pytest.raises(AssertionError, match=r"pack_signs .*result 0 differs"):
        exhaustive.check_floats(exhaustive.borders(2**12), 2**12)


def test_a_fault_of_one_backend_is_found(monkeypatch):
    pack = reference_bits.pack
    monkeypatch.setattr(reference_bits, "pack", lambda ones: pack(ones) & 127)
    with pytest.raises(AssertionError, match=r"pack_signs reference .*width 1: result 0"):
        exhaustive.check_widths()
