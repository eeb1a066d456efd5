"""Compiles every Triton kernel for cards that this machine does not have.

``python -m tests.offline_compile [OP ...] [--all]``

The launchers run on the samples of the cases, on CPU tensors, under a driver that only pretends to
be a card: each launch compiles its kernel to a cubin and runs nothing. So every kernel is compiled
with the types, alignments and constants that it is launched with. It runs in processes of its own,
because a test process has Triton in interpreter mode.

Compiling all kernels takes half an hour of CPU time, and gives the same result for the same source,
options and version of Triton. RECORD therefore has one digest per op and capability, of all kernels
that passed; an op with the same digest is not compiled again, unless ``--all`` asks for it. The
command writes the record; the test only reads it, and compiles the ops that have changed.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import hashlib
import itertools
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import triton
import triton.compiler
from torch.utils import _pytree as pytree
from triton.backends.compiler import GPUTarget
from triton.compiler import make_backend
from triton.runtime import driver
from triton.runtime.jit import JITFunction
from triton.tools.tensor_descriptor import TensorDescriptor

from bitdance_kernels import block_causal_attention, block_causal_ranges, noise_keys
from bitdance_kernels._dispatch.op import KernelOp
from bitdance_kernels._shared import philox_triton, triton_support
from bitdance_kernels.attention.block_causal_attention import config as attention_config
from bitdance_kernels.testing import Case
from tests.cases import all_cases

ROOT = Path(__file__).parent.parent
RECORD = Path(__file__).with_name("compiled_kernels.json")
SHARED = {80: 166_912, 90: 232_448, 100: 232_448}
"""For each compute capability the shared memory that a block may have, in bytes."""

OVERLAPPING = ("block_decode_attention", "patch_attention")
"""Ops whose kernels can begin before the one before them has ended."""
OVERLAP = {"OVERLAP": True, "launch_pdl": True}

CANDIDATES = "block_causal_attention, candidates"
"""Name of the tiles of that op that may be timed on a card, beside those of its samples."""

CPU = torch.device("cpu")
CUOBJDUMP = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
# A pointer plus a 32-bit offset wraps around at 2^31 elements.
NARROW_OFFSET = re.compile(r"tt\.addptr [^:]*: .*(?:xi32>|, i32)$")

# Stores happen once, and may be of fewer rows than a descriptor would write.
LOADED_BY_POINTERS = re.compile(r"tt\.load [^:]*: (tensor<\d+x\d+x!tt\.ptr<\w+>>)")


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


def without_units(compiled: Any, capability: int) -> list[str]:
    """What a kernel with descriptors lacks of the units that it is made for, or does by threads."""
    ttir, ptx = compiled.asm["ttir"], compiled.asm["ptx"]
    if "tt.descriptor_load" not in ttir:
        return []
    found = ["no TMA"] if "cp.async.bulk.tensor" not in ptx else []
    if capability == 90 and "tt.dot" in ttir and "wgmma.mma_async" not in ptx:
        found.append("no wgmma")
    return found + [f"loads by addresses: {kind}" for kind in LOADED_BY_POINTERS.findall(ttir)]


def resources(cubin: bytes) -> dict[str, int]:
    """REG, STACK, SHARED and LOCAL of the kernel, as ptxas allotted them."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(CUOBJDUMP), "-res-usage", file.name]
        printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return {k: int(v) for k, v in re.findall(r"\b(REG|STACK|SHARED|LOCAL):(\d+)", printed)}


def faults(compiled: Any, capability: int) -> list[str]:
    """What is wrong with a compiled kernel."""
    found = [f"32-bit offset: {line}" for line in narrow_offsets(compiled.asm["ttir"])]
    found += without_units(compiled, capability)
    used = resources(compiled.asm["cubin"])
    if used["STACK"] or used["LOCAL"]:
        found.append(f"spills: {used}")
    if compiled.metadata.shared > SHARED[capability]:
        found.append(f"shared memory: {compiled.metadata.shared} bytes")
    return [f"{compiled.metadata.name}: {fault}" for fault in found]


def digest(source: Any, target: GPUTarget, options: dict[str, Any]) -> str:
    """Digest of all inputs of a compilation, the same on every machine."""
    parsed = make_backend(target).parse_options({**options, **source.parse_options()})
    return hashlib.sha256(f"{source.hash()}-{parsed.hash()}".encode()).hexdigest()


