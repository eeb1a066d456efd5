"""Exact integers of any type are accepted, and other values refused with a clear error."""

import decimal
import re

import numpy as np
import pytest
import torch

from bitdance.io.validation import brief, exact_int


@pytest.mark.parametrize(
    ("value", "number"),
    [
        (5, 5),
        (-3, -3),
        (3.0, 3),
        (1e4, 10000),
        (-0.0, 0),
        (2**64 - 1, 2**64 - 1),
        (np.int8(-7), -7),
        (np.uint64(2**64 - 1), 2**64 - 1),
        (np.float64(3), 3),
        (np.float16(2048), 2048),
        (np.array(9), 9),
        (np.array(9.0), 9),
        (torch.tensor(4), 4),
        (torch.tensor(4, dtype=torch.uint8), 4),
        (torch.tensor(4.0), 4),
    ],
    ids=repr,
)
def test_exact_integers_of_any_type_are_accepted(value, number):
    got = exact_int("f", "n", value)
    assert got == number
    assert type(got) is int


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (True, TypeError),
        (np.bool_(True), TypeError),
        (torch.tensor(True), TypeError),
        ("5", TypeError),
        (b"5", TypeError),
        (None, TypeError),
        ([5], TypeError),
        (np.array([5]), TypeError),
        (torch.tensor([5]), TypeError),
        (5j, TypeError),
        (torch.tensor(5j), TypeError),
        (decimal.Decimal("5.5"), TypeError),
        (np.timedelta64(5, "ns"), TypeError),
        (torch.empty((), device="meta"), TypeError),
        (2.5, ValueError),
        (np.float32(2.5), ValueError),
        (torch.tensor(2.5), ValueError),
        (float("nan"), ValueError),
        (float("inf"), ValueError),
        (np.array(np.nan), ValueError),
    ],
    ids=repr,
)
def test_other_values_are_refused_in_one_line_with_the_value(value, kind):
    with pytest.raises(kind) as caught:
        exact_int("f", "n", value)
    assert str(caught.value) == f"f: n must be an integer, got {brief(value)}"
    assert type(caught.value) is kind


@pytest.mark.parametrize(
    ("value", "least", "most", "wanted"),
    [
        (0, 1, None, "an integer of at least 1"),
        (5, None, 4, "an integer of at most 4"),
        (-1, 0, 9, "an integer from 0 to 9"),
        (2**64, 0, 2**64 - 1, "an integer from 0 to 2^64 - 1"),
        (2.5, 0, 9, "an integer from 0 to 9"),
    ],
)
def test_the_error_names_the_range(value, least, most, wanted):
    message = re.escape(f"f: n must be {wanted}, got {value!r}")
    with pytest.raises(ValueError, match=f"^{message}$"):
        exact_int("f", "n", value, least, most)
    for end in (least, most):
        assert end is None or exact_int("f", "n", end, least, most) == end


def test_a_brief_value_is_one_short_line():
    assert brief("a\nb") == r"'a\nb'"
    assert brief(torch.zeros(3, 3)).startswith("tensor([[0., 0., 0.], [0.")
    assert len(brief(torch.zeros(50, 50))) == 100
    assert brief(10**5000) == "a value of type int"
