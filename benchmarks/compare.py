"""``python -m benchmarks compare REF OP``: this tree against another commit, turn by turn."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parent.parent


def compare(ref: str, ops: Sequence[str], *, rounds: int, seconds: float, threads: int) -> str:
    """Time `ops` here and at `ref`; returns the table of medians and speed-ups.

    Raises:
        RuntimeError: git does not know `ref`, it does not build, or it cannot time an op.
    """
    with tempfile.TemporaryDirectory() as folder:
        other = Path(folder) / "tree"
        _call(["git", "-C", str(ROOT), "worktree", "add", "--detach", str(other), ref], ROOT)
        try:
            _call([sys.executable, "setup.py", "-q", "build_ext", "--inplace"], other)
            columns = f"{'op':<20}{'shape':<32}{'backend':<12}"
            lines = [f"{columns}{'here us':>10}{ref[:10]:>12}{'speed-up':>10}"]
            for op in ops:
                here: dict[tuple[str, str], list[float]] = {}
                there: dict[tuple[str, str], list[float]] = {}
                for _ in range(rounds):
                    _time(ROOT, op, seconds, threads, here, Path(folder))
                    _time(other, op, seconds, threads, there, Path(folder))
                for key in here.keys() & there.keys():
                    a, b = statistics.median(here[key]), statistics.median(there[key])
                    lines.append(f"{op:<20}{key[0]:<32}{key[1]:<12}{a:10.1f}{b:12.1f}{b / a:10.2f}")
            return "\n".join(lines)
        finally:
            _call(["git", "-C", str(ROOT), "worktree", "remove", "--force", str(other)], ROOT)


def _time(
    tree: Path,
    op: str,
    seconds: float,
    threads: int,
    into: dict[tuple[str, str], list[float]],
    folder: Path,
) -> None:
    out = folder / "run.json"
    command = [sys.executable, "-m", "benchmarks", "run", op, "--out", str(out), "--unchecked"]
    _call([*command, "--seconds", str(seconds), "--threads", str(threads)], tree)
    for row in json.loads(out.read_text())["rows"]:
        if row["kind"] == "backend":
            into.setdefault((row["shape"], row["name"]), []).append(row["median_us"])


def _call(command: Sequence[str], tree: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(tree)}
    environment.pop("TRITON_INTERPRET", None)  # its times say nothing, and take minutes
    done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True)
    if done.returncode != 0:
        last = (done.stderr or done.stdout).strip().splitlines()[-1:]
        raise RuntimeError(f"{' '.join(command[:4])}: {' '.join(last)}")
