"""What an exchange between blocks costs, inside a kernel and from a kernel to the next.

The persistent head exchanges by words that are their own flag, where other plans have a launch that
overlaps the one before; a split over a cluster has the cluster's barrier.
"""

from __future__ import annotations

import ctypes
import functools
import os
import shutil
import statistics
import subprocess
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.gpu.worker import Context, Step
from benchmarks.machine import ROOT

_ROUNDS, _REPEATS = 500, 5
_LINKS = 200  # kernels of a chain
_KILOBYTES = (3, 6, 49)  # of words: up to the rows of B-1x and B-16x at batch 1
_CLUSTERS = (5, 8, 16)
_SHARED = (25, 70)  # kilobytes a block: a product of 32 rows, of 128
_NOTES = {-1: "a block waited for a word in vain", -2: "a block received what was not sent"}
SOURCE = Path(__file__).with_name("exchange_sm90.cu")


Calls = list[tuple[str, tuple[int, ...]]]


def steps(context: Context) -> Sequence[Step]:
    """A step per kind of exchange; the first one builds the library."""
    return [
        (f"exchange, {kind}", functools.partial(_time, context, kind, calls))
        for kind, calls in _calls(context.multiprocessors).items()
    ]


def build(folder: Path, arch: str, *, strict: bool = False) -> Path:
    """Compile the library into `folder` for `arch`, such as "sm_90"; returns its path."""
    target = folder / f"exchange-{arch}.so"
    if not target.exists() or target.stat().st_mtime < SOURCE.stat().st_mtime:
        nvcc = shutil.which(os.environ.get("NVCC", "nvcc"))
        if nvcc is None:
            raise FileNotFoundError("nvcc was not found")
        folder.mkdir(parents=True, exist_ok=True)
        command = [nvcc, "-std=c++17", "-O3", "-gencode", f"arch=compute_90,code={arch}"]
        command += ["-shared", "-Xcompiler", "-fPIC", f"-I{ROOT / 'csrc'}"]
        command += [f"-I{ROOT / 'csrc/include'}", *["-Werror", "all-warnings"] * strict]
        subprocess.run([*command, str(SOURCE), "-o", str(target)], check=True)
    return target


def note(status: int) -> str | None:
    """What a status of the library says; None for success."""
    return None if status == 0 else _NOTES.get(status, f"CUDA error {status}")


def _calls(multiprocessors: int) -> dict[str, Calls]:
    """For each kind of exchange its settings, and the arguments of the library's function."""
    chains: Calls = [
        (f"{kb} KB of shared memory, {start}, {shape}", (blocks, 1024 * kb, size, early, _LINKS))
        for kb in _SHARED
        for shape, size, blocks in (
            ("no clusters", 1, multiprocessors),
            ("clusters of 8", 8, multiprocessors // 8 * 8),
        )
        for start, early in (("in order", 0), ("overlapping", 1))
    ]
    return {
        "words": [(f"{kb} KB", (multiprocessors, 1024 * kb, _ROUNDS)) for kb in _KILOBYTES],
        "counter": [("all blocks", (multiprocessors, _ROUNDS))],
        "cluster": [(f"clusters of {n}", (128 // n, n, _ROUNDS)) for n in _CLUSTERS],
        "chain": chains,
    }


def _time(context: Context, kind: str, calls: Calls) -> None:
    """A record per setting, with the median of the launches and all of them."""
    if context.dry_run:
        for setting, _ in calls:
            context.add("probes", {"probe": f"exchange, {kind}", "setting": setting, "us": 1.0})
        return
    arch = "sm_{}{}".format(*torch.cuda.get_device_capability())
    function = getattr(ctypes.CDLL(str(build(context.journal.parent, arch))), f"exchange_{kind}")
    times = (ctypes.c_float * _REPEATS)()
    for setting, arguments in calls:
        torch.cuda.synchronize()
        why = note(function(*map(ctypes.c_int, arguments), _REPEATS, times))
        figures = {"note": why} if why else {"us": statistics.median(times), "all_us": list(times)}
        context.add("probes", {"probe": f"exchange, {kind}", "setting": setting, **figures})
