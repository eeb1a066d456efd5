"""Sessions in environments of their own: every supported Python with every supported PyTorch.

``nox -s torch`` runs a part of the suite, most of it about what PyTorch does with ops, for each
pair; ``nox -s 'torch-3.12(2.10.0)'`` for one. ``nox -s numpy`` builds the C++ module and packs bits
on each Python without PyTorch.

PyTorch's packages are CPU builds and come from one place alone, never from pip's default index,
where they bring gigabytes of CUDA:

* BITDANCE_TORCH_INDEX: address of PyTorch's index of CPU builds, as its installation page has it,
* or BITDANCE_TORCH_WHEELS: a folder of wheels.

A session for which that place has no wheel fails, and says so; one without a place is skipped.
Everything else is of the versions in constraints.txt.
"""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import nox

nox.needs_version = ">=2025.2"
nox.options.sessions = ["numpy", "torch"]
nox.options.error_on_missing_interpreters = False

ROOT = Path(__file__).parent
PYTHONS = ("3.10", "3.11", "3.12", "3.13")
TORCHES = ("2.10.0", "2.11.0", "2.12.1", "2.13.0", "2.14.1", "2.15.0")
BUILD = ("setuptools>=77", "wheel", "pybind11>=2.13")
TOOLS = ("hypothesis", "ml_dtypes", "pytest", "pytest-timeout", "pyyaml")
SUITE = (
    "tests/test_contract.py", "tests/test_transforms.py", "tests/test_gradient.py",
    "tests/test_dispatch.py", "tests/test_defaults.py", "tests/test_autocast.py",
    "tests/test_overlap.py", "tests/test_native.py", "tests/test_numpy_front.py",
    "tests/reliability/test_properties.py", "tests/reliability/test_torch_matrix.py",
    "tests/model/pipelines/test_class_conditional.py",
)  # fmt: skip


@nox.session(python=PYTHONS)
@nox.parametrize("version", TORCHES, ids=TORCHES)
def torch(session: nox.Session, version: str) -> None:
    """A part of the suite with one version of PyTorch."""
    index, wheels = (os.environ.get(f"BITDANCE_TORCH_{name}") for name in ("INDEX", "WHEELS"))
    if not (index or wheels):
        session.skip("neither BITDANCE_TORCH_INDEX nor BITDANCE_TORCH_WHEELS is set")
    place = ("--no-index", "--find-links", wheels) if wheels else ("--index-url", index)
    # Without what it needs, which the index of CPU builds has in other versions.
    session.install("--no-deps", "--only-binary=:all:", *map(str, place), f"torch=={version}")
    constraints = _constraints(session, version)
    session.install("-c", constraints, *BUILD)
    copy = _copy(session)
    session.install("-c", constraints, *TOOLS, "--no-build-isolation", f"{copy}[triton]",
                    env={"BITDANCE_BUILD_CUDA": "0", "CXX": "/hidden/c++"})  # fmt: skip
    session.chdir(copy)
    _build(session)
    is_cpu = "import torch; assert torch.version.cuda is None, torch.version.cuda"
    session.run("python", "-c", is_cpu)
    # A package in the copy stands before the one that is installed, which has no C++ module.
    session.run("python", "-m", "bitdance_kernels", env={"PYTHONPATH": str(copy)})
    session.run("python", "-m", "pytest", "-m", "not slow", *(session.posargs or SUITE),
                env={"PYTHONPATH": str(copy)})  # fmt: skip


@nox.session(python=PYTHONS)
def numpy(session: nox.Session) -> None:
    """The C++ module and the functions of NumPy, without PyTorch."""
    session.install("-c", _constraints(session, None), *BUILD, "numpy")
    session.chdir(_copy(session))
    _build(session)
    session.run("python", "-m", "compileall", "-qq", "bitdance_kernels", "bitdance", "tests")
    session.run("python", "-m", "tests.without_torch")


def _constraints(session: nox.Session, torch: str | None) -> str:
    """The file of constraints.txt with another version of PyTorch, or none."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    kept = [line for line in lines if not re.match(r"torch(vision)?==", line)]
    path = Path(session.create_tmp()) / "constraints.txt"
    path.write_text("\n".join([*kept, *([f"torch=={torch}"] if torch else [])]) + "\n")
    return str(path)


def _copy(session: nox.Session) -> Path:
    """A copy of the files under version control, so that sessions do not share objects."""
    copy = Path(session.create_tmp()) / "checkout"
    shutil.rmtree(copy, ignore_errors=True)
    listed = session.run("git", "ls-files", "-z", external=True, silent=True) or ""
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, copy / name)
    return copy


def _build(session: nox.Session) -> None:
    options = {"BITDANCE_BUILD_CUDA": "0", "BITDANCE_BUILD_STRICT": "1"}
    session.run("python", "setup.py", "-q", "build_ext", "--inplace", env=options)
