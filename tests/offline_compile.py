"""Compiles every Triton kernel for a card that is not there.

``python -m tests.offline_compile CC OUT.json [OP ...]``

The launchers run on the samples of the benchmark cases, on CPU tensors, under a driver that only
pretends to be a card of compute capability CC: each launch compiles its kernel to a cubin and runs
nothing. So every kernel is compiled with the types, alignments and constants that it is launched
with. A process of its own, because the test process has Triton in interpreter mode.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import triton
from torch.utils import _pytree as pytree
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from benchmarks.cases import all_cases
from bitdance_kernels._op import KernelOp

CPU = torch.device("cpu")
CUOBJDUMP = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
# A pointer plus a 32-bit offset wraps around at 2^31 elements.
NARROW_OFFSET = re.compile(r"tt\.addptr [^:]*: .*(?:xi32>|, i32)$")


class PretendedCard:
    """As much of Triton's driver interface as a compilation asks for."""

    def __init__(self, capability: int) -> None:
        self.capability = capability

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.capability, 32)

    def get_active_torch_device(self) -> torch.device:
        return CPU


def narrow_offsets(ttir: str) -> list[str]:
    """The lines of a kernel's TTIR that add a 32-bit offset to a pointer."""
    lines = (line.split(" loc(")[0].rstrip() for line in ttir.splitlines())
    return [line.strip() for line in lines if NARROW_OFFSET.search(line)]


def resources(cubin: bytes) -> dict[str, int]:
    """REG, STACK, SHARED and LOCAL of the kernel, as ptxas allotted them."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(CUOBJDUMP), "-res-usage", file.name]
        printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return {k: int(v) for k, v in re.findall(r"\b(REG|STACK|SHARED|LOCAL):(\d+)", printed)}


def describe(compiled: object, name: str) -> dict[str, object]:
    """What the tests judge a compiled kernel by."""
    return {
        "kernel": name,
        "shared": compiled.metadata.shared,
        "narrow_offsets": narrow_offsets(compiled.asm["ttir"]),
        **resources(compiled.asm["cubin"]),
    }


def record_launches() -> dict[object, tuple[str, object]]:
    """From now on launches compile only; returns the table that collects what they made."""
    made: dict[object, tuple[str, object]] = {}
    original = JITFunction.run

    def run(self, *args, grid, warmup, **kwargs):
        kinds = [
            arg if parameter.is_constexpr else getattr(arg, "dtype", type(arg))
            for parameter, arg in zip(self.params, args, strict=False)
        ]
        variant = (self, *kinds, *sorted(kwargs.items()))
        if variant not in made:
            compiled = original(self, *args, grid=grid, warmup=True, **kwargs)
            made[variant] = (self.__name__, compiled)
        return made[variant][1]

    JITFunction.run = run
    return made


def main(capability: int, out: Path, ops: list[str]) -> None:
    driver.set_active(PretendedCard(capability))
    made = record_launches()
    # The backends refuse CPU tensors, and the launches compute nothing: go past the refusal.
    KernelOp.reason = lambda self, name, inputs: None
    report: dict[str, list[dict[str, object]]] = {}
    for name, case in all_cases().items():
        if ops and name not in ops:
            continue
        if "triton" not in case.kernel_op.backends:
            continue
        made.clear()
        calls = list(case.samples(CPU))
        # A kernel's float16 and bfloat16 forms differ in how values are converted, and in no more.
        kinds = {t.dtype for call in calls for t in call.tensors()}
        for call in calls:
            if torch.bfloat16 in kinds and any(t.dtype == torch.float16 for t in call.tensors()):
                continue
            call = call.map(lambda t: t.detach().clone())
            leaves = [t for t in call.tensors() if t.is_floating_point()]
            if case.kernel_op.differentiable:
                leaves = [t.requires_grad_() for t in leaves]
            results = case.op(*call.args, **call.kwargs, backend="triton")
            outputs = [t for t in pytree.tree_leaves(results) if getattr(t, "requires_grad", False)]
            if outputs:
                torch.autograd.grad([t.float().sum() for t in outputs], leaves, allow_unused=True)
        report[name] = [describe(compiled, kernel) for kernel, compiled in made.values()]
    out.write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
