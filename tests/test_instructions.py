"""What is counted in machine code to bound integer work, and that the table holds."""

import json

import pytest

from benchmarks import bounds
from benchmarks.shapes import all_benches
from tests import instructions, offline_sm90, sass
from tests.test_offline_sm90 import needs_module

SAMPLE = """
    Function : sample
 /*0000*/ MOV R1, 0x1 ;
 /*0010*/ IADD3 R0, R0, 0x1, RZ ;
 /*0020*/ LOP3.LUT R2, R0, R1, RZ, 0x3c, !PT ;
 /*0030*/ IMAD.WIDE.U32 R2, R0, R1, RZ ;
 /*0040*/ IMAD.MOV.U32 R4, RZ, RZ, R2 ;
 /*0050*/ STG.E.64 desc[UR4][R2.64], R4 ;
 /*0060*/ @P0 BRA 0x20 ;
 /*0070*/ STG.E.U8 desc[UR4][R2.64], R4 ;
 /*0080*/ @P1 BRA 0x70 ;
 /*0090*/ @P2 BRA 0x10 ;
 /*00a0*/ BRA 0xb0 ;
 /*00b0*/ EXIT ;
"""


def _sample(items):
    (code,) = sass.parse(SAMPLE).values()
    return instructions.count(code, instructions.Kernel("", "sample", items))


def test_the_smallest_loop_with_most_of_the_work_is_counted():
    """Not the loop around it, nor the one for what is left over."""
    (code,) = sass.parse(SAMPLE).values()
    assert [len(loop) for loop in instructions.loops(code)] == [5, 2, 9]
    found = _sample(instructions._stored)
    expected = {"issued": 5, "integer": 1, "multiplied": 1, "population counts": 0}
    assert found == {kind: number / 8 for kind, number in expected.items()}
    with pytest.raises(ValueError, match="sample: no loop does the work"):
        _sample(instructions._counted)


def test_kinds_are_those_that_have_a_rate():
    assert instructions._KINDS.keys() | {"issued"} == bounds.LANES.keys()
    for op, counts in bounds.counts().items():
        assert counts.keys() == bounds.LANES.keys()
        assert all(shape.items > 0 for shape in all_benches()[op].timings)


@needs_module
def test_the_table_is_what_is_built():
    """After a change on purpose: python -m tests.instructions."""
    table = json.loads(bounds.COUNTS.read_text())
    found = {op: instructions.of_op(op) for op in instructions.KERNELS}
    assert table["ops"].keys() == found.keys()
    for counts in found.values():
        assert counts["issued"] >= max(v for k, v in counts.items() if k != "issued")
    if table["nvcc"] == offline_sm90.nvcc_version():  # another compiler issues others
        assert table["ops"] == found
