"""Every kernel compiles, without spills, for cards that this machine does not have."""

import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from bitdance_kernels._shared import native
from tests.cases import all_cases
from tests.offline_compile import CANDIDATES, CUOBJDUMP, reports

ROOT = Path(__file__).parent.parent
SETUP = runpy.run_path(str(ROOT / "setup.py"))
WITH_KERNELS = {name for name, case in all_cases().items() if "triton" in case.kernel_op.backends}
WITH_KERNELS |= {"noise", CANDIDATES}  # which are no ops
NVCC = shutil.which(os.environ.get("NVCC", "nvcc"))
CUDA_SOURCES = [path for path in (ROOT / "csrc/cuda").rglob("*.cu") if path.stem != "status"]


@pytest.mark.slow
@pytest.mark.timeout(1800)  # without a record all of it takes minutes
def test_triton_kernels():
    """No kernel spills, takes more shared memory than there is, or computes 32-bit offsets."""
    for capability, report in reports().items():
        assert {name for name, op in report.items() if op["launches"]} == WITH_KERNELS
        assert [fault for op in report.values() for fault in op["faults"]] == [], capability
        described = [f"block_causal_{part}_kernel" for part in ("forward", "of_keys", "of_queries")]
        attention = report["block_causal_attention"]["described"]
        assert attention == {80: [], 90: described, 100: described[:1]}[capability]


def test_narrow_offsets_are_seen():
    """The check itself: a 32-bit offset is caught, a 64-bit one is not."""
    code = """
import torch, triton, triton.language as tl
from tests.offline_compile import Compiler

@triton.jit
def kernel(x_ptr, WIDE: tl.constexpr):
    i = tl.program_id(0) * 64 + tl.arange(0, 64)
    if WIDE:
        i = tl.program_id(0).to(tl.int64) * 64 + tl.arange(0, 64)
    tl.store(x_ptr + i, 1.0)

@triton.jit
def scalar_kernel(x_ptr):
    tl.store(x_ptr + tl.program_id(0), 1.0)

compiler = Compiler(90)
kernel[(1,)](torch.zeros(1), WIDE=False)
kernel[(1,)](torch.zeros(1), WIDE=True)
scalar_kernel[(1,)](torch.zeros(1))
print(*map(len, compiler.faults()))
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
    archs = native.cuda.architectures.split()
    assert set(re.findall(r"arch = sm_(\d+)", printed)) >= {arch.rstrip("af") for arch in archs}
    kernels = re.findall(r"Function (\w+):\n.*STACK:(\d+) .*LOCAL:(\d+)", printed)
    targets = (code for path in CUDA_SOURCES for _, code in SETUP["cuda_targets"](path))
    assert len(kernels) >= sum(code.startswith("sm_") for code in targets)
    assert [name for name, stack, local in kernels if (stack, local) != ("0", "0")] == []
