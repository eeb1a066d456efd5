"""Each property on the cases of the profile, and that a broken op fails one."""

import pytest
import torch
from hypothesis import strategies as st

from bitdance_kernels.binary._shared import bits as reference_bits
from tests.profiles import cases
from tests.reliability.properties import PROMISES, PROPERTIES
from tests.reliability.properties._for_all import for_all
from tests.reliability.properties.bits import unpacking_inverts_packing


@pytest.mark.parametrize("each", PROPERTIES, ids=lambda each: each.name.replace(" ", "-"))
def test_holds(each):
    assert each.run(cases()) == cases()


def test_every_promise_can_be_kept():
    assert len(PROPERTIES) >= PROMISES[0].goal
    assert len({each.name for each in PROPERTIES}) == len(PROPERTIES)


def test_a_fault_is_found_and_named(monkeypatch):
    """Bits in the other order within a byte."""
    places = reference_bits.places
    monkeypatch.setattr(reference_bits, "pack", lambda bits: (
        bits.unflatten(-1, (-1, 8)) * places(bits.device).flip(0)
    ).sum(-1, dtype=torch.int32).to(torch.uint8))  # fmt: skip
    with pytest.raises(AssertionError, match=r"(?s)unpacking inverts packing, seed 3: .*place="):
        unpacking_inverts_packing.run(60, seed=3)


def test_cases_are_those_of_the_seed():
    seen = {}

    def drawn(seed):
        @for_all(number=st.integers(0, 2**32))
        def any_number(number):
            seen.setdefault(seed, []).append(number)

        assert any_number.run(20, seed=seed % 10) == 20
        return seen[seed]

    assert drawn(1) == drawn(11)
    assert drawn(2) != drawn(1)
