"""``python -m benchmarks report``: tables and plots from the files of benchmarks/results."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks import cards, tables, targets

RESULTS = Path(__file__).parent / "results"
_PAGES = {"targets": targets.table, "cards": cards.page}
BEGIN, END = "<!-- results: ", "<!-- end of results -->"


def load(folder: Path) -> dict[str, dict[str, Any]]:
    """Every run in `folder` by file name.

    Raises:
        ValueError: a file is no result of these commands.
    """
    runs = {}
    for path in sorted(folder.glob("*.json")):
        content = json.loads(path.read_text())
        if not isinstance(content, dict) or not {"machine", "rows"} <= content.keys():
            raise ValueError(f"{path} is no result of `python -m benchmarks`")
        runs[path.name] = content
    return runs


def markdown(runs: dict[str, dict[str, Any]]) -> str:
    """One section per file: the machine, its measured limits, tables; then the targets."""
    sections = [tables.section(name, run) for name, run in runs.items()]
    return "\n".join([*sections, "## Targets\n", targets.table(runs)])


def filled(text: str, runs: dict[str, dict[str, Any]]) -> str:
    """`text` with its tables rendered again from the results.

    A table stands between the lines ``<!-- results: WHAT -->`` and ``<!-- end of results -->``.
    WHAT is the name of a file (the speed-ups of its ops), ``images FILE``, ``summary FILE``,
    ``model FILE``, ``probes FILE``, ``ways FILE``, ``training FILE``, ``targets`` or ``cards``.

    Raises:
        ValueError: there is no such file, or a table does not end.
    """
    parts = text.split(BEGIN)
    for i, part in enumerate(parts[1:], 1):
        what, _, rest = part.partition(" -->")
        _, end, after = rest.partition(END)
        if not end:
            raise ValueError(f"the table of {what!r} has no end")
        parts[i] = f"{what} -->\n\n{_table(what, runs)}\n{end}{after}"
    return BEGIN.join(parts)


def _table(what: str, runs: dict[str, dict[str, Any]]) -> str:
    if what in _PAGES:
        return _PAGES[what](runs)
    kind, _, name = what.rpartition(" ")
    table = {**tables.KINDS, "": tables.speedups, "summary": tables.summary}.get(kind)
    if name not in runs or table is None:
        raise ValueError(f"the table of {what!r} has no results")
    return table(runs[name])
