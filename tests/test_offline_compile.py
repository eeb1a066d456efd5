"""Every kernel compiles, without spills, for cards that this machine does not have."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.cases import all_cases
from tests.offline_compile import CUOBJDUMP

ROOT = Path(__file__).parent.parent
# Compute capability: shared memory a block may have, in bytes.
TARGETS = {80: 166_912, 90: 232_448, 100: 232_448}
TRITON_OPS = [name for name, case in all_cases().items() if "triton" in case.kernel_op.backends]
NVCC = shutil.which(os.environ.get("NVCC", "nvcc"))
CUDA_SOURCES = [path for path in (ROOT / "csrc/cuda").glob("*.cu") if path.stem != "status"]


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """For each target the kernels of every op; the targets compile side by side."""
    folder = tmp_path_factory.mktemp("offline")
    environment = {**os.environ, "TRITON_INTERPRET": "0"}
    command = [sys.executable, "-m", "tests.offline_compile"]
    running = {
        capability: subprocess.Popen(
            [*command, str(capability), folder / f"{capability}"],
            cwd=ROOT,
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for capability in TARGETS
    }
    reports = {}
    for capability, process in running.items():
        _, errors = process.communicate()
        assert process.returncode == 0, errors[-4000:]
        reports[capability] = json.loads((folder / f"{capability}").read_text())
    return reports


@pytest.mark.slow
@pytest.mark.timeout(1800)  # with nothing in Triton's cache all kernels take minutes
@pytest.mark.parametrize("capability", TARGETS)
@pytest.mark.parametrize("op", TRITON_OPS)
def test_triton_kernels(compiled, op, capability):
    kernels = compiled[capability][op]
    assert kernels
    for kernel in kernels:
        assert kernel["narrow_offsets"] == [], kernel
        assert kernel["STACK"] == kernel["LOCAL"] == 0, f"spills: {kernel}"
        assert kernel["shared"] <= TARGETS[capability], kernel


def test_narrow_offsets_are_seen():
    """The check itself: a 32-bit offset is caught, a 64-bit one is not."""
    code = """
import torch, triton, triton.language as tl
from triton.runtime import driver
from tests.offline_compile import PretendedCard, narrow_offsets, record_launches

@triton.jit
def kernel(x_ptr, WIDE: tl.constexpr):
    i = tl.program_id(0) * 64 + tl.arange(0, 64)
    if WIDE:
        i = tl.program_id(0).to(tl.int64) * 64 + tl.arange(0, 64)
    tl.store(x_ptr + i, 1.0)

@triton.jit
def scalar_kernel(x_ptr):
    tl.store(x_ptr + tl.program_id(0), 1.0)

driver.set_active(PretendedCard(90))
made = record_launches()
for launch in (lambda: kernel[(1,)](torch.zeros(1), WIDE=False),
               lambda: kernel[(1,)](torch.zeros(1), WIDE=True),
               lambda: scalar_kernel[(1,)](torch.zeros(1))):
    made.clear()
    launch()
    print(sum(len(narrow_offsets(c.asm["ttir"])) for _, c in made.values()))
"""
    script = ROOT / "build" / "narrow_offsets.py"
    script.parent.mkdir(exist_ok=True)
    script.write_text(code)  # triton.jit reads its source from a file
    environment = {**os.environ, "TRITON_INTERPRET": "0", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True)
    assert done.stdout.split() == ["1", "0", "1"], done.stderr


@pytest.mark.skipif(NVCC is None, reason="nvcc is not installed")
def test_cuda_kernels():
    """No kernel of the built module spills. `make test` builds it with warnings as errors."""
    (module,) = (ROOT / "bitdance_kernels").glob("_cuda*.so")
    command = [CUOBJDUMP, "-res-usage", module]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert {int(n) for n in re.findall(r"arch = sm_(\d+)", printed)} >= set(TARGETS)
    kernels = re.findall(r"Function (\w+):\n.*STACK:(\d+) .*LOCAL:(\d+)", printed)
    assert len(kernels) >= len(TARGETS) * len(CUDA_SOURCES)
    assert [name for name, stack, local in kernels if (stack, local) != ("0", "0")] == []
