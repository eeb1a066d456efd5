"""Reading machine code: small kernels whose begin is right, or wrong in one known way."""

import os
import re
import runpy
import shutil
import subprocess
from pathlib import Path

import pytest

from tests import sass

ROOT = Path(__file__).parent.parent
NVCC = shutil.which(os.environ.get("NVCC", "nvcc"))
ARCHS = ("sm_90", "sm_100")
SAMPLES = "tests/sass/samples_sm90.cu"
LOADS = 4  # of weights, in every sample
needs_nvcc = pytest.mark.skipif(NVCC is None, reason="nvcc is not installed")


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    """An object with the samples, compiled as a source of that name is."""
    target = tmp_path_factory.mktemp("sass") / "samples.o"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BITDANCE_CUDA_ARCHS", " ".join(arch.removeprefix("sm_") for arch in ARCHS))
        flags = runpy.run_path(str(ROOT / "setup.py"))["flags"](SAMPLES)
    command = [NVCC, *flags, f"-I{ROOT / 'csrc'}", f"-I{ROOT / 'csrc/include'}"]
    subprocess.run([*command, "-c", SAMPLES, "-o", target], cwd=ROOT, check=True)
    return target


WRONG = {
    "right": [],
    "right_with_branches": [],
    "loads_late": ["0 loads of weights before the wait, not 4"],
    "stores_early": ["writes before the wait: STG.E.128"],
    "adds_early": ["writes before the wait: RED"],
    "never_waits": ["it never waits for the kernel before it"],
    "waits_at_times": ["writes before the wait: STG.E.128"],
}


@needs_nvcc
@pytest.mark.parametrize("arch", ARCHS)
def test_each_fault_is_told_from_a_right_kernel(arch, samples):
    found = {sass.short_name(n): code for n, code in sass.kernels(samples, arch).items()}
    assert set(found) == set(WRONG)
    for name, code in found.items():
        faults = sass.faults(code, LOADS)
        assert len(faults) == len(WRONG[name]), (name, faults)
        for fault, expected in zip(faults, WRONG[name], strict=True):
            assert fault.startswith(expected), name


@needs_nvcc
@pytest.mark.parametrize("arch", ARCHS)
def test_resources_are_those_of_the_kernel(arch, samples):
    found = {sass.short_name(n): used for n, used in sass.resources(samples, arch).items()}
    assert set(found) == set(WRONG)
    assert found["right"].max_threads == 64
    assert found["loads_late"].max_threads == 0
    assert found["right_with_branches"].shared == 32 * 16 + 1024
    assert found["right"].shared == 0
    for used in found.values():
        assert 16 < used.registers < 64
        assert used.spilled == 0


@needs_nvcc
def test_names_are_without_namespaces_and_parameters():
    mangled = "_ZN3bdk13skinny_kernelI6__halfLi6ELb1EEEvNS_12SkinnyParamsE"
    assert sass.short_name(mangled) == "skinny_kernel<__half, 6, true>"
    assert sass.short_name("_ZN3bdk5rightEPK5uint4") == "right"


def _code(text):
    """Instructions of a listing with an address in front of each."""
    lines = [f"  /*{i * 16:04x}*/  {line.strip()} ;" for i, line in enumerate(text.split(";"))]
    return sass.parse("\tFunction : f\n" + "\n".join(lines))["f"]


def test_instructions_are_parsed():
    code = _code("@!P0 LDG.E.NA.LTC256B.128.CONSTANT R4, desc[UR6][R12.64+0x200]; ACQBULK; EXIT")
    assert [(i.address, i.predicate, i.name) for i in code] == [
        (0, "!P0", "LDG"),
        (16, None, "ACQBULK"),
        (32, None, "EXIT"),
    ]
    assert [i.is_weight_load for i in code] == [True, False, False]
    assert code[0].operands == "R4, desc[UR6][R12.64+0x200]"


@pytest.mark.parametrize(
    ("text", "early"),
    [
        # Out of line: what comes last in memory runs first.
        ("BRA 0x40; ACQBULK; STG.E [R2], R3; EXIT; NOP; BRA 0x10", "BRA ACQBULK NOP BRA"),
        # A loop before the wait, left by a condition.
        ("NOP; @P0 BRA 0x0; ACQBULK; STG.E [R2], R3; EXIT", "NOP BRA ACQBULK"),
        # A branch over the wait, by a uniform condition among the operands.
        ("BRA.U !UP0, 0x30; NOP; ACQBULK; STG.E [R2], R3; EXIT", "BRA NOP ACQBULK STG EXIT"),
        # Threads meet behind the wait.
        ("BSSY B0, 0x40; @P0 BRA 0x30; ACQBULK; BSYNC B0; NOP; EXIT",
         "BSSY BRA ACQBULK BSYNC NOP EXIT"),
        # Some threads leave.
        ("@P0 EXIT; ACQBULK; EXIT", "EXIT ACQBULK"),
        # A function is called, and returns.
        ("CALL.REL.NOINC 0x40; ACQBULK; EXIT; NOP; NOP; RET.REL.NODEC R2 0x0",
         "CALL ACQBULK NOP RET"),
    ],
)  # fmt: skip
def test_branches_are_followed_up_to_the_wait(text, early):
    names = [i.name for i in sass.instructions_before_wait(_code(text))]
    assert names == early.split()


def test_an_indirect_branch_is_a_fault():
    assert re.match(
        "BRX R2 .*: an indirect branch", *sass.faults(_code("BRX R2 -0x10; ACQBULK"), 0)
    )


def test_stores_of_every_kind_write():
    for opcode in ("STG.E.128", "ST.E", "RED.E.ADD", "REDG.E.ADD.STRONG.GPU", "ATOMG.E.CAS"):
        assert sass.Instruction(0, None, opcode, "").writes_global
    for opcode in ("STS.128", "LDG.E", "STL", "ATOMS.ADD", "REDUX", "ATOM"):
        assert sass.Instruction(0, None, opcode, "").writes_global is (opcode == "ATOM")
