"""What has run on which card, at which commit, and what has not; from the results."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from benchmarks import tables
from benchmarks.gpu.parts import PARTS
from benchmarks.shapes import Bench, all_benches

Run = dict[str, Any]
_BACKENDS = ("cuda", "triton")


def page(runs: Mapping[str, Run]) -> str:
    """The parts of ``python -m benchmarks gpu``, what is missing of them, and the ops' backends."""
    newest = sorted(
        ((name, run) for name, run in runs.items() if _on_card(run)),
        key=lambda pair: pair[1]["machine"]["date"],
        reverse=True,
    )
    parts = tables.markdown(
        {"part": "", "shows": "", "card": "", "software": "", "commit": "", "date": "", "file": "",
         "steps done": ">", "failed": ">", "not run": ">"},
        (row for part in PARTS for row in _part(part, newest)),
    )  # fmt: skip
    ops = tables.markdown(
        {"op": ""} | dict.fromkeys(_BACKENDS, ""),
        ((bench.name, *(_checks(bench, backend, newest) for backend in _BACKENDS))
         for bench in all_benches().values()),
    )  # fmt: skip
    missing = "".join(line for part in PARTS for line in _missing(part, newest))
    return "\n".join(filter(None, [parts, missing, ops]))


def _on_card(run: Run) -> bool:
    return run["machine"]["device"] == "cuda" and not run.get("dry_run")


def _part(part: str, newest: list[tuple[str, Run]]) -> Iterator[tuple[object, ...]]:
    """A row for each result that has steps of the part, or one that says that none has."""
    found = False
    for name, run in newest:
        done = {key for key in run["done"] if key.startswith(f"{part}: ")}
        if done:
            found = True
            missing = {key for key in run["not run"] if key.startswith(f"{part}: ")}
            failed = done & set(run["failed"])
            yield (
                f"`{part}`", PARTS[part].proves, *_where(run), name,
                len(done - missing - failed), len(failed), len(missing),
            )  # fmt: skip
    if not found:
        yield f"`{part}`", PARTS[part].proves, "**none yet**", *[""] * 7


def _missing(part: str, newest: Sequence[tuple[str, Run]]) -> Iterator[str]:
    """A line with the steps that the newest result of a part has not run; of ops their names."""
    prefix, benches = f"{part}: ", all_benches()
    for name, run in newest:
        if any(key.startswith(prefix) for key in run["done"]):
            keys = [key.removeprefix(prefix) for key in run["not run"] if key.startswith(prefix)]
            ops = (key.partition(", ")[0] for key in keys)
            steps = dict.fromkeys(op for op in ops if op in benches) or keys
            if steps:
                yield f"* `{part}`, {name}, not run or not in full: {'; '.join(steps)}.\n"
            return


def _where(run: Run) -> tuple[str, str, str, str]:
    machine = run["machine"]
    card = machine["cuda"]["devices"][0]["name"]
    software = " ".join(f"{k} {machine['packages'][k]}" for k in ("torch", "triton"))
    return card, software, machine["commit"], machine["date"]


def _checks(bench: Bench, backend: str, newest: list[tuple[str, Run]]) -> str:
    """How many checks of a backend passed and failed in the newest result that has any."""
    op = bench.name
    if backend not in bench.kernel_op.backends:
        return ""
    for _, run in newest:
        passed = sum(n for k, n in run["passed"].items() if k.startswith(f"{op}, {backend}, "))
        wrong = sum((c["op"], c["backend"]) == (op, backend) for c in run["checks"])
        if passed or wrong:
            failed = f", {wrong} failed" if wrong else ""
            return f"{passed} passed{failed} at {run['machine']['commit']}"
    return "**not run**"
