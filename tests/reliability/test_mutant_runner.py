"""The runner of planted faults tells what became of each, and leaves no trace."""

import functools
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from bitdance_kernels._shared import native
from tests.mutants import __main__, records, runner
from tests.mutants.copies import BuildError, Copy
from tests.mutants.records import Mutant

ROOT = Path(__file__).parent.parent.parent
SOURCE = "def double(x):\n    return 2 * x\n\n\ndef triple(x):\n    return 3 * x\n"
TESTS = """
import time
import pytest
from package import double, triple

def test_double():
    assert double(2) == 4

def test_nothing():
    assert double is not triple

def test_that_waits():
    while double(1) != 2:
        time.sleep(0.01)

def test_that_dies():
    import os
    if double(1) != 2:
        os.abort()

@pytest.mark.skip
def test_skipped():
    assert double(2) == 4
"""


@pytest.fixture
def root(tmp_path):
    return make_root(tmp_path)


def make_root(folder):
    """A checkout of one module and its tests, beside things that a copy does not need."""
    root = folder / "root"
    (root / "tests").mkdir(parents=True)
    (root / "package.py").write_text(SOURCE)
    (root / "tests" / "test_it.py").write_text(TESTS)
    (root / "pyproject.toml").write_text("[tool.pytest.ini_options]\npythonpath = ['.']\n")
    for left_out in (".git/x", "build/x", "environment/pyvenv.cfg", "tests/__pycache__/x.pyc"):
        (root / left_out).parent.mkdir(parents=True, exist_ok=True)
        (root / left_out).write_text("")
    return root


@pytest.fixture(scope="module")
def kept_root(tmp_path_factory):
    return make_root(tmp_path_factory.mktemp("kept"))


@pytest.fixture(scope="module")
def copy(kept_root, tmp_path_factory):
    """A copy for tests that leave it as it was."""
    with small_copy(kept_root, tmp_path_factory.mktemp("copies")) as copy:
        yield copy


def small_copy(root, folder):
    return Copy(root, folder, preloaded=())


def mutant(*tests, name="a-fault", anchor="2 * x", replacement="2 + x * 2", **more):
    tests = tuple(f"tests/test_it.py::{test}" for test in tests)
    return Mutant("area", name, "what", "package.py", anchor, replacement, tests, **more)


def outcome(copy, fault, limit=60.0):
    (result,) = runner.run([fault], copy, limit=limit)
    return result.outcome, result.detail


