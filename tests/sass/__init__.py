"""Machine code of compiled kernels: instructions, what runs before a wait, and resources.

``cuobjdump``, which Triton brings along, prints the machine code (SASS) of a cubin, an object file
or a module. A kernel that is launched programmatically starts while the one before it still runs,
and waits for it in ``griddepcontrol.wait``, which is ACQBULK. The checks follow the branches from
the first instruction up to there, since a compiler may put what runs first anywhere.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import triton

__all__ = [
    "Instruction",
    "Resources",
    "faults",
    "instructions_before_wait",
    "kernels",
    "parse",
    "resources",
    "short_name",
]

CUOBJDUMP = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
WAIT = "ACQBULK"
STEP = 16  # bytes of an instruction
_LINE = re.compile(r"^\s*/\*([0-9a-f]{4,})\*/\s+(?:@(!?U?P\w+)\s+)?([A-Z][\w.]*)\s*(.*?)\s*;")
# Stores, reductions and atomics to global memory, by any path.
_WRITES = re.compile(r"(STG|ST|RED|REDG|ATOM|ATOMG|UBLKRED|UTMASTG|UTMAREDG|STAS)(\.|$)")
_WEIGHT = re.compile(r"LDG\.E\.NA\.LTC256B\.(64|128)\.CONSTANT$")


@dataclass(frozen=True)
class Instruction:
    """One instruction.

    Attributes:
        address: bytes from the begin of its kernel.
        predicate: condition under which it runs, such as "!P0", or None.
        opcode: name with its modifiers, such as "LDG.E.128".
        operands: all that follows.
    """

    address: int
    predicate: str | None
    opcode: str
    operands: str

    @property
    def name(self) -> str:
        """The opcode without modifiers."""
        return self.opcode.partition(".")[0]

    @property
    def is_weight_load(self) -> bool:
        """Whether it is ``load_weight`` of machine_sm90.cuh."""
        return _WEIGHT.match(self.opcode) is not None

    @property
    def writes_global(self) -> bool:
        """Whether it writes to global memory."""
        return _WRITES.match(self.opcode) is not None


@dataclass(frozen=True)
class Resources:
    """What the compiler made of a kernel for one card.

    Attributes:
        registers: of a thread.
        spilled: bytes of stack and local memory, which registers that do not fit take.
        shared: bytes of static shared memory, which count the system's 1024 where there are any.
        max_threads: of a block, by its launch bounds; 0 without any.
    """

    registers: int
    spilled: int
    shared: int
    max_threads: int


def parse(text: str) -> dict[str, list[Instruction]]:
    """The instructions of every kernel in what ``cuobjdump -sass`` prints, by mangled name."""
    found: dict[str, list[Instruction]] = {}
    current: list[Instruction] = []
    for line in text.splitlines():
        function = re.match(r"\s*Function : (\S+)", line)
        match = _LINE.match(line)
        if function:
            current = found.setdefault(function[1], [])
        elif match:
            address, predicate, opcode, operands = match.groups()
            current.append(Instruction(int(address, 16), predicate, opcode, operands))
    return found


def kernels(path: Path, arch: str) -> dict[str, list[Instruction]]:
    """The instructions of the kernels for `arch` in a file.

    Args:
        path: cubin, object file or module.
        arch: such as "sm_90".
    """
    return parse(_printed("-sass", "-arch", arch, path))


def names(path: Path, arch: str) -> set[str]:
    """Mangled names of the kernels for `arch` in a file, without reading their code."""
    return set(re.findall(r"Function (\w+):\n", _printed("-res-usage", "-arch", arch, path)))


def resources(path: Path, arch: str) -> dict[str, Resources]:
    """Resources of all kernels for `arch` in a file, by mangled name."""
    printed = _printed("-elf", "-arch", arch, path)
    bounds = dict(
        re.findall(
            r"\.nv\.info\.(\w+)\n(?:(?!\.nv\.info|\.section).*\n)*?.*EIATTR_MAX_THREADS.*\n.*\n"
            r".*Value:\s+(0x[0-9a-f]+)",
            printed,
        )
    )
    usage = re.findall(
        r"Function (\w+):\n.*REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)",
        _printed("-res-usage", "-arch", arch, path),
    )
    return {
        name: Resources(
            int(registers), int(stack) + int(local), int(shared), int(bounds.get(name, "0"), 16)
        )
        for name, registers, stack, shared, local in usage
    }


def short_name(mangled: str) -> str:
    """A kernel's name and template arguments as written, such as "f<__half, 8, true>"."""
    done = subprocess.run(["c++filt", mangled], capture_output=True, text=True, check=True)
    name = re.sub(r"\(anonymous namespace\)::|\b\w+::(?=\w)", "", done.stdout.strip())
    name = re.sub(r"^void ", "", name)
    name = re.sub(r"\((?:int|bool|unsigned int)\)", "", name)
    depth = 0
    for i, letter in enumerate(name):  # the parameters begin outside of the template arguments
        depth += (letter == "<") - (letter == ">")
        if letter == "(" and depth == 0:
            return name[:i]
    return name


