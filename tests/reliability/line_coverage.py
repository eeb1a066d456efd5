"""Lines that the tests run: of Python by coverage.py, of C++ by gcov.

The whole suite runs once in a copy of the checkout, ``build/coverage``, piece by piece, with a CPU
module that counts its lines (``BITDANCE_BUILD_COVERAGE=1``) and with processes that tests start
counted too. Python lines are the statements of ``bitdance`` and ``bitdance_kernels`` but for those
of Triton kernels, which a compiler translates and Python does not run, those for type checkers, and
``...`` of protocols. C++ lines are those of ``csrc`` that the CPU module compiles for instruction
sets of the machine: a machine without AVX-512 says nothing of ``*_avx512.cpp``. CUDA device code is
not counted; ``tests/emulated``, ``tests/launches`` and cards run it. What no test has run is listed
by file, with its lines, in ``build/coverage/uncovered.txt``.
"""

from __future__ import annotations

import importlib.util
import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.reliability.promise import Promise

PROMISES = (
    Promise(
        "python lines", "Tests run the lines of `bitdance` and `bitdance_kernels`.", 95, "%",
        "nightly",
    ),
    Promise("C++ lines", "Tests run the lines of the CPU module.", 90, "%", "nightly"),
)  # fmt: skip

ROOT = Path(__file__).parent.parent.parent
COPY = ROOT / "build/coverage"
ISA_OF_SUFFIX = {"_avx2": "avx2", "_avx512": "avx512", "_bitalg": "avx512", "_amx": "amx"}


@dataclass(frozen=True)
class Lines:
    """Lines of a file.

    Attributes:
        file: path from the root of the checkout.
        total: lines with code.
        missed: numbers of those that did not run.
    """

    file: str
    total: int
    missed: tuple[int, ...]


def measure(scale: float) -> Mapping[str, float]:
    """Both figures; a small scale runs the first pieces of the suite alone.

    Raises:
        RuntimeError: coverage or gcovr is not installed, or the copy cannot be built.
    """
    prepare(COPY)
    chosen = pieces()
    for piece in chosen[: math.ceil(scale * len(chosen))]:
        run_piece(piece, COPY)
    return report(COPY)


def prepare(copy: Path) -> None:
    """A fresh copy of the checkout in the folder `copy`, with a CPU module that counts its lines.

    Raises:
        RuntimeError: coverage or gcovr is not installed, or the module cannot be built.
    """
    missing = [name for name in ("coverage", "gcovr") if importlib.util.find_spec(name) is None]
    if missing:
        raise RuntimeError(f"needs {missing[0]}: pip install -c constraints.txt '.[dev]'")
    shutil.rmtree(copy, ignore_errors=True)
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, copy / name)
    for module in (ROOT / "bitdance_kernels").glob("_cuda*.so"):
        shutil.copy2(module, copy / "bitdance_kernels")
    for objects in ROOT.glob("build/temp.*/bitdance_kernels._cuda"):  # whose machine code is read
        shutil.copytree(objects, copy / objects.relative_to(ROOT))
    environment = {**os.environ, "BITDANCE_BUILD_CUDA": "0", "BITDANCE_BUILD_COVERAGE": "1"}
    command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    done = subprocess.run(command, cwd=copy, env=environment, check=False)
    if done.returncode or not list((copy / "bitdance_kernels").glob("_cpu*.so")):
        raise RuntimeError("the CPU module cannot be built with BITDANCE_BUILD_COVERAGE=1")


def pieces() -> list[list[str]]:
    """The suite in parts, each a list of files and folders of a process of its own."""
    tests, model = ROOT / "tests", ROOT / "tests/model"
    folders = [path for path in tests.iterdir() if path != model]
    folders += model.iterdir()
    loose = [sorted(folder.glob("test_*.py")) for folder in (tests, model)]
    whole = [[path] for path in sorted(folders) if path.is_dir() and any(path.rglob("test_*.py"))]
    return [[path.relative_to(ROOT).as_posix() for path in piece] for piece in [*loose, *whole]]


