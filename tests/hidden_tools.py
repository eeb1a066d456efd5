"""What runs again where a tool is hidden: the tests whose outcome can depend on it.

``make test`` runs every test with all tools. ``make test-without-nvcc`` and
``make test-without-compiler`` run those again, by ``pytest --without TOOL``, that can end otherwise
there; all others would run the same code once more.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).parent
TOOLS = ("nvcc", "compiler")

# Kernels of Triton, and device code of CUDA that the compiler for the CPU builds: neither is
# another one where a compiled module is missing.
_KERNELS = re.compile(r"_(kernels|cuda|sm90)\.py$")
_NAMES_CUDA = re.compile(r"nvcc|native\.cuda|_cuda\b|[\"']cuda[\"']|unavailable|explain|env_report",
                         re.IGNORECASE)  # fmt: skip
"""Without nvcc the compiled module for the CPU is the same, and so is all that takes tensors there.
What is missing is seen by what asks for the CUDA module, and such a test names it."""
_WITHOUT_KERNELS = ("model/data", "model/io", "model/evaluation", "integrations/comfyui")
"""Folders of tests of code that calls no op but FEW, which tests/ops holds on every backend."""
FEW = ("bit_counts", "noise_words", "unpack_signs")
_SAME = {
    "test_benchmarks_attack.py": "its kernels are Triton's and the emulator's",
    "test_peers.py": "other packages",
    "test_sass.py": "reads printed machine code",
}
"""More files, which name CUDA or call ops and still cannot end otherwise."""


def leaves_out(tool: str, path: Path) -> bool:
    """Whether no test of a file can depend on a tool.

    Args:
        tool: "nvcc" or "compiler".
        path: of a test file.
    """
    name = path.relative_to(HERE).as_posix()
    if _KERNELS.search(name) and not name.startswith("test_offline"):
        return True
    if name in _SAME:
        return True
    if tool == "nvcc":
        return _NAMES_CUDA.search(_text(path)) is None
    return name.startswith(tuple(f"{folder}/" for folder in _WITHOUT_KERNELS))


_ALL_CASES = ("tests/test_defaults.py", "tests/test_dispatch.py")
"""Files whose cases are the ops, each of which has a backend of its own to fall back on."""


def left_out(nodeids: Sequence[str]) -> set[str]:
    """Of tests in their order those that would hold once more what another one holds.

    They are tests of kernels of Triton, and all cases of a test but the first, of those that name
    no backend that is missing if there are such.
    """
    of_others = [nodeid for nodeid in nodeids if not is_of_triton(nodeid)]
    chosen: dict[str, str] = {}
    for nodeid in sorted(of_others, key=_names_a_backend):
        every = nodeid.startswith(_ALL_CASES)
        chosen.setdefault(nodeid if every else nodeid.partition("[")[0], nodeid)
    return set(nodeids) - set(chosen.values())


def _names_a_backend(nodeid: str) -> bool:
    return re.search("cpu|cuda|triton", nodeid.partition("[")[2]) is not None


def is_of_triton(nodeid: str) -> bool:
    """Whether a test holds a kernel of Triton against the reference, and nothing else."""
    path, _, test = nodeid.partition("::")
    is_of_ops = path.startswith("tests/ops/") or path == "tests/test_contract.py"
    return is_of_ops and "triton" in test


@functools.cache
def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8")
