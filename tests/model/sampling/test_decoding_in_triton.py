"""The official model's numbers, with rotation and decoding by the Triton kernels."""

import pytest

from bitdance_kernels._dispatch.op import REGISTRY
from bitdance_kernels.testing import only_backend
from tests.model.helpers import golden_cases
from tests.model.helpers.golden_cases import RUNNERS, Case, kind_of, mismatches

golden_cases.load_runners()
OPS = ("rope", "rope_backward", "rope_append", "block_decode_attention")

pytestmark = pytest.mark.skipif(
    REGISTRY["rope"].unavailable("triton") is not None, reason="Triton is not installed"
)


@pytest.mark.parametrize(
    "name",
    [
        "d1_block_causal_rope",
        "e1_block_parallel_p4",
        pytest.param("e3_bitdance_p4_patch", marks=pytest.mark.nightly),
    ],
)
def test_golden(name):
    case = Case.load(name)
    with only_backend("triton", OPS):
        wrong = mismatches(case, RUNNERS[kind_of(name)](case))
    assert not wrong, "\n".join(wrong)
