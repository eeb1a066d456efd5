"""How lines are counted; `make coverage` counts them."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.reliability import line_coverage
from tests.reliability.line_coverage import Lines


def test_every_test_is_in_one_piece() -> None:
    root = line_coverage.ROOT
    found = [
        file
        for piece in line_coverage.pieces()
        for name in piece
        for path in [root / name]
        for file in (path.rglob("test_*.py") if path.is_dir() else [path])
    ]
    assert sorted(found) == sorted((root / "tests").rglob("test_*.py"))


def test_percentages_are_rounded_down() -> None:
    files = [Lines("a.py", 1000, (3, 4)), Lines("b.py", 999, ())]
    assert line_coverage.percentage(files) == 99.8
    assert line_coverage.percentage([Lines("a.py", 10_000, (1,))]) == 99.9
    assert line_coverage.percentage([Lines("a.py", 3, ())]) == 100


def test_line_numbers_as_text() -> None:
    assert line_coverage.ranges([1, 2, 3, 7, 9, 10]) == "1-3, 7, 9-10"
    assert line_coverage.ranges([]) == ""


MODULE = """
import triton

@triton.jit
def kernel(x):
    return x + 1

def here():
    return 1

def in_a_process():
    return 2

def never():
    return 3
"""
TEST = """
import subprocess, sys
from bitdance import module

def test():
    assert module.here() == 1
    code = "from bitdance.module import in_a_process; in_a_process()"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert False
"""


def test_lines_of_a_package_that_a_failing_test_has_run(tmp_path: Path) -> None:
    """Also in processes that it starts; kernels of Triton are not counted."""
    pytest.importorskip("coverage")
    shutil.copy(line_coverage.ROOT / "pyproject.toml", tmp_path)
    files = {
        "bitdance/__init__.py": "", "bitdance/module.py": MODULE, "test_it.py": TEST,
        "bitdance_kernels/__init__.py": "", "triton.py": "jit = lambda function: function",
    }  # fmt: skip
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert not line_coverage.run_piece(["test_it.py"], tmp_path)
    found = {lines.file: lines for lines in line_coverage.python_lines(tmp_path)}
    assert found["bitdance/module.py"] == Lines("bitdance/module.py", 7, (15,))


PROGRAM = """
#include <cstdlib>
template <int N> int chosen(int a) {
    if (a > N)
        return 1;
    return 0;
}
int main(int count, char**) {
    int sum = chosen<5>(count);
    sum += chosen<0>(count);
    if (count > 9)
        std::abort();
    return sum == 1 ? 0 : 1;
}
"""


def test_lines_of_a_program_that_gcov_has_counted(tmp_path: Path) -> None:
    """A line counts as run if it has run in one instance of a template."""
    pytest.importorskip("gcovr")
    source, program = tmp_path / "csrc/a.cpp", tmp_path / "build/a"
    for path in (source, program):
        path.parent.mkdir()
    source.write_text(PROGRAM)
    command = ["g++", "--coverage", "-O1", "csrc/a.cpp", "-o", str(program)]
    try:
        subprocess.run(command, cwd=tmp_path, check=True)
    except FileNotFoundError:
        pytest.skip("no g++")
    subprocess.run([program], check=True)
    (found,) = line_coverage.native_lines(tmp_path)
    assert found.file == "csrc/a.cpp"
    assert found.missed == (12,)
    assert found.total >= 9
