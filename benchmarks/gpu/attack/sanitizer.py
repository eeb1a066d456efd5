"""compute-sanitizer over the smallest sample of every kernel in CUDA C++.

Nothing that it reports is allowed. Its known false positives are of bulk copies by tensor maps,
which no kernel of csrc/cuda has.
"""

from __future__ import annotations

import functools
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from benchmarks.gpu.worker import Context, Step
from benchmarks.machine import ROOT
from bitdance_kernels.testing import Case

TOOLS = ("memcheck", "racecheck")
RAN = "attack: ran"
"""What the program prints that is watched, at its end."""
FOUND = 86
"""Exit status that stands for findings."""
_SECONDS = 100.0
_HOMES = ("/usr/local/cuda", "/opt/cuda")


def find() -> Path | None:
    """compute-sanitizer of the PATH or of a CUDA toolkit."""
    named = shutil.which("compute-sanitizer")
    if named:
        return Path(named)
    homes = [os.environ.get(name, "") for name in ("CUDA_HOME", "CUDA_PATH")]
    for home in filter(None, [*homes, *_HOMES]):
        for folder in ("bin", "compute-sanitizer"):
            path = Path(home) / folder / "compute-sanitizer"
            if path.is_file():
                return path
    return None


def steps(context: Context) -> list[Step]:
    """A step per tool and op with a backend in CUDA C++, or one that says that there is no tool."""
    sanitizer = find()
    if sanitizer is None:
        missing = "compute-sanitizer is not on this machine; it comes with the CUDA toolkit"
        key = "attack: compute-sanitizer"
        return [("compute-sanitizer", functools.partial(context.add, "not run", missing, key))]
    mine, processes = context.share
    benches = [bench for bench in context.benches if "cuda" in bench.kernel_op.backends]
    return [
        (f"{tool}, {bench.name}", functools.partial(_watch, context, sanitizer, tool, bench))
        for tool in TOOLS
        for bench in benches[mine::processes]
    ]


def _watch(context: Context, sanitizer: Path, tool: str, case: Case) -> None:
    """A record, or why there is none."""
    seconds = min(_SECONDS, max(context.left("attack"), 1.0))
    wrong, why_not = run(sanitizer, tool, case.name, seconds)
    if why_not is not None:
        context.add("not run", why_not, f"attack: {tool}, {case.name}")
        return
    what = {"op": case.name, "sample": "the smallest", "backend": "cuda", "check": tool}
    context.add("checks", {"step": context.result["doing"], **what, "wrong": wrong})


def run(sanitizer: Path, tool: str, op: str, seconds: float) -> tuple[str | None, str | None]:
    """What the tool finds in the smallest sample of an op, or else why it could not look.

    PyTorch gets each tensor from CUDA by itself, since inside of its blocks nothing is out of
    bounds.
    """
    command = [
        str(sanitizer), "--tool", tool, "--error-exitcode", str(FOUND),
        sys.executable, "-m", "benchmarks.gpu.attack", op, "--backend", "cuda",
    ]  # fmt: skip
    environment = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    try:
        done = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=seconds,
            check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return None, f"it took more than {seconds:.0f} seconds"
    except OSError as error:
        return None, f"{sanitizer}: {error}"
    text = done.stdout + done.stderr
    found = [int(n) for n in re.findall(r"(?:ERROR|RACECHECK) SUMMARY: (\d+)", text)]
    lines = [line for line in text.splitlines() if line.startswith("=========")]
    if any(found) or done.returncode == FOUND:
        first = next((x for x in lines if re.search("Invalid|hazard|error", x, re.I)), lines[-1])
        return f"{max(found, default=1)} findings; {first.strip('= ')}", None
    if RAN not in text:  # such as a card that it does not support
        return None, text.strip().splitlines()[-1] if text.strip() else "it printed nothing"
    if not found:
        return None, "it printed no summary"
    return None, None
