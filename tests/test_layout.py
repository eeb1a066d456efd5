"""Layout: one package per op with the same files in each, and imports that run one way."""

import ast
import importlib
import re
from pathlib import Path

import pytest

import bitdance_kernels
from bitdance_kernels._dispatch.backends import BACKENDS
from bitdance_kernels._dispatch.op import REGISTRY
from docs import architecture
from tests.cases import all_cases

ROOT = Path(__file__).parent.parent
KERNELS = ROOT / "bitdance_kernels"
PACKAGES = sorted(path.parent for path in KERNELS.glob("*/*/op.py"))
EACH = pytest.mark.parametrize("folder", PACKAGES, ids=lambda folder: folder.name)
HEADER = "".join(path.read_text() for path in (ROOT / "csrc/include").glob("*.h"))
SOURCES = [
    path
    for folder in ("bitdance_kernels", "bitdance", "benchmarks", "tests", "csrc")
    for path in (ROOT / folder).rglob("*")
    if path.suffix in (".py", ".cpp", ".cu", ".cuh", ".h")
]


def _package(folder):
    return ".".join(folder.relative_to(ROOT).parts)


def _imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@EACH
def test_op_is_complete(folder):
    name = folder.name
    for needed in (
        folder / "__init__.py",
        folder / "reference.py",
        ROOT / f"tests/ops/test_{name}.py",
        ROOT / f"tests/cases/{name}.py",
    ):
        assert needed.exists(), f"{needed.relative_to(ROOT)} is missing"
    public = importlib.import_module(f"{_package(folder)}.op").__all__
    assert name in public
    for function in public:
        assert function in bitdance_kernels.__all__
        assert hasattr(bitdance_kernels, function)


def test_type_checkers_see_the_public_names():
    """The imports that only they see give the names of the table."""
    seen = []
    for node in ast.walk(ast.parse((KERNELS / "__init__.py").read_text())):
        if isinstance(node, ast.ImportFrom) and node.module.startswith("bitdance_kernels"):
            names = [alias.asname or alias.name for alias in node.names]
            seen += importlib.import_module(node.module).__all__ if names == ["*"] else names
    assert sorted(seen) == bitdance_kernels.__all__


@EACH
def test_op_has_the_backends_it_lists_and_no_other_file(folder):
    ops = [op for op in REGISTRY.values() if op.package == _package(folder)]
    listed = {backend for op in ops for backend in op.backends}
    files = {path.stem for path in folder.glob("*.py")} - {"__init__", "op", "config"}
    assert listed <= set(BACKENDS)
    assert {f for f in files if not f.startswith("_")} == listed
    for op in ops:
        for backend in op.backends:
            tree = ast.parse((folder / f"{backend}.py").read_text())
            functions = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
            assert f"run{op.entry}" in functions, (op.name, backend)
            if backend != "reference":
                assert f"unsupported{op.entry}" in functions, (op.name, backend)


@EACH
def test_op_imports_only_what_lies_below_it(folder):
    family = _package(folder).rsplit(".", 1)[0]
    for path in folder.glob("*.py"):
        for module in _imports(path):
            if not module.startswith("bitdance"):
                continue
            assert module.startswith("bitdance_kernels"), f"{path}: {module}"
            # An op may use the helpers of its family, not another op.
            other = re.match(rf"{re.escape(family)}\.(\w+)", module)
            if other and (KERNELS / family.split(".")[1] / other[1] / "op.py").exists():
                assert other[1] == folder.name, f"{path} imports another op: {module}"
            if path.stem in BACKENDS:
                assert not module.endswith(".op"), f"{path}: a backend imports its op"
                assert module.rsplit(".", 1)[-1] not in set(BACKENDS) - {"reference"}, (
                    f"{path}: a backend imports another backend"
                )


def test_the_model_layer_uses_only_public_names():
    for path in (ROOT / "bitdance").rglob("*.py"):
        for module in _imports(path):
            if module.startswith("bitdance_kernels"):
                rest = module.split(".")[1:]
                assert len(rest) <= 1, f"{path} reaches into {module}"
                private = rest and rest[0].startswith("_") and rest != ["__version__"]
                assert not private, f"{path} reaches into {module}"


LEVELS = (
    ("io",), ("distributed", "models"), ("sampling", "data"), ("pipelines",),
    ("training", "evaluation"), ("integrations",), ("cli",),
)  # fmt: skip
"""Rooms of bitdance; a module imports from its own and from lower levels."""
LEVEL = {folder: i for i, level in enumerate(LEVELS) for folder in level}


