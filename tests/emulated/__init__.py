"""Device code of CUDA kernels as C++ on the CPU: see card.h."""

import contextlib
import ctypes
import fcntl
import functools
import hashlib
import os
import platform
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

HERE = Path(__file__).parent
CXX = shutil.which(os.environ.get("CXX", "g++"))
SETARCH = shutil.which("setarch")

needs_compiler = pytest.mark.skipif(
    CXX is None or platform.machine() != "x86_64", reason="needs a C++ compiler with _Float16"
)


CSRC = HERE.parents[1] / "csrc"
MADE = HERE.parents[1] / "build" / "emulated"
"""Compiled programs by the digest of what they are made of; a later run compiles nothing again."""
_KEPT = 400
_SOURCES = (".cpp", ".cu", ".cuh", ".h")
FLAGS = ["-O1", "-std=c++17", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas", "-Wno-psabi"]


def build(name: str, folder: Path, changed: Path | None = None) -> ctypes.CDLL:
    """Compile `name`.cpp of this folder; warnings are errors.

    Args:
        name: name of the program.
        folder: where to put the library.
        changed: include path for changed device code, searched before csrc.
    """
    library = folder / f"{name}.so"
    _compile(["-shared", "-fPIC", *_first(changed), HERE / f"{name}.cpp"], library)
    return ctypes.CDLL(str(library))


def build_once(name: str, factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """`build` as it is, by the first of all workers of a run that needs it."""
    folder = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    with (folder / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / f"{name}.so").exists():
            return build(name, folder)
    return ctypes.CDLL(str(folder / f"{name}.so"))


def plant(header: str, text: str, fault: str, folder: Path) -> None:
    """Write a copy of a header of csrc to `folder`, with `fault` in place of `text`."""
    source = (CSRC / header).read_text()
    assert source.count(text) == 1, f"{header} must have one {text!r}"
    (folder / header).parent.mkdir(parents=True, exist_ok=True)
    (folder / header).write_text(source.replace(text, fault))


def races(kernel: str, folder: Path, changed: Path | None = None) -> str:
    """Findings of ThreadSanitizer for a kernel of races.cpp, "" if there are none.

    Args:
        kernel: name of its op's package.
        folder: where to put the program.
        changed: include path for changed device code, searched before csrc.
    """
    program, suppressed = folder / kernel, folder / "suppressed"
    # Suppress accesses of the emulation itself, but not those it makes for a kernel.
    suppressed.write_text("race_top:^std::\nrace_top:emulated::\nrace_top:Index::\n")
    options = ["-g", "-fsanitize=thread", f"-D{kernel.upper()}", *_first(changed)]
    _compile([*options, HERE / "races.cpp"], program)
    environment = {**os.environ, "TSAN_OPTIONS": f"suppressions={suppressed}"}
    # With randomized addresses the sanitizer refuses to start on some Linux kernels.
    command = [*([SETARCH, "-R"] if SETARCH else []), program]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return ""
    found = re.findall("SUMMARY: ThreadSanitizer: (data race .*)", done.stderr)
    if not found:
        raise RuntimeError(done.stderr)
    return "\n".join(found)


def _first(changed: Path | None) -> list[str]:
    """Include paths to search before the others, for a program with a planted fault."""
    return [] if changed is None else ["-DPLANTED", f"-I{HERE}", f"-I{changed}"]


def _compile(arguments: list[str | Path], output: Path) -> None:
    """Compile, or copy what an earlier run has made of the same arguments and sources."""
    folders = [f"-I{folder}" for folder in (HERE, CSRC, CSRC / "include")]
    made = MADE / _digest(arguments)
    if not made.exists():
        subprocess.run([CXX, *FLAGS, *arguments, *folders, "-o", output], check=True)
        MADE.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=MADE, delete=False) as file:
            file.write(output.read_bytes())
        os.chmod(file.name, 0o755)
        os.replace(file.name, made)
        _forget(MADE, _KEPT)
        return
    made.touch()  # it is in use
    shutil.copy(made, output)  # no link: a library that is loaded twice has its state twice


def _digest(arguments: list[str | Path]) -> str:
    """Of the compiler, the arguments, and every source that they can include."""
    digest = hashlib.sha256(f"{_version()} {platform.machine()} {FLAGS}".encode())
    folders = [HERE, CSRC]
    for argument in map(str, arguments):
        path = Path(argument.removeprefix("-I"))
        if argument.startswith("-I") and path != HERE:
            folders.append(path)  # of changed headers, whose place does not matter
        else:
            digest.update(argument.replace(str(HERE), "").encode())
    for folder in folders:
        for path in sorted(p for p in folder.rglob("*") if p.suffix in _SOURCES):
            digest.update(f"{path.relative_to(folder)} ".encode())
            digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


@functools.cache
def _version() -> str:
    done = subprocess.run([CXX, "--version"], capture_output=True, text=True, check=True)
    return done.stdout.partition("\n")[0]


def _forget(folder: Path, kept: int) -> None:
    """Delete all but the files that were used last."""
    with contextlib.suppress(FileNotFoundError):  # another worker may do the same
        for path in sorted(folder.iterdir(), key=lambda path: path.stat().st_mtime)[:-kept]:
            path.unlink()
