"""Device code of CUDA kernels as C++ on the CPU: see card.h."""

import ctypes
import os
import platform
import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent
CXX = shutil.which(os.environ.get("CXX", "g++"))

needs_compiler = pytest.mark.skipif(
    CXX is None or platform.machine() != "x86_64", reason="needs a C++ compiler with _Float16"
)


def build(name: str, folder: Path) -> ctypes.CDLL:
    """Compile `name`.cpp of this folder; warnings are errors."""
    library = folder / f"{name}.so"
    command = [CXX, "-O1", "-std=c++17", "-shared", "-fPIC", "-Wall", "-Wextra", "-Werror"]
    csrc = HERE.parents[1] / "csrc"
    command += ["-Wno-unknown-pragmas", "-Wno-psabi"]
    command += [f"-I{folder}" for folder in (HERE, csrc, csrc / "include")]
    subprocess.run([*command, HERE / f"{name}.cpp", "-o", library], check=True)
    return ctypes.CDLL(str(library))