def passed() -> dict[str, dict[str, str]]:
    """The record: for each capability the digest of each op, if this version of Triton made it."""
    record = json.loads(RECORD.read_text()) if RECORD.exists() else {}
    return record["passed"] if record.get("triton") == triton.__version__ else {}


def kind_of(arg: Any) -> Any:
    """What of an argument a kernel is compiled for."""
    if isinstance(arg, TensorDescriptor):
        return arg.base.dtype, *arg.block_shape
    return getattr(arg, "dtype", type(arg))


class _Collected(Exception):  # noqa: N818  (ends a launch whose kernel is compiled later)
    pass


class Compiler:
    """Collects the kernels of all launches, once for each set of types and constants.

    Args:
        capability: compute capability of the card to pretend.

    Attributes:
        launches: number of launches so far.
        kernels: arguments of the compilation of each collected kernel, by digest.
    """

    def __init__(self, capability: int) -> None:
        self.capability = capability
        self.launches = 0
        self.kernels: dict[str, tuple[Any, GPUTarget, dict[str, Any]]] = {}
        self._seen: set[tuple[Any, ...]] = set()
        self._run, self._compile = JITFunction.run, triton.compiler.compile
        driver.set_active(PretendedCard(capability))
        # A kernel keeps its digest when it moves within its file.
        JITFunction.starting_line_number = property(lambda kernel: 0, lambda kernel, line: None)
        JITFunction.run = lambda kernel, *args, **kwargs: self._launch(kernel, *args, **kwargs)
        triton.compiler.compile = self._collect

    def _launch(
        self, kernel: JITFunction, *args: Any, grid: Any, warmup: bool, **kwargs: Any
    ) -> None:
        self.launches += 1
        kinds = [
            arg if parameter.is_constexpr else kind_of(arg)
            for parameter, arg in zip(kernel.params, args, strict=False)
        ]
        variant = (kernel, *kinds, *sorted(kwargs.items()))
        if variant not in self._seen:
            self._seen.add(variant)
            with contextlib.suppress(_Collected):
                self._run(kernel, *args, grid=grid, warmup=True, **kwargs)

    def _collect(self, source: Any, target: GPUTarget, options: dict[str, Any]) -> Any:
        self.kernels[digest(source, target, options)] = source, target, options
        raise _Collected

    def digest(self) -> str:
        """Digest of all collected kernels."""
        return hashlib.sha256(" ".join(sorted(self.kernels)).encode()).hexdigest()[:16]

    def faults(self) -> list[list[str]]:
        """Compile the collected kernels, and return what is wrong with each."""
        compiled = (self._compile(s, target=t, options=o) for s, t, o in self.kernels.values())
        return [faults(kernel, self.capability) for kernel in compiled]


def launch_all(case: Case) -> None:
    """Launch each kernel of an op, forward and backward, with everything that it is made for."""
    calls = list(case.samples(CPU))
    # A kernel's float16 and bfloat16 forms differ in how values are converted, and in no more.
    halves = any(t.dtype == torch.bfloat16 for call in calls for t in call.tensors())
    for call in calls:
        if halves and any(t.dtype == torch.float16 for t in call.tensors()):
            continue
        call = call.map(lambda t: t.detach().clone())
        leaves = case.leaves(call) if case.kernel_op.differentiable else []
        for leaf in leaves:
            leaf.requires_grad_()
        results = case.op(*call.args, **call.kwargs, backend="triton")
        outputs = [t for t in pytree.tree_leaves(results) if getattr(t, "requires_grad", False)]
        if outputs:
            torch.autograd.grad([t.float().sum() for t in outputs], leaves, allow_unused=True)


