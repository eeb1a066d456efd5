"""What the CUDA functions would launch: the built objects with a runtime that needs no card."""

from __future__ import annotations

import ctypes
import functools
import importlib.machinery
import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import torch

from bitdance_kernels._dispatch.op import REGISTRY
from bitdance_kernels._shared import native

__all__ = ["NVCC", "Launch", "launches_of", "objects", "recording"]

ROOT = Path(__file__).parent.parent.parent
NVCC = shutil.which(os.environ.get("NVCC", "nvcc"))
BUILD = Path("build") / "launches"


@dataclass(frozen=True)
class Launch:
    """A launch of a kernel.

    Attributes:
        kernel: mangled name.
        blocks: of the grid.
        threads: of a block.
        shared: bytes of dynamic shared memory of a block.
        cluster: blocks of a cluster.
        programmatic: whether it may begin before the kernel before it has ended.
        cooperative: whether all blocks run at once.
    """

    kernel: str
    blocks: int
    threads: int
    shared: int
    cluster: int
    programmatic: bool
    cooperative: bool


def objects(pattern: str = "csrc/**/*.o") -> list[Path]:
    """Objects of the CUDA module that match `pattern`, as ``setup.py build_ext`` left them."""
    folder = next(
        iter(ROOT.glob(f"build/temp.*-{sys.implementation.cache_tag}/bitdance_kernels._cuda")), None
    )
    found = sorted(folder.glob(pattern)) if folder else []
    return [path for path in found if (ROOT / path.relative_to(folder).with_suffix("")).exists()]


@functools.cache
def _library() -> tuple[ModuleType, Callable[[], bytes]]:
    """The module, linked once for a state of its objects, and its function that gives launches."""
    linked = objects()
    assert linked, "no objects: run setup.py build_ext --inplace"
    source = Path(__file__).with_name("runtime.cpp")
    target = ROOT / BUILD / f"_cuda{importlib.machinery.EXTENSION_SUFFIXES[0]}"
    newest = max(path.stat().st_mtime_ns for path in [*linked, source])
    if not target.exists() or target.stat().st_mtime_ns < newest:
        target.parent.mkdir(parents=True, exist_ok=True)
        unfinished = target.with_suffix(f".{os.getpid()}")
        command = [str(NVCC), "-shared", "-cudart", "none", "-Xcompiler", "-fPIC,-Wall,-Werror"]
        subprocess.run([*command, *linked, source, "-o", unfinished], check=True)
        unfinished.replace(target)
    spec = importlib.util.spec_from_file_location("_cuda", target)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    take = ctypes.CDLL(str(target)).bdk_take_launches
    take.restype = ctypes.c_char_p
    return module, take


@contextmanager
def recording() -> Iterator[Callable[[], list[Launch]]]:
    """A context in which CUDA backends take CPU tensors and launch into a list.

    Results are whatever was in their memory.

    Yields:
        A function that gives the launches since its last call.
    """
    module, take = _library()
    pretended = native.NativeModule("_cuda", "")
    pretended._module = module
    take()
    with ExitStack() as stack:
        for patch in (
            mock.patch.object(native, "cuda", pretended),
            mock.patch.object(native, "stream", return_value=(0, 0)),
            mock.patch.object(native, "cuda_unsupported", return_value=None),
            mock.patch.object(native, "sm90_unsupported", return_value=None),
            mock.patch.object(torch.cuda, "is_available", return_value=True),
            # What is chosen here must not be remembered.
            *(mock.patch.object(op, "_chosen", {}) for op in REGISTRY.values()),
        ):
            stack.enter_context(patch)
        yield lambda: [_launch(line) for line in take().decode().splitlines()]


def launches_of(function: Callable[[], Any]) -> list[Launch]:
    """The launches of a call."""
    with recording() as launches:
        function()
        return launches()


def _launch(line: str) -> Launch:
    *numbers, name = line.split(" ")
    blocks, threads, shared, cluster, programmatic, cooperative = map(int, numbers)
    return Launch(name, blocks, threads, shared, cluster, bool(programmatic), bool(cooperative))
