"""setup.py on machines that lack a tool, or whose compiler fails."""

import ast
import os
import platform
import re
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
        ignore = shutil.ignore_patterns("*.so", "__pycache__")
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


def _setup_constant(name):
    """A list or dict that setup.py defines, without running it."""
    tree = ast.parse((ROOT / "setup.py").read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == name:
            return ast.literal_eval(node.value)
    raise LookupError(name)


@pytest.mark.skipif(shutil.which("g++") is None, reason="GCC reports which loops it vectorised")
@pytest.mark.skipif(platform.machine() != "x86_64", reason="AVX2")
@pytest.mark.parametrize("op", ["adaln_norm", "gated_residual", "patch_attention", "swiglu"])
def test_loops_over_channels_are_vectorised(op, tmp_path):
    """One that is not takes several times as long, and nothing else tells."""
    folder = ROOT / "csrc"
    command = ["g++", "-c", folder / "cpu" / op / f"{op}_avx2.cpp", "-o", tmp_path / "out.o"]
    command += [f"-I{folder}", f"-I{folder / 'include'}", "-fopenmp", "-fopt-info-vec-optimized"]
    command += [*_setup_constant("CXX_FLAGS"), *_setup_constant("ISA_FLAGS")["_avx2"]]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = re.findall(r"(\w+\.h):(\d+):\d+: optimized: loop vectorized", done.stderr)
    vectorised = {int(line) for name, line in lines if name == f"{op}.h"}
    source = (folder / "cpu" / op / f"{op}.h").read_text(encoding="utf-8").splitlines()
    marked = {n + 2 for n, text in enumerate(source) if text.startswith("#pragma omp simd")}
    assert marked
    for line in marked:  # GCC names the loop or the first of its statements that it kept
        assert vectorised & set(range(line, line + 3)), line


def test_no_source_asks_for_a_card_before_blackwell():
    """They share one PTX, so that what only Hopper has would be left out without a word."""
    for path in (ROOT / "csrc").rglob("*"):
        if path.is_file():
            assert not re.search(r"__CUDA_ARCH__\s*[<>=]", path.read_text()), path