def instructions_before_wait(instructions: Sequence[Instruction]) -> list[Instruction]:
    """What can run before the first wait of a thread, in the order of addresses.

    Raises:
        ValueError: the kernel never waits, or its branches cannot be followed.
    """
    if not any(i.name == WAIT for i in instructions):
        raise ValueError("it never waits for the kernel before it")
    at = {i.address: i for i in instructions}
    todo, seen = [instructions[0].address], set()
    while todo:
        address = todo.pop()
        if address in seen or address not in at:
            continue
        seen.add(address)
        if at[address].name != WAIT or at[address].predicate:
            todo += _next(at[address], at)
    return [i for i in instructions if i.address in seen]


def _next(instruction: Instruction, at: Mapping[int, Instruction]) -> Iterator[int]:
    """Addresses of the instructions that may follow."""
    after, name = instruction.address + STEP, instruction.name
    targets = [int(text, 16) for text in re.findall(r"\b0x[0-9a-f]+\b", instruction.operands)]
    if name in ("BRX", "JMX", "BRXU", "JMP"):
        raise ValueError(f"{instruction.opcode} {instruction.operands}: an indirect branch")
    if name in ("EXIT", "RET", "KILL"):
        if instruction.predicate:
            yield after
        return
    if name in ("BRA", "CALL"):
        yield from targets[-1:]
        # Behind a call its function returns; a branch with a condition may be no uniform one.
        if name == "CALL" or instruction.predicate or re.match(r"!?U?P\d", instruction.operands):
            yield after
        return
    if name == "BSYNC":  # threads meet again; out of line they go on where BSSY says
        barrier = instruction.operands.split(",")[-1].strip()
        meeting = {
            int(other.operands.split(",")[-1], 16)
            for other in at.values()
            if other.name == "BSSY" and other.operands.split(",")[0].strip() == barrier
        }
        yield from {after} if after in meeting or not meeting else meeting
        if instruction.predicate:
            yield after
        return
    yield after


def faults(instructions: Sequence[Instruction], weight_loads: int) -> list[str]:
    """What is wrong with the begin of a kernel that is launched programmatically.

    Args:
        instructions: of the kernel.
        weight_loads: loads of weights that must stand before the wait, at least.
    """
    try:
        early = instructions_before_wait(instructions)
    except ValueError as error:
        return [str(error)]
    found = [
        f"writes before the wait: {i.opcode} {i.operands} at {i.address:#x}"
        for i in early
        if i.writes_global
    ]
    count = sum(i.is_weight_load for i in early)
    if count < weight_loads:
        found.append(f"{count} loads of weights before the wait, not {weight_loads}")
    return found


def _printed(*arguments: str | Path) -> str:
    command = [CUOBJDUMP, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout
