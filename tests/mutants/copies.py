"""A copy of a checkout: faults are planted there, never in the checkout itself."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.mutants.records import Mutant

__all__ = ["BuildError", "Copy", "TestRun"]

# What a copy does not need. Folders of virtual environments go by whatever name; see `_unneeded`.
_LEFT_OUT = {".git", "build", "dist", "out", "runs", "site"}
_CACHES = ("__pycache__", ".hypothesis", ".mypy_cache", ".pytest_cache", ".ruff_cache")
_REPORT = "mutants-report.xml"
_SERVER = Path(__file__).with_name("server.py")

PRELOADED = (
    # First, since it sets what PyTorch and Triton read from the environment.
    "tests.conftest",
    "hypothesis",
    "torch.testing",
    "PIL.Image",
    "pydantic",
    "safetensors.torch",
)
"""Modules that take most of the time of a small test to import."""


class BuildError(RuntimeError):
    """A native module could not be built; the message is the compiler's."""


@dataclass(frozen=True)
class TestRun:
    """Result of a run of tests.

    Attributes:
        status: exit status of pytest; negative if a signal ended it, None if time ran out.
        ran: number of tests that ran, skipped ones not counted.
        failed: ids of those that failed.
        output: end of what was printed.
    """

    __test__ = False  # no class of tests

    status: int | None
    ran: int
    failed: tuple[str, ...]
    output: str


class Copy:
    """A copy of a checkout with its native modules, in a temporary folder.

    Args:
        root: root of the checkout.
        folder: where to make the temporary folder.
        preloaded: modules that are imported once for all runs of tests; none of the library, and
            none that a fault changes. Those that do not exist are left out.

    Attributes:
        path: root of the copy.
    """

    def __init__(self, root: Path, folder: Path, *, preloaded: Sequence[str] = PRELOADED) -> None:
        self.root, self._preloaded = root, preloaded
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = Path(tempfile.mkdtemp(prefix="mutants-", dir=folder))
        self.path = self._folder / "checkout"
        shutil.copytree(root, self.path, ignore=_unneeded, symlinks=True)
        self._kept: dict[str, Path] = {}
        self._server: subprocess.Popen[str] | None = None

    def __enter__(self) -> Copy:
        return self

    def __exit__(self, *_: object) -> None:
        if self._server is not None:
            self._server.communicate()  # the end of its input ends it
        shutil.rmtree(self._folder, ignore_errors=True)

    @contextlib.contextmanager
    def planted(self, mutant: Mutant) -> Iterator[None]:
        """A context in which the fault is in the copy, and in its native modules.

        Raises:
            BuildError: the code with the fault does not compile.
            ValueError: the anchor does not occur exactly once.
        """
        path = self.path / mutant.file
        text, times = path.read_text(encoding="utf-8"), path.stat()
        changed = mutant.planted(text)
        if changed is None:
            raise ValueError(f"the anchor must occur once in {mutant.file}")
        try:
            _forget_compiled(path)
            path.write_text(changed, encoding="utf-8")
            if mutant.rebuild:
                self._build(mutant.rebuild)
            yield
        finally:
            path.write_text(text, encoding="utf-8")
            # With its time, or everything that depends on it would be built again.
            os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
            _forget_compiled(path)
            if mutant.rebuild:
                self._restore(mutant.rebuild)
            shutil.rmtree(self.path / ".hypothesis", ignore_errors=True)

    def prepare(self, module: str) -> None:
        """Build a native module without faults, of which only what has changed is built later.

        Raises:
            BuildError: it cannot be built here.
        """
        if module in self._kept:
            return
        for objects in self.root.glob(f"build/temp.*/bitdance_kernels._{module}"):
            target = self.path / objects.relative_to(self.root)
            shutil.copytree(objects, target, dirs_exist_ok=True)
        self._build(module)
        kept = self._folder / module
        for path in self._built(module):
            _copy(path, kept / path.relative_to(self.path))
        self._kept[module] = kept

    def _build(self, module: str) -> None:
        for library in self._libraries(module):
            library.unlink()
        environment = self._environment() | {"BITDANCE_BUILD_CUDA": str(int(module == "cuda"))}
        # Warnings are no errors: a fault may leave a variable without use.
        environment.pop("BITDANCE_BUILD_STRICT", None)
        done = subprocess.run(
            [sys.executable, "setup.py", "-q", "build_ext", "--inplace"],
            cwd=self.path, env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode or not any(self.path.glob(f"bitdance_kernels/_{module}.*.so")):
            raise BuildError(f"{done.stdout}{done.stderr}"[-4000:])

    def _restore(self, module: str) -> None:
        for path in self._built(module):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        kept = self._kept[module]
        for path in self._built(module, kept):
            _copy(path, self.path / path.relative_to(kept))

    def _built(self, module: str, root: Path | None = None) -> list[Path]:
        """The libraries of a module, and the folder of its objects."""
        root = root or self.path
        objects = root.glob(f"build/temp.*/bitdance_kernels._{module}")
        return [*self._libraries(module, root), *objects]

    def _libraries(self, module: str, root: Path | None = None) -> list[Path]:
        """That of the package, and the one that setuptools copies there, even if it is old."""
        folders = ("bitdance_kernels", "build/lib.*/bitdance_kernels")
        found = ((root or self.path).glob(f"{folder}/_{module}.*.so") for folder in folders)
        return [path for paths in found for path in paths]

    def run(self, tests: Sequence[str], limit: float, *, first_failure: bool = True) -> TestRun:
        """Run tests in the copy.

        Args:
            tests: ids of tests.
            limit: seconds after which they and all their processes are killed.
            first_failure: stop at the first failure.
        """
        report, log = self._folder / _REPORT, self._folder / "log.txt"
        report.unlink(missing_ok=True)
        arguments = [
            "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "--tb=short",
            f"--junit-xml={report}", f"--basetemp={self._folder / 'tests'}",
            *(["-x"] if first_failure else []), *tests,
        ]  # fmt: skip
        if self._server is None:
            self._server = subprocess.Popen(
                [sys.executable, str(_SERVER), *self._preloaded],
                cwd=self.path, env=self._environment(), stdin=subprocess.PIPE,
                stdout=subprocess.PIPE, text=True,
            )  # fmt: skip
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        run = {"arguments": arguments, "log": str(log), "limit": limit}
        print(json.dumps(run), file=self._server.stdin, flush=True)
        status: int | None = json.loads(self._server.stdout.readline())
        ran, failed = _read_report(report)
        return TestRun(status, ran, failed, log.read_text(errors="replace")[-4000:])

    def _environment(self) -> dict[str, str]:
        """That of this process without what pytest and its plugins have set, for the copy."""
        unwanted = ("PYTEST_", "COV_", "PYTHONDONTWRITEBYTECODE")
        kept = {k: v for k, v in os.environ.items() if not k.startswith(unwanted)}
        # The path comes before the checkout, which may be installed in its own place.
        return {"OMP_NUM_THREADS": "1", **kept, "PYTHONPATH": str(self.path)}


def _unneeded(folder: str, names: list[str]) -> set[str]:
    environments = {n for n in names if os.path.exists(os.path.join(folder, n, "pyvenv.cfg"))}
    return (
        environments
        | {n for n in names if n in _CACHES or n.endswith(".egg-info")}
        | (
            _LEFT_OUT & set(names)
            if os.path.exists(os.path.join(folder, "pyproject.toml"))
            else set()
        )
    )


def _copy(path: Path, target: Path) -> None:
    """Copy a file or folder with its times, which tell what has to be built again."""
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copytree(path, target) if path.is_dir() else shutil.copy2(path, target)


def _forget_compiled(path: Path) -> None:
    """Remove the bytecode of a module: Python sees no change within a second."""
    if path.suffix == ".py":
        Path(importlib.util.cache_from_source(str(path))).unlink(missing_ok=True)


def _read_report(path: Path) -> tuple[int, tuple[str, ...]]:
    """Number of tests that ran, and ids of those that failed, of a report that may be missing."""
    if not path.exists():
        return 0, ()
    cases = [*ElementTree.parse(path).iter("testcase")]
    failed = [c for c in cases if c.find("failure") is not None or c.find("error") is not None]
    ran = sum(case.find("skipped") is None for case in cases)
    return ran, tuple(f"{c.get('classname')}::{c.get('name')}" for c in failed)
