"""How lines are counted; `make coverage` counts them."""

from __future__ import annotations

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
