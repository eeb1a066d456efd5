"""The machine of a run."""

from __future__ import annotations

import contextlib
import datetime
import importlib.metadata
import os
import subprocess
from pathlib import Path
from typing import Any

import torch

from bitdance_kernels import env_report

ROOT = Path(__file__).parent.parent
_COMPARED = (
    "flash-attn", "faiss-cpu", "usearch", "numkong", "onnxruntime", "openvino",
    "vector-quantize-pytorch",
)  # fmt: skip
"""Packages whose versions a result has where they are installed."""


def describe(device: torch.device, threads: int) -> dict[str, Any]:
    """Machine, versions, commit and date of a run."""
    report = env_report.collect()
    described = {name: report[name] for name in ("cpu", "cuda", "packages", "python")}
    for name in _COMPARED:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            described["packages"][name] = importlib.metadata.version(name)
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
    """The measured bandwidths among `limits` and the rate of multiply-adds, for tables."""
    shown = [
        f"{name.removesuffix('_gb_s')} {value:.1f} GB/s"
        for name, value in limits.items()
        if name.endswith("_gb_s")
    ]
    if "fma_gflop_s" in limits:
        shown.append(f"multiply-adds {limits['fma_gflop_s']:.0f} GFLOP/s")
    return ", ".join(shown)


def pin(threads: int) -> None:
    """Keep this process, and PyTorch, to `threads` processors."""
    torch.set_num_threads(threads)
    if hasattr(os, "sched_setaffinity"):
        allowed = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, allowed[:threads])
