"""``python -m benchmarks report``: tables and plots from the files of benchmarks/results."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import cards, tables, targets
from benchmarks.shapes import all_benches

RESULTS = Path(__file__).parent / "results"
_PAGES = {"targets": targets.table, "cards": cards.page}
BEGIN, END = "<!-- results: ", "<!-- end of results -->"


def load(folder: Path) -> dict[str, dict[str, Any]]:
    """Every run in `folder` by file name, without rows of what there is no more.

    Figures of ``python -m tests.reliability`` are no run.

    Raises:
        ValueError: a file is no result of these commands.
    """
    runs = {}
    for path in sorted(folder.glob("*.json")):
        content = json.loads(path.read_text())
        if isinstance(content, dict) and content.keys() == {"suites"}:
            continue
        if not isinstance(content, dict) or not {"machine", "rows"} <= content.keys():
            raise ValueError(f"{path} is no result of `python -m benchmarks`")
        runs[path.name] = _current(content)
    return runs


def _current(run: dict[str, Any]) -> dict[str, Any]:
    """The run with rows of ops, backends and shapes that there are; "earlier" counts the others."""
    benches = all_benches()

    def is_current(row: dict[str, Any]) -> bool:
        bench = benches.get(row["op"])
        if bench is None or all(shape.name != row["shape"] for shape in bench.timings):
            return False
        return row["kind"] != "backend" or row["name"] in bench.kernel_op.backends

    rows = [row for row in run["rows"] if is_current(row)]
    return {**run, "rows": rows, "earlier": len(run["rows"]) - len(rows)}


def markdown(runs: dict[str, dict[str, Any]]) -> str:
    """One section per file: the machine, its measured limits, tables; then the targets."""
    sections = [tables.section(name, run) for name, run in runs.items()]
    return "\n".join([*sections, "## Targets\n", targets.table(runs)])


def filled(text: str, runs: dict[str, dict[str, Any]]) -> str:
    """`text` with its tables rendered again from the results.

    A table stands between the lines ``<!-- results: WHAT -->`` and ``<!-- end of results -->``.
    WHAT is the name of a file (the speed-ups of its ops), ``images FILE``, ``summary FILE``,
    ``model FILE``, ``probes FILE``, ``ways FILE``, ``training FILE``, ``processes FILE``,
    ``serving FILE``, ``targets`` or ``cards``.

    Raises:
        ValueError: there is no such file, or a table does not end.
    """
    return replaced(text, lambda what: _table(what, runs))


def replaced(text: str, table: Callable[[str], str]) -> str:
    """`text` with ``table(WHAT)`` between each line ``<!-- results: WHAT -->`` and its end.

    Raises:
        ValueError: a table does not end.
    """
    parts = text.split(BEGIN)
    for i, part in enumerate(parts[1:], 1):
        what, _, rest = part.partition(" -->")
        _, end, after = rest.partition(END)
        if not end:
            raise ValueError(f"the table of {what!r} has no end")
        parts[i] = f"{what} -->\n\n{table(what)}\n{end}{after}"
    return BEGIN.join(parts)


def _table(what: str, runs: dict[str, dict[str, Any]]) -> str:
    if what in _PAGES:
        return _PAGES[what](runs)
    kind, _, name = what.rpartition(" ")
    table = {**tables.KINDS, "": tables.speedups, "summary": tables.summary}.get(kind)
    if name not in runs or table is None:
        raise ValueError(f"the table of {what!r} has no results")
    return table(runs[name])
