"""flip_bits and flip_signs in CUDA C++: device code on the CPU, and the machine code as built."""

import pytest
import torch

from bitdance_kernels._shared import native
from tests import instructions, sass
from tests.emulated import build, drivers, needs_compiler
from tests.launches import NVCC, objects
from tests.ops.test_flip_bits import expected_flips

KEY = torch.tensor([2**40 + 7, 5])


@pytest.fixture(scope="module")
def device_code(tmp_path_factory):
    return build("flip_bits", tmp_path_factory.mktemp("flip_bits"))


@needs_compiler
@pytest.mark.parametrize("count", [1, 7, 8, 9, 2047, 2048, 2049, 4103])
@pytest.mark.parametrize("skip", [0, 3, 8])
def test_tails_and_pointers_of_any_alignment(device_code, count, skip):
    """Nothing beside the bytes is written, and blocks may go on to a second round."""
    packed = torch.randint(256, (skip + count,), dtype=torch.uint8)[skip:]
    memory = torch.full((count + 16,), 77, dtype=torch.uint8)
    flipped = memory[8 : 8 + count]
    for threshold in (0, 2**14, 2**15):
        drivers.flip_bits(device_code, packed, KEY, threshold, 1, flipped)
        assert torch.equal(flipped, packed ^ expected_flips(0, count, 2**40 + 7, 5, threshold))
        assert (memory[:8] == 77).all()
        assert (memory[8 + count :] == 77).all()


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("count", [300, 2100])
def test_signs_take_the_same_flips(device_code, dtype, count):
    """In one round of the blocks, or in three, of which a thread takes two at a time."""
    x = torch.randn(8 * count, dtype=dtype)
    y = drivers.flip_signs(device_code, x, KEY, 2**14, 2)
    flips = expected_flips(0, count, 2**40 + 7, 5, 2**14)
    bits = (flips[:, None] >> torch.arange(8)) & 1
    assert torch.equal(y, torch.where(bits.flatten() == 1, -x, x))


@pytest.mark.skipif(
    NVCC is None or native.cuda.unavailable() is not None, reason="needs nvcc and the CUDA module"
)
def test_instructions_of_a_byte():
    """102.5 are those of one byte at a time, whose round keys are added up for each."""
    assert instructions.of_op("flip_bits")["issued"] < 0.7 * 102.5
    found = {}
    for path in objects("csrc/cuda/flip_bits/flip_bits.cu.o"):
        for name, code in sass.kernels(path, "sm_90").items():
            found[sass.short_name(name)] = [i.opcode for i in code]
    opcodes = found["flip_bits_kernel<true>"]
    assert any(opcode.startswith("LDG.E.64") for opcode in opcodes)
    assert "STG.E.64" in opcodes
    assert sum(opcode.startswith("VIADD") for opcode in opcodes) < 10
