"""The machine of a run, and its limits measured in the same run."""

from __future__ import annotations

import contextlib
import datetime
import importlib.metadata
import os
import subprocess
import timeit
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bitdance_kernels import env_report

ROOT = Path(__file__).parent.parent


def describe(device: torch.device, threads: int) -> dict[str, Any]:
    """Machine, versions, commit and date of a run."""
    report = env_report.collect()
    described = {name: report[name] for name in ("cpu", "cuda", "packages", "python")}
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        described["packages"]["flash-attn"] = importlib.metadata.version("flash-attn")
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    now = datetime.datetime.now(datetime.timezone.utc)
    return {
        "device": device.type,
        **described,
        "threads": threads,
        "commit": done.stdout.strip() or "unknown",
        "date": now.strftime("%Y-%m-%d %H:%M UTC"),
    }


def headline(machine: dict[str, Any]) -> str:
    """One line for tables."""
    versions = " ".join(f"{k} {v}" for k, v in machine["packages"].items() if v)
    if machine["device"] == "cuda":
        name = machine["cuda"]["devices"][0]["name"]
    else:
        cpu, threads = machine["cpu"], machine["threads"]
        isa = cpu["instruction_set_used"] or "no native code"
        name = f"{cpu['model']}, {threads} thread{'s' if threads > 1 else ''}, {isa}"
    return f"{name}; {versions}; {machine['commit']}; {machine['date']}"


def bandwidths(limits: dict[str, float]) -> str:
    """The measured bandwidths among `limits`, for tables."""
    return ", ".join(
        f"{name.removesuffix('_gb_s')} {value:.1f} GB/s"
        for name, value in limits.items()
        if name.endswith("_gb_s")
    )


def pin(threads: int) -> None:
    """Keep this process, and PyTorch, to `threads` processors."""
    torch.set_num_threads(threads)
    if hasattr(os, "sched_setaffinity"):
        allowed = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, allowed[:threads])


def cpu_limits() -> dict[str, float]:
    """Memory bandwidth in GB/s on 256 MB: best reader, fill and copy (which moves twice the bytes).

    The fastest of three library reductions stands for reading; which one wins differs by machine.
    """
    x = torch.randn(2**26)
    y = torch.empty_like(x)
    words = x.numpy().view(np.int64)

    def rate(*functions: Callable[[], Any]) -> float:
        seconds = (min(timeit.repeat(f, number=1, repeat=7)) for f in functions)
        return x.numel() * 4 / 1e9 / min(seconds)

    integers = x.view(torch.int64)
    return {
        "read_gb_s": rate(x.sum, integers.max, lambda: np.bitwise_or.reduce(words)),
        "write_gb_s": rate(lambda: y.fill_(1.0)),
        "copy_gb_s": 2 * rate(lambda: y.copy_(x)),
    }
