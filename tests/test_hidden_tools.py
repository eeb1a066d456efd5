"""The suites without nvcc and without a compiler leave out what is the same there, and no more."""

import ast
import re
import types

import pytest

from tests import conftest, hidden_tools
from tests.hidden_tools import FEW, HERE, TOOLS, is_of_triton, leaves_out

ROOT = HERE.parent
FILES = sorted(HERE.rglob("test_*.py"))


@pytest.mark.parametrize("tool", TOOLS)
def test_what_builds_and_chooses_backends_runs_again(tool):
    needed = ("build", "native", "dispatch", "env_report", "contract", "defaults", "launches")
    for name in needed:
        assert not leaves_out(tool, HERE / f"test_{name}.py"), name
    for folder in ("cli", "sampling"):
        found = [path for path in FILES if path.parent == HERE / "model" / folder]
        assert any(not leaves_out(tool, path) for path in found), folder


def test_without_a_compiler_models_and_ops_run_on_what_is_left():
    for folder in ("ops", "model/models", "model/pipelines", "model/sampling", "model/training"):
        for path in (HERE / folder).rglob("test_*.py"):
            if not re.search(r"_(kernels|cuda|sm90)\.py$", path.name):
                assert not leaves_out("compiler", path), path


def test_a_file_that_names_the_cuda_module_runs_again(tmp_path, monkeypatch):
    monkeypatch.setattr(hidden_tools, "HERE", tmp_path)
    for text, kept in (
        ("native.cuda.pack_signs(x)", True),
        ("shutil.which('nvcc')", True),
        ("NVCC = 1", True),
        ("explain(pack_signs, x)", True),
        ("op.unavailable(name)", True),
        ("device = 'cuda'", True),
        ("pack_signs(x)", False),
    ):
        path = tmp_path / f"test_{abs(hash(text))}.py"
        path.write_text(text)
        assert leaves_out("nvcc", path) is not kept, text
        assert not leaves_out("compiler", path)


def test_code_whose_tests_are_left_out_calls_few_ops():
    """Without a compiler, and these ops on every backend are held by tests of their own."""
    for folder in ("data", "io", "evaluation"):
        for path in (ROOT / "bitdance" / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.ImportFrom) and node.module.startswith("bitdance_kernels"):
                    assert {alias.name for alias in node.names} <= set(FEW), path
                if isinstance(node, ast.Import):
                    names = [alias.name.partition(".")[0] for alias in node.names]
                    assert "bitdance_kernels" not in names, path


def test_tests_of_tritons_kernels_are_told_from_others():
    assert is_of_triton("tests/test_contract.py::test_matches[triton-swiglu-300]")
    assert is_of_triton("tests/ops/test_swiglu.py::test_extremes[triton]")
    assert not is_of_triton("tests/ops/test_swiglu.py::test_extremes[cpu]")
    assert not is_of_triton("tests/test_dispatch.py::test_triton_is_named")


def test_of_each_test_one_case_is_left_that_can_run():
    tests = [
        "tests/ops/test_swiglu.py::test_extremes[triton]",
        "tests/ops/test_swiglu.py::test_extremes[cpu]",
        "tests/ops/test_swiglu.py::test_extremes[reference]",
        "tests/ops/test_swiglu.py::test_extremes[other]",
        "tests/ops/test_swiglu.py::test_alone",
        "tests/ops/test_swiglu.py::test_isas[cpu-1]",
        "tests/ops/test_swiglu.py::test_isas[cpu-2]",
        "tests/test_dispatch.py::test_ops[swiglu]",
        "tests/test_dispatch.py::test_ops[rope]",
    ]
    left_out = hidden_tools.left_out(tests)
    assert [test for test in tests if test not in left_out] == [tests[i] for i in (2, 4, 5, 7, 8)]


def test_every_rule_is_of_something():
    for name in hidden_tools._SAME:
        assert (HERE / name).exists(), name
    for name in hidden_tools._ALL_CASES:
        assert (ROOT / name).exists(), name
    for folder in hidden_tools._WITHOUT_KERNELS:
        assert list((HERE / folder).glob("test_*.py")), folder


@pytest.mark.parametrize(
    ("arguments", "nightly", "expected"),
    [
        (["tests"], False, ["quick"]),
        (["tests"], True, ["quick", "long"]),
        (["tests/test_x.py::long"], False, ["quick", "long"]),
    ],
)
def test_long_tests_run_where_they_are_asked_for(arguments, nightly, expected):
    class Item:
        path = HERE / "test_x.py"

        def __init__(self, name, *markers):
            self.name, self.markers = name, markers

        def get_closest_marker(self, marker):
            return marker if marker in self.markers else None

    left = []
    options = {"--nightly": nightly}
    config = types.SimpleNamespace(
        args=arguments,
        getoption=lambda name, default=None: options.get(name, default),
        hook=types.SimpleNamespace(pytest_deselected=lambda items: left.extend(items)),
    )
    items = [Item("quick"), Item("long", "nightly")]
    conftest.pytest_collection_modifyitems(config, items)
    assert [i.name for i in items] == expected
    assert len(items) + len(left) == 2


def test_the_first_suite_leaves_out_nothing_else():
    makefile = (ROOT / "Makefile").read_text()
    (first,) = re.findall(r"^test: venv\n((?:\t.*\n)+)", makefile, re.MULTILINE)
    assert "--without" not in first
    assert "-m " not in first.replace("-m pytest", "")
    assert "tests\n" in first
    assert makefile.count("--without $*") == 1
