"""setup.py on machines that lack a tool, or whose compiler fails."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture
def checkout(tmp_path):
    """A copy of what a build needs."""
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    for name in ("csrc", "bitdance_kernels", "bitdance"):
        ignore = shutil.ignore_patterns("*.so", "__pycache__", "assets")
        shutil.copytree(ROOT / name, tmp_path / name, ignore=ignore)
    return tmp_path


def _build(checkout, **environment):
    return subprocess.run(
        [sys.executable, "setup.py", "build_ext", "--inplace"],
        cwd=checkout,
        env={**os.environ, "BITDANCE_BUILD_STRICT": "0", **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def _modules(checkout):
    return {path.name.split(".")[0] for path in (checkout / "bitdance_kernels").glob("*.so")}


def _report(checkout):
    code = (
        "import bitdance_kernels as bk, torch; "
        "x = torch.ones(8); print(bk.pack_signs(x).item(), bk.explain(bk.pack_signs, x)['cpu'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=checkout,
        env={**os.environ, "PYTHONPATH": str(checkout)},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


def test_without_compiler_and_nvcc(checkout):
    done = _build(checkout, CXX="/hidden/c++", NVCC="/hidden/nvcc")
    assert done.returncode == 0, done.stderr
    assert "no C++ compiler, so no native module is built" in done.stderr
    assert _modules(checkout) == set()
    assert "255 it was not built (no C++ compiler was found at installation)" in _report(checkout)


def test_a_failing_compiler_leaves_the_module_out(checkout):
    broken = checkout / "broken-c++"
    broken.write_text("#!/bin/sh\nexit 1\n")
    broken.chmod(0o755)
    done = _build(checkout, CXX=str(broken), BITDANCE_BUILD_CUDA="0")
    assert done.returncode == 0, done.stderr
    assert "bitdance_kernels._cpu is left out, it failed to build" in done.stderr
    assert _modules(checkout) == set()
    strict = _build(checkout, CXX=str(broken), BITDANCE_BUILD_CUDA="0", BITDANCE_BUILD_STRICT="1")
    assert strict.returncode != 0


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"BITDANCE_BUILD_CUDA": "yes"}, "BITDANCE_BUILD_CUDA must be auto, 0 or 1, got 'yes'"),
        ({"BITDANCE_BUILD_CUDA": "1", "NVCC": "/hidden/nvcc"}, "but nvcc was not found"),
        ({"BITDANCE_CUDA_ARCHS": "hopper"}, "'hopper' is no compute capability like 80 or 90a"),
    ],
)
def test_wrong_settings_are_refused(checkout, environment, message):
    if shutil.which(os.environ.get("CXX", "c++")) is None:
        environment = {**environment, "CXX": sys.executable}  # any program: nothing is compiled
    done = _build(checkout, **environment)
    assert done.returncode != 0
    assert message in done.stderr
