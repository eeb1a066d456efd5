"""What kernels of integer arithmetic issue for each item of their work, from their machine code.

``python -m tests.instructions`` counts in the CUDA module that is built and writes
``benchmarks/instructions.json``, by which ``benchmarks.bounds`` bounds their time. Of a kernel
counts the loop that does the work: among the smallest loops that hold a mark (what is stored, or
population counts) those with the most of it. What runs once a thread is left out, so the bound is
rather too short than too long.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from benchmarks.bounds import COUNTS
from tests import sass
from tests.launches import objects
from tests.offline_sm90 import nvcc_version

ARCH = "sm_90"
_STORE = re.compile(r"STG\.E(?:\.\w+)*?(?:\.(U8|U16|64|128))?(?:\.\w+)*$")
_BYTES = {"U8": 1, "U16": 2, None: 4, "64": 8, "128": 16}
_KINDS = {
    "integer": re.compile(r"(LOP3|ISETP|SEL|IADD3|SHF|PRMT|LEA|PLOP3|VIMNMX|IABS)(\.|$)"),
    "multiplied": re.compile(r"IMAD(\.|$)(?!MOV|IADD|SHL)"),
    "population counts": re.compile(r"POPC(\.|$)"),
}
"""Kinds but all that is issued. Which unit adds with VIADD, or moves with IMAD, is not documented;
these count as issued alone."""


class Kernel(NamedTuple):
    """A kernel whose work is counted.

    Attributes:
        source: of its object file, below csrc/cuda.
        name: pattern of its name with template arguments.
        items: items of an instruction, 0 for most.
    """

    source: str
    name: str
    items: Callable[[sass.Instruction], float]


def _stored(instruction: sass.Instruction) -> float:
    match = _STORE.match(instruction.opcode)
    return _BYTES[match[1]] if match else 0


def _counted(instruction: sass.Instruction) -> float:
    return float(instruction.name == "POPC")


KERNELS = {
    "flip_bits": Kernel("flip_bits/flip_bits", "flip_bits_kernel<true>", _stored),
    "flip_signs": Kernel(
        "flip_bits/flip_bits", "flip_signs_kernel<unsigned int, true>",
        lambda instruction: _stored(instruction) / 4,
    ),
    "hamming_distance": Kernel(
        "hamming_distance/hamming_distance", "hamming_distance_kernel<true>", _counted
    ),
    "nearest_codes": Kernel(
        "hamming_distance/hamming_distance", "nearest_codes_kernel<true>", _counted
    ),
}  # fmt: skip
"""Items: bytes of bits, values, and words of the pairs of codes."""


def loops(instructions: Sequence[sass.Instruction]) -> list[Sequence[sass.Instruction]]:
    """From the target of each branch backward to the branch."""
    found = []
    for i, branch in enumerate(instructions):
        target = re.search(r"0x([0-9a-f]+)$", branch.operands) if branch.name == "BRA" else None
        if target and int(target[1], 16) < branch.address:
            begin = int(target[1], 16) // sass.STEP
            found.append(instructions[begin : i + 1])
    return found


def count(instructions: Sequence[sass.Instruction], kernel: Kernel) -> dict[str, float]:
    """Instructions of each kind for an item.

    Raises:
        ValueError: no loop of the kernel does the work.
    """

    def items(loop: Sequence[sass.Instruction]) -> float:
        return sum(kernel.items(instruction) for instruction in loop)

    holding = [loop for loop in loops(instructions) if items(loop)]
    smallest = [
        loop
        for loop in holding
        if not any(other is not loop and _within(other, loop) for other in holding)
    ]
    if not smallest:
        raise ValueError(f"{kernel.name}: no loop does the work")
    most = max(items(loop) for loop in smallest)
    found: Counter[str] = Counter()
    for loop in smallest:
        if items(loop) == most:
            found["issued"] += len(loop)
            for kind, pattern in _KINDS.items():
                found[kind] += sum(bool(pattern.match(i.opcode)) for i in loop)
    return {kind: number / most for kind, number in found.items()}


def _within(inner: Sequence[sass.Instruction], outer: Sequence[sass.Instruction]) -> bool:
    begin, end = outer[0].address, outer[-1].address
    return begin <= inner[0].address and inner[-1].address <= end and len(inner) < len(outer)


def of_op(op: str) -> dict[str, float]:
    """Counts of the kernel that is built.

    Raises:
        ValueError: there is no such kernel, or no loop of it does the work.
    """
    kernel = KERNELS[op]
    for path in objects(f"csrc/cuda/{kernel.source}.cu.o"):
        for name, instructions in sass.kernels(path, ARCH).items():
            if re.fullmatch(kernel.name, sass.short_name(name)):
                return count(instructions, kernel)
    raise ValueError(f"{kernel.name} is not built")


def main() -> None:
    """Write the table."""
    ops = {op: of_op(op) for op in KERNELS}
    table: dict[str, Any] = {"nvcc": nvcc_version(), "arch": ARCH, "ops": ops}
    COUNTS.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