def run_piece(piece: Iterable[str], copy: Path) -> bool:
    """Run a part of the suite in the copy; whether all of its tests pass there.

    A test that fails is printed, and what it has run counts.
    """
    environment = {
        **os.environ, "PYTHONPATH": str(copy), "COVERAGE_FILE": str(copy / "data/.coverage"),
    }  # fmt: skip
    (copy / "data").mkdir(exist_ok=True)
    command = [sys.executable, "-m", "coverage", "run", "-m", "pytest"]
    command += ["--nightly"] * (copy / "tests/conftest.py").exists()  # which has the option
    command += ["-p", "no:cacheprovider", "-o", "timeout=1200", "-o", "addopts=-q", *piece]
    if (os.cpu_count() or 1) > 1:
        command += ["-n", "2", "--dist", "loadfile", "--no-loadscope-reorder"]
    print(*piece, flush=True)
    return subprocess.run(command, cwd=copy, env=environment, check=False).returncode in (0, 5)


def report(copy: Path) -> dict[str, float]:
    """Percentages of the lines that the parts so far have run, and ``uncovered.txt``."""
    python, native = python_lines(copy), native_lines(copy)
    text = "\n".join([*_listed("Python", python), *_listed("C++", native)]) + "\n"
    (copy / "uncovered.txt").write_text(text)
    print(text)
    return {"python lines": percentage(python), "C++ lines": percentage(native)}


def percentage(files: Iterable[Lines]) -> float:
    """Lines that ran, of all, rounded down to a tenth of a percent."""
    total, missed = 0, 0
    for lines in files:
        total, missed = total + lines.total, missed + len(lines.missed)
    return math.floor(1000 * (total - missed) / max(total, 1)) / 10


def python_lines(copy: Path) -> list[Lines]:
    """Statements of both packages by file."""
    environment = {**os.environ, "COVERAGE_FILE": str(copy / "data/.coverage")}
    content = copy / "python.json"
    base = [sys.executable, "-m", "coverage"]
    for command in (
        [*base, "combine", "--append", "-q"], [*base, "json", "-q", "-o", str(content)],
    ):  # fmt: skip
        subprocess.run(command, cwd=copy, env=environment, check=False)
    files = json.loads(content.read_text())["files"]
    return [
        Lines(name, lines["summary"]["num_statements"], tuple(lines["missing_lines"]))
        for name, lines in files.items()
    ]


def native_lines(copy: Path) -> list[Lines]:
    """Lines of csrc by file, of the instruction sets that this machine has."""
    from bitdance_kernels.testing import cpu_isas

    absent = tuple(
        suffix for suffix, isa in ISA_OF_SUFFIX.items() if isa not in cpu_isas()
    )  # fmt: skip
    for notes in (copy / "build").rglob("*.gcno"):
        if absent and notes.name.removesuffix(".cpp.gcno").endswith(absent):
            notes.unlink()
    content = copy / "native.json"
    command = [
        sys.executable, "-m", "gcovr", "--root", str(copy), "--filter", "csrc/", "--json",
        str(content), "--merge-mode-functions", "merge-use-line-min",
        str(copy / "build"),
    ]  # fmt: skip
    subprocess.run(command, cwd=copy, check=True)
    found = []
    for file in json.loads(content.read_text())["files"]:
        ran: dict[int, bool] = {}
        for line in file["lines"]:  # an instance of a template each
            number = line["line_number"]
            ran[number] = ran.get(number, False) or line["count"] > 0
        missed = tuple(sorted(number for number, has_run in ran.items() if not has_run))
        found.append(Lines(file["file"], len(ran), missed))
    return found


def _listed(what: str, files: list[Lines]) -> list[str]:
    """The files with lines that did not run, most of them first."""
    ordered = sorted((f for f in files if f.missed), key=lambda f: (-len(f.missed), f.file))
    rest = [f"  {len(f.missed):4} of {f.total:4} {f.file}: {ranges(f.missed)}" for f in ordered]
    return [f"{what}: {percentage(files)}% of {sum(f.total for f in files)} lines", *rest]


def ranges(numbers: Iterable[int]) -> str:
    """Numbers as text, such as "3-5, 9"."""
    found: list[list[int]] = []
    for number in numbers:
        if found and number == found[-1][1] + 1:
            found[-1][1] = number
        else:
            found.append([number, number])
    return ", ".join(f"{a}" if a == b else f"{a}-{b}" for a, b in found)