def test_folders_of_the_model_layer_are_those_of_the_design():
    entries = {path.name for path in (ROOT / "bitdance").iterdir()} - {"__pycache__"}
    rooms = set(LEVEL) - {"distributed"}  # one module
    assert entries == {"__init__.py", "py.typed", "distributed.py", *rooms}


def test_arrows_of_the_model_layer_run_one_way():
    """Also those of imports inside functions, and for type checkers alone."""
    wrong = []
    for module, imported in architecture.imports(ROOT / "bitdance").items():
        folder = module.split(".")[1] if "." in module else ""
        for other in imported if folder else ():
            below = other.split(".")[1]
            if below != folder and LEVEL[below] >= LEVEL[folder]:
                wrong.append(f"{module} imports {other}")
    assert not wrong, wrong


@pytest.mark.parametrize("package", ["bitdance", "bitdance_kernels", "benchmarks"])
def test_no_modules_import_each_other_in_a_circle(package):
    arrows = architecture.imports(ROOT / package)
    done, path = set(), []

    def visit(module):
        assert module not in path, " -> ".join([*path[path.index(module) :], module])
        if module not in done:
            path.append(module)
            for other in sorted(arrows.get(module, ())):
                visit(other)
            done.add(path.pop())

    for module in sorted(arrows):
        if module != package:  # its names come from all modules
            visit(module)


def test_the_loading_of_models_knows_no_networks():
    """So that the networks' from_pretrained may use it."""
    arrows = architecture.imports(ROOT / "bitdance")
    for module, imported in arrows.items():
        if module.startswith("bitdance.models.loading"):
            above = {m for m in imported if m.startswith("bitdance.models.")}
            above = {m for m in above if not m.startswith("bitdance.models.loading")}
            assert above <= {"bitdance.models.config", "bitdance.models.presets"}, module


def test_tests_of_the_model_layer_mirror_its_folders():
    folders = {path.name for path in (ROOT / "tests/model").iterdir() if path.is_dir()}
    assert folders - {"__pycache__", "helpers"} <= set(LEVEL)


def test_the_page_on_the_architecture_names_what_is_there():
    text = architecture.PAGE.read_text()
    named = re.findall(r"`((?:bitdance|bitdance_kernels|csrc)/[\w./]+)`", text)
    assert len(named) > 20
    assert not [path for path in named if not (ROOT / path).exists()]
    for function, path in re.findall(r"`(\w+)` in `([\w./]+\.py)`", text):
        assert re.search(rf"^(def|class) {function}\b", (ROOT / path).read_text(), re.MULTILINE), (
            path
        )


def test_the_drawing_of_the_architecture_is_up_to_date():
    assert architecture.PAGE.read_text() == architecture.build(), "run `make docs`"


def test_the_kernels_do_not_know_the_model():
    for path in KERNELS.rglob("*.py"):
        for module in _imports(path):
            assert module != "bitdance", path
            assert not module.startswith(("bitdance.", "benchmarks", "tests")), (path, module)


def test_every_case_has_an_op_and_every_public_op_a_case():
    public = {
        f for folder in PACKAGES for f in importlib.import_module(f"{_package(folder)}.op").__all__
    }
    operators = {name for name in public if name in REGISTRY}
    assert set(all_cases()) == operators


def test_every_exported_c_function_is_declared_once_and_defined():
    declared = re.findall(r"^(?:int|const char\*) (bdk_\w+)\(", HEADER, re.MULTILINE)
    assert len(declared) == len(set(declared))
    code = "\n".join(
        path.read_text() for path in (ROOT / "csrc").rglob("*") if path.suffix in (".cpp", ".cu")
    )
    defined = re.findall(r"^(?:int|const char\*) (bdk_\w+)\(", code, re.MULTILINE)
    assert sorted(declared) == sorted(defined)


def test_folders_of_csrc_mirror_the_ops():
    names = {folder.name for folder in PACKAGES}
    for side in ("cpu", "cuda"):
        entries = list((ROOT / "csrc" / side).iterdir())
        assert all(entry.is_dir() for entry in entries), side
        assert {entry.name for entry in entries} <= names | {"common"}, side


def test_csrc_knows_neither_torch_nor_python_outside_its_bindings():
    for path in (ROOT / "csrc").rglob("*"):
        if path.is_file() and path.parent.name != "bindings":
            text = path.read_text()
            assert not re.search(r"#include\s*[<\"](torch|ATen|c10|Python|pybind11)", text), path


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_file_is_longer_than_500_lines(path):
    assert len(path.read_text().splitlines()) <= 500


def test_changelog_names_this_version():
    assert f"## {bitdance_kernels.__version__}" in (ROOT / "CHANGELOG.md").read_text()
