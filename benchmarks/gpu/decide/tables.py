"""From figures to the tables that the library reads: which plan, which launch."""

from __future__ import annotations

import json
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

from benchmarks.gpu.worker import Context
from bitdance.models.config import PRESETS
from bitdance.sampling import config
from bitdance_kernels._shared import skinny_config

GAIN = 0.95
"""A way wins over the usual one when its median takes less than this share of its time."""
DIFFERENCE = 2.0
"""A plan may differ from the library's so many times as much as PyTorch's own operators do."""
SLACK = 1e-3
"""Share of differing bits, or relative difference, that is allowed in any case."""
BITS = 2
"""Differing bits that are allowed in any case: of few bits one is already a large share."""

Record = Mapping[str, Any]


def winner(us: Mapping[str, Sequence[float]], usual: str) -> str:
    """The fastest way by the median, or `usual` unless one is more than 5% faster."""
    medians = {name: statistics.median(values) for name, values in us.items()}
    best = min(medians, key=lambda name: medians[name])
    return best if medians[best] < GAIN * medians[usual] else usual


def agrees(different: float, of_pytorch: float, bits: int | None = None) -> bool:
    """Whether a plan's results may stand for the library's, by how far PyTorch's are from those.

    Args:
        different: share of differing bits, or relative difference.
        of_pytorch: the same of PyTorch's own operators.
        bits: how many bits were compared, if `different` is a share of them.
    """
    return different <= max(DIFFERENCE * of_pytorch, SLACK, BITS / bits if bits else 0.0)


def plan(records: Iterable[Record]) -> str:
    """The plan that wins among the figures of one part at one number of rows."""
    right = {
        r["plan"]: r["all_us"]
        for r in records
        if r["repeatable"] and agrees(r["different"], r["different_pytorch"], _bits(r))
    }
    return winner(right, "library")


def _bits(record: Record) -> int | None:
    """Bits of an AR step of a guided head: half of its rows are unconditional."""
    preset = PRESETS.get(record.get("model", ""))
    return record["rows"] // 2 * preset.latent_dim if preset and record["part"] == "head" else None


def ranges(winners: Mapping[int, str]) -> list[list[Any]]:
    """[min_rows, plan] from the plans that win at some numbers of rows.

    What wins at a number of rows holds down to the next smaller one; above the largest one it is
    the library.
    """
    found: list[list[Any]] = []
    begin = 1
    for rows, name in [*sorted(winners.items()), (None, "library")]:
        if not found or found[-1][1] != name:
            found.append([begin, name])
        if rows is not None:
            begin = rows + 1
    return found


def of_plans(records: Sequence[Record]) -> dict[str, Any]:
    """The entry of a card in bitdance/sampling/measured.json."""
    groups: dict[tuple[str, str], dict[int, list[Record]]] = defaultdict(lambda: defaultdict(list))
    for record in records:
        if record["what"] == "plan":
            groups[record["part"], record["architecture"]][record["rows"]].append(record)
    entry: dict[str, Any] = {}
    for (part, architecture), by_rows in groups.items():
        steps = ranges({rows: plan(found) for rows, found in by_rows.items()})
        if architecture:
            entry.setdefault(part, {})[architecture] = steps
        else:
            entry[part] = steps
    most = max_table_rows([r for r in records if r["what"] == "table"])
    return entry if most is None else entry | {"max_table_rows": most}


def max_table_rows(records: Sequence[Record]) -> int | None:
    """Rows up to which one table for all evaluations pays, without a gap; None if not measured."""
    by_rows: dict[int, dict[str, Sequence[float]]] = defaultdict(dict)
    for record in records:
        by_rows[record["rows"]]["one" if record["one_table"] else "each"] = record["all_us"]
    most = 0
    for rows, us in sorted(by_rows.items()):
        if winner(us, "one" if rows <= config.MAX_TABLE_ROWS else "each") != "one":
            break
        most = rows
    return most if by_rows else None


def of_launches(records: Sequence[Record]) -> list[dict[str, Any]]:
    """The entry of a card in bitdance_kernels/_shared/skinny_measured.json.

    It has the products for which another launch is faster than that of the rule, which is the first
    of a product's records. Products of the same shape count together.
    """
    groups: dict[tuple[int, ...], dict[tuple[int, ...], list[Record]]] = defaultdict(
        lambda: defaultdict(list)
    )
    for record in records:
        if record["what"] == "stage" and record["launch"] is not None:
            shape = (record["row_class"], record["channels"], record["features"])
            groups[shape][tuple(record["launch"])].append(record)
    entry = []
    for key, launches in sorted(groups.items()):
        usual = next(iter(launches))
        # A launch that was not timed for all products of the shape is no candidate.
        us = {
            str(launch): [sum(turn) for turn in zip(*(r["all_us"] for r in found), strict=True)]
            for launch, found in launches.items()
            if len(found) == len(launches[usual])
        }
        best = winner(us, str(usual))
        if best != str(usual):
            (launch,) = (launch for launch in launches if str(launch) == best)
            names = ("rows", "channels", "features")
            entry.append({**dict(zip(names, key, strict=True)), "launch": list(launch)})
    return entry


def save(context: Context) -> None:
    """Write both tables to the folder of the run and, unless it is a dry one, to the packages."""
    records, out = context.result["ways"], context.journal.parents[1] / "tables"
    out.mkdir(parents=True, exist_ok=True)
    card = "dry run" if context.dry_run else torch.cuda.get_device_name(context.device)
    entries = {config.FILE: of_plans(records), skinny_config.MEASURED: of_launches(records)}
    for path, entry in entries.items():
        text = with_entry(path.read_text(encoding="utf-8"), card, entry)
        for target in (out / path.name, *[path] * (not context.dry_run)):
            target.write_text(text, encoding="utf-8")
    config.tables.cache_clear()
    skinny_config._measured.cache_clear()


def with_entry(text: str, card: str, entry: Any) -> str:
    """A table with the entry of a card replaced."""
    return json.dumps({**json.loads(text), card: entry}, indent=1, sort_keys=True) + "\n"