def content(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_copy_has_what_tests_need_and_goes_away(root, tmp_path):
    with small_copy(root, tmp_path / "copies") as copy:
        names = {path.relative_to(copy.path).as_posix() for path in copy.path.rglob("*")}
        assert names == {"package.py", "pyproject.toml", "tests", "tests/test_it.py"}
    assert not any((tmp_path / "copies").iterdir())


def test_a_fault_is_caught_and_taken_out_again(kept_root, copy):
    before, times = content(kept_root), (copy.path / "package.py").stat().st_mtime_ns
    for fault in (mutant("test_double"), mutant("test_nothing", "test_double")):
        assert outcome(copy, fault) == ("caught", "tests.test_it::test_double")
        assert (copy.path / "package.py").read_text() == SOURCE
        assert (copy.path / "package.py").stat().st_mtime_ns == times
    assert content(kept_root) == before
    assert copy.run(["tests/test_it.py::test_double"], 60.0).status == 0, "no bytecode is left"


def test_a_fault_that_no_test_notices_survives(copy):
    found = outcome(copy, mutant("test_nothing"))
    assert found == ("survived", "1 tests pass")
    assert found[0] in runner.FAILURES


@pytest.mark.parametrize("anchor", ["4 * x", "* x", "return"])
def test_an_anchor_that_does_not_occur_once_is_lost(copy, anchor):
    what, detail = outcome(copy, mutant("test_double", anchor=anchor, replacement="y"))
    assert (what, detail) == ("anchor lost", "the anchor must occur once in package.py")
    assert what in runner.FAILURES


def test_tests_that_wait_for_ever_are_ended_and_said(copy):
    assert outcome(copy, mutant("test_that_waits"), limit=3.0)[0] == "caught, hung"
    assert (copy.path / "package.py").read_text() == SOURCE


def test_a_signal_that_ends_the_tests_is_named(copy):
    assert outcome(copy, mutant("test_that_dies")) == ("caught", "signal 6 ended the tests")


@pytest.mark.parametrize(
    ("fault", "expected", "detail"),
    [
        (mutant("test_skipped"), "not run", "all its tests are skipped here"),
        (mutant(equivalent="because"), "equivalent", "because"),
        (mutant("test_double", replacement="2 *"), "broken", "pytest ended with status"),
        (mutant("test_of_nothing"), "broken", "pytest ended with status 4"),
        (mutant("test_double", rebuild="cpu"), "not run", "the module cannot be built here"),
    ],
    ids=["skipped", "equivalent", "no syntax", "no test", "no compiler"],
)
def test_other_outcomes(copy, fault, expected, detail):
    what, why = outcome(copy, fault)
    assert what == expected
    assert detail in why
    assert (what in runner.FAILURES) == (what == "broken")


def test_tests_that_fail_without_a_fault_prove_nothing(root, tmp_path):
    (root / "package.py").write_text(SOURCE.replace("2 * x", "5 * x"))
    with small_copy(root, tmp_path / "copies") as copy:
        runner.check_unmutated(copy, [mutant("test_nothing"), mutant(equivalent="because")])
        with pytest.raises(runner.UnmutatedError, match="test_double"):
            runner.check_unmutated(copy, [mutant("test_nothing", "test_double")])


def test_copies_share_the_faults(root, tmp_path):
    faults = [mutant("test_double", name=f"fault-{i}") for i in range(4)]
    faults.append(mutant("test_nothing", name="noticed-by-none"))
    seen = []
    with small_copy(root, tmp_path / "a") as one, small_copy(root, tmp_path / "b") as other:
        results = runner.run(faults, one, other, report=seen.append)
    assert [result.mutant for result in results] == faults
    assert [result.outcome for result in results] == ["caught"] * 4 + ["survived"]
    assert sorted(map(str, seen)) == sorted(map(str, results))
    assert runner.summary(results).startswith("5 mutants: 4 caught, 1 survived; ")


RECORD = """
[[mutant]]
name = "{name}"
what = "doubles wrongly"
file = "package.py"
anchor = "{anchor}"
replacement = "3 * y"
tests = ["tests/test_it.py::{test}"]
"""


def command(root, monkeypatch, capsys, *arguments, **changes):
    """Exit status and what is printed for one record."""
    values = {"name": "a-fault", "anchor": "2 * x", "test": "test_double"} | changes
    (root / "faults").mkdir(exist_ok=True)
    (root / "faults" / "area.toml").write_text(RECORD.format(**values))
    monkeypatch.setattr(__main__, "ROOT", root)
    monkeypatch.setattr(__main__, "Copy", small_copy)
    monkeypatch.setattr(records, "load", lambda: LOAD(root / "faults"))
    status = __main__.main(list(arguments))
    printed = capsys.readouterr()
    return status, printed.out + printed.err


LOAD = records.load


def test_the_command(root, monkeypatch, capsys):
    run = functools.partial(command, root, monkeypatch, capsys)
    assert run("--list") == (0, "area/a-fault: doubles wrongly\n")
    status, printed = run("area", "--workers", "2")
    assert status == 0
    assert "without a fault all tests pass" in printed
    assert "1 mutants: 1 caught" in printed
    status, printed = run("a-*", "--trust", test="test_nothing")
    assert status == 1
    assert "survived" in printed
    assert "Noticed by no test" in printed
    status, printed = run("--trust", anchor="7 * x")
    assert status == 1
    assert "anchor lost" in printed
    assert run("--suites", "--list") == (0, ""), "no suite is known to notice it"
    assert run("--part", "2/2", "--trust") == (0, "0 mutants: none; 0.0 min; 0.0 min in all\n")
    assert run("--part", "3/2")[0] == 2
    status, printed = run("another")
    assert status == 2
    assert "no mutant is called 'another'" in printed


def test_what_is_wrong_with_records_is_listed(root):
    good = mutant("test_double")
    assert records.problems([good], root) == []
    for fault, problem in (
        (mutant("test_double", name="A b"), "the name must be of small letters"),
        (mutant("test_double", rebuild="all"), "rebuild must be 'cpu' or 'cuda'"),
        (mutant(), "either tests or a proof"),
        (mutant("test_double", equivalent="because"), "either tests or a proof"),
        (mutant("test_double", anchor="return"), "the anchor occurs 2 times in package.py"),
        (mutant("test_double", replacement="2 * x"), "the replacement is the anchor"),
        (mutant("test_of_nothing[a]"), "tests/test_it.py has no test_of_nothing"),
        (mutant(""), "must name a test function"),
        (
            mutant("test_double", suites=("tests/reliability/test_it.py::test_a",)),
            "there is no file",
        ),
    ):
        (found,) = records.problems([fault], root)
        assert problem in found
    assert records.problems([good, good], root) == ["a-fault is the name of several"]


def test_suites_take_the_place_of_own_tests(root):
    suite = "tests/reliability/test_it.py::test_all"
    known = mutant("test_double", suites=(suite,))
    (found,) = records.without_own_tests([known, mutant("test_double", name="another")])
    assert (found.tests, found.suites, found.name) == ((suite,), (), known.name)
    assert not found.quick
    elsewhere = mutant("test_double", suites=("tests/test_it.py::test_double",))
    (no_suite,) = records.problems([elsewhere], root)
    assert "is no suite of tests/reliability" in no_suite


@pytest.mark.parametrize("change", ["file = 'x'", "unknown = 1"])
def test_records_of_other_keys_are_refused(tmp_path, change):
    text = RECORD.format(name="a", anchor="b", test="c")
    if change.startswith("file"):
        text = text.replace('file = "package.py"', "")
        change = ""
    (tmp_path / "area.toml").write_text(text + change)
    with pytest.raises(ValueError, match=r"area.toml: a must have the keys"):
        records.load(tmp_path)


@pytest.mark.skipif(
    shutil.which(os.environ.get("CXX", "c++")) is None, reason="needs a C++ compiler"
)
def test_only_what_depends_on_a_fault_is_built_again(tmp_path):
    """And what was built without it is put back."""
    root = tmp_path / "root"
    for folder in ("bitdance_kernels", "csrc/cpu/a", "csrc/cpu/b", "csrc/bindings"):
        (root / folder).mkdir(parents=True)
    for name in ("setup.py", "pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, root)
    (root / "csrc/cpu/a/a.h").write_text("constexpr int kA = 1;\n")
    (root / "csrc/cpu/a/a.cpp").write_text('#include "cpu/a/a.h"\nint a() { return kA; }\n')
    (root / "csrc/cpu/b/b.cpp").write_text("int b() { return 2; }\n")
    (root / "csrc/bindings/module_cpu.cpp").write_text("")
    fault = Mutant("area", "a", "what", "csrc/cpu/a/a.h", "kA = 1", "kA = 7", rebuild="cpu")
    with small_copy(root, tmp_path / "copies") as copy:
        copy.prepare("cpu")
        objects = {path.name: path for path in copy.path.glob("build/temp.*/**/*.o")}
        assert objects.keys() == {"a.cpp.o", "b.cpp.o", "module_cpu.cpp.o"}
        before = {name: (p.read_bytes(), p.stat().st_mtime_ns) for name, p in objects.items()}
        with copy.planted(fault):
            assert objects["a.cpp.o"].read_bytes() != before["a.cpp.o"][0]
            assert objects["b.cpp.o"].stat().st_mtime_ns == before["b.cpp.o"][1]
        assert before == {n: (p.read_bytes(), p.stat().st_mtime_ns) for n, p in objects.items()}
        broken = Mutant("area", "b", "what", "csrc/cpu/a/a.h", "kA = 1", "kA = ", rebuild="cpu")
        with pytest.raises(BuildError, match="error"), copy.planted(broken):
            pass
        assert before == {n: (p.read_bytes(), p.stat().st_mtime_ns) for n, p in objects.items()}
    assert not list(root.glob("**/*.o"))


def test_the_tests_of_a_copy_import_the_copy():
    """However the checkout itself is installed."""
    code = "import bitdance, bitdance_kernels; print(bitdance.__file__, bitdance_kernels.__file__)"
    with Copy(ROOT, ROOT / "build") as copy:
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=copy.path, env=copy._environment(),
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert all(name.startswith(str(copy.path)) for name in done.stdout.split())
        built = native.cpu.unavailable() is None
        assert bool(list(copy.path.glob("bitdance_kernels/_cpu.*.so"))) == built