def report(capability: int, ops: list[str], known: dict[str, str]) -> dict[str, Any]:
    """For each op its launches, the digest of its kernels, and what is wrong with them."""
    compiler = Compiler(capability)
    # The backends refuse CPU tensors, and the launches compute nothing: go past the refusal.
    KernelOp.reason = lambda self, name, inputs: None  # type: ignore[method-assign]
    launchers = {
        name: functools.partial(launch_all, case)
        for name, case in all_cases().items()
        if "triton" in case.kernel_op.backends
    }
    made = {}
    launchers |= {"noise": launch_noise, CANDIDATES: launch_candidates}
    for name, launch in launchers.items():
        if ops and name not in ops:
            continue
        compiler.launches, compiler.kernels = 0, {}
        launch()
        if name in OVERLAPPING and capability >= 90:
            with mock.patch.object(triton_support, "overlapping", return_value=OVERLAP):
                launch()
        key = compiler.digest()
        wrong = [] if known.get(name) == key else list(itertools.chain(*compiler.faults()))
        described = {
            source.fn.__name__
            for source, _, _ in compiler.kernels.values()
            if any(str(kind).startswith("tensordesc") for kind in source.signature.values())
        }
        made[name] = {
            "launches": compiler.launches,
            "digest": key,
            "faults": wrong,
            "described": sorted(described),
        }
    return made


def launch_candidates() -> None:
    """Launch the kernels of block_causal_attention with every tile that may be timed on a card."""
    for width in (64, 128):
        call = [torch.zeros(1, 128, 2, width, dtype=torch.bfloat16) for _ in range(3)]
        ranges = block_causal_ranges(63, 4, 16, tokens=127)
        call = [x[:, :127].requires_grad_() for x in call]
        for kernel in ("forward", "query_tile", "key_tile"):
            for n in itertools.count():
                tiles: list[Any] = []

                def choose(
                    shape: Any, kernel: str = kernel, n: int = n, tiles: list[Any] = tiles
                ) -> Any:
                    tiles += attention_config.candidates(kernel, shape)[n : n + 1]
                    return tiles[0] if tiles else attention_config.candidates(kernel, shape)[0]

                with mock.patch.object(attention_config, kernel, choose):
                    out = block_causal_attention(*call, ranges, backend="triton")
                    torch.autograd.grad(out.float().square().sum(), call)
                if not tiles:
                    break


def launch_noise() -> None:
    """Launch the kernel of ``noise``, which is no op."""
    for elements in (512, 7):
        philox_triton.noise(noise_keys(0, range(3)), torch.tensor(0), elements)


def reports(*arguments: str) -> dict[int, dict[str, Any]]:
    """The report for each capability, from parallel processes; `arguments` are the command's."""
    command = [sys.executable, "-m", "tests.offline_compile", *arguments]
    environment = {**os.environ, "TRITON_INTERPRET": "0"}
    made = {}
    with tempfile.TemporaryDirectory() as folder:
        running = {
            capability: subprocess.Popen(
                [*command, "--worker", str(capability), f"{folder}/{capability}"],
                cwd=ROOT,
                env=environment,
                stderr=subprocess.PIPE,
                text=True,
            )
            for capability in SHARED
        }
        for capability, process in running.items():
            _, errors = process.communicate()
            if process.returncode != 0:
                raise RuntimeError(errors[-4000:])
            made[capability] = json.loads(Path(folder, str(capability)).read_text())
    return made


def main() -> int:
    """The command; returns its exit status, 1 if anything is wrong with a kernel."""
    parser = argparse.ArgumentParser(prog="python -m tests.offline_compile")
    parser.add_argument("ops", nargs="*", metavar="OP")
    parser.add_argument("--all", action="store_true", help="compile what the record has too")
    parser.add_argument("--worker", nargs=2, metavar=("CC", "OUT"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        capability, out = int(options.worker[0]), Path(options.worker[1])
        known = {} if options.all else passed().get(str(capability), {})
        out.write_text(json.dumps(report(capability, options.ops, known)))
        return 0
    made = reports(*sys.argv[1:])
    bad = [
        f"sm_{capability} {fault}"
        for capability, ops in made.items()
        for op in ops.values()
        for fault in op["faults"]
    ]
    print(*bad, sep="\n", end="\n" * bool(bad))
    record = passed() if options.ops else {}
    for capability, ops in made.items():
        digests = record.setdefault(str(capability), {})
        digests |= {name: op["digest"] for name, op in ops.items() if not op["faults"]}
    written = {"triton": triton.__version__, "passed": record}
    RECORD.write_text(json.dumps(written, indent=0, sort_keys=True) + "\n")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
