"""`python -m tools.new_op` in a copy of the checkout: every suite accepts the skeleton at once."""

import difflib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tools.new_op.__main__ import into_block, main

ROOT = Path(__file__).parent.parent
NAME = "sign_power"


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    root = tmp_path_factory.mktemp("copy")
    # Not what git lists: the checkout may be a copy without it.
    left_out = (".*", "__pycache__", "build", "out", "site", "runs", "dist", "*.egg-info")
    left_out += ("bitdance_models", "golden", "results")
    shutil.copytree(ROOT, root, ignore=shutil.ignore_patterns(*left_out), dirs_exist_ok=True)
    (root / "tests/golden").symlink_to(ROOT / "tests/golden")
    main(["binary", NAME, "--root", str(root)])
    return root


def _pytest(root, *arguments):
    options = ["-p", "no:xdist", "-p", "no:cacheprovider", "-o", "addopts=", *arguments]
    command = [sys.executable, "-m", "pytest", *options]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    environment.pop("PYTEST_XDIST_WORKER", None)
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.nightly
def test_layout_contract_and_tables_accept_it(copy):
    """The C++ backend is not built here: it says so and the others are held to the contract."""
    drawing = [sys.executable, "docs/architecture.py"]  # of `make docs`
    subprocess.run(drawing, cwd=copy, env={**os.environ, "PYTHONPATH": str(copy)}, check=True)
    suites = ["layout", "contract", "results", "autocast", "overlap"]
    files = [f"tests/test_{suite}.py" for suite in suites]
    chosen = f"{NAME} or layout or test_every_op"
    out = _pytest(copy, *files, f"tests/ops/test_{NAME}.py", "-k", chosen, "-v")
    for needed in (f"_is_complete[{NAME}]", f"{NAME}-[300, 48] torch.float32"):
        assert needed in out


def test_it_enters_the_lines_in_order(copy):
    for path in ("bitdance_kernels/__init__.py", "csrc/bindings/module_cpu.cpp", "CHANGELOG.md",
                 "csrc/include/bitdance_kernels.h", "tests/test_results.py",
                 "docs/api/binary.md"):  # fmt: skip
        before, after = (root / path for root in (ROOT, copy))
        old, new = before.read_text().splitlines(), after.read_text().splitlines()
        changed = [line for line in difflib.ndiff(old, new) if line[0] in "+-"]
        assert any(NAME in line for line in changed)
        assert all(line == "+ " or (line[0] == "+" and "x^2" in line) or NAME in line
                   for line in changed), changed  # fmt: skip
        assert len(new) == len(old) + len(changed)
    text = '    "a.op": "a",\n    "c.op": "c",\n}\n'
    assert into_block(text, r"    .*,\n", '    "b.op": "b",\n').index('"b') < text.index('"c') + 1
    assert into_block(text, r"    .*,\n", '    "d.op": "d",\n').endswith('"d",\n}\n')


def test_a_backend_can_be_left_out(tmp_path):
    for path in ("bitdance_kernels/__init__.py", "CHANGELOG.md", "tests/test_results.py",
                 "docs/api/denoise.md"):  # fmt: skip
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / path, tmp_path / path)
    (tmp_path / "bitdance_kernels/denoise").mkdir()
    main(["denoise", NAME, "--without", "cpu", "--root", str(tmp_path)])
    package = tmp_path / "bitdance_kernels/denoise" / NAME
    assert {path.name for path in package.iterdir()} == {
        "__init__.py", "op.py", "reference.py", "triton.py",
    }  # fmt: skip
    order = 'order={"cuda": ("triton", "reference"), "cpu": ("reference",)}'
    assert order in (package / "op.py").read_text()
    assert not (tmp_path / "csrc").exists()


@pytest.mark.parametrize(
    ("name", "message"), [("Sign", "must be lower case"), ("swiglu", "there is an op swiglu")]
)
def test_bad_names_are_refused(name, message, capsys):
    with pytest.raises(SystemExit):
        main(["binary", name])
    assert message in capsys.readouterr().err
