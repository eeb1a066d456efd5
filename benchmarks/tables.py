"""Markdown tables of a result."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from benchmarks import bounds, machine

Run = dict[str, Any]
BOUND = "multiply-adds alone"
"""The path of an image that is the bound of the others on a CPU."""
LOST = 0.97
"""Ratios below this are lost."""


def markdown(columns: Mapping[str, str], rows: Iterable[Sequence[object]]) -> str:
    """A table; a column whose value is ">" is aligned to the right."""
    lines = [columns, ["---:" if side else "---" for side in columns.values()], *rows]
    text = ["| " + " | ".join(str(cell) for cell in line) + " |" for line in lines]
    text[1] = text[1].replace(" ", "")
    return "\n".join([text[0].replace("|  |", "| |"), *text[1:], ""])


def section(name: str, run: Run) -> str:
    """All that a result holds."""
    parts = [table(run) for kind, table in KINDS.items() if run.get(kind)]
    return "\n".join([f"## {name}\n", speedups(run), *parts])


def speedups(run: Run) -> str:
    """A row per op and shape: the best backend's time, and how much faster it is than the rest."""
    limits = machine.bandwidths(run["limits"])
    end = f"Limits measured in the same run: {limits}.\n"
    if run.get("earlier"):
        end += f"\n{run['earlier']} rows of what this version no longer has are left out.\n"
    return f"{machine.headline(run['machine'])}.\n\n{compared(run)}\n{end}"


def compared(run: Run, kind: str = "rows") -> str:
    """A row per op and shape: time, share of the bound, ratios to the others.

    A ratio is the median of the rounds, and in brackets their range where they took turns; those of
    what is more than 3% faster are bold. Where the memory was measured, there is a column for it.
    """
    rows, count, slower = [], 0, 0
    peaks = {
        (row["op"], row["shape"], row["name"]): f"{row['peak_mb']:.0f}"
        for row in run.get(kind, ()) if "peak_mb" in row
    }  # fmt: skip
    for best, others in shapes(run, kind):
        cells = []
        for name, (found, *spread) in others.items():
            brackets = f" ({ratio(spread[0])}-{ratio(spread[1])})" if spread else ""
            text, lost = f"{name}: {ratio(found)}{brackets}", found < LOST
            cells.append(f"**{text}**" if lost else text)
            count, slower = count + 1, slower + lost
        held = "", ""
        bound = bounds.of_op(best["op"], best["shape"], run)
        if bound is not None:
            least = 1e6 * bound.seconds
            held = f"{time(least)}, {bound.by}", f"{100 * least / best['median_us']:.0f}%"
        what = best["op"], best["shape"], best["name"]
        memory = [peaks.get(what, "")] if peaks else []
        memory += [
            f"{name}: {peaks[key]}" for name in others if (key := (*what[:2], name)) in peaks
        ]
        of_memory = ["; ".join(memory)] if peaks else []
        rows.append((*what, *_clocks(best), *held, *of_memory, "; ".join(cells)))
    clocks = ("processor", "elapsed") if run["machine"]["device"] == "cpu" else ("median",)
    columns = dict.fromkeys(("op", "shape", "backend"), "")
    columns |= dict.fromkeys((*clocks, "bound", "reached"), ">")
    columns |= {"MB at the peak": ""} if peaks else {}
    columns |= {"times as fast as": ""}
    end = f"{slower} of {count} comparisons are lost by more than 3%.\n" if count else ""
    return f"{markdown(columns, rows)}\n{end}"


def _clocks(row: Mapping[str, Any]) -> list[str]:
    """Median times by the processor's clock and elapsed, or by the only clock."""
    times = [row.get("cpu_us"), row["median_us"], row.get("wall_us")]
    return [time(us) for us in times if us is not None]


def models(run: Run) -> str:
    """The same for parts of the models."""
    return compared(run, "models")


def images(run: Run) -> str:
    """A row per model, batch and path: an image's time, its parts, and what it is held against."""
    rows = []
    for row in run["images"]:
        bound = _bound(row, run)
        parts = [row["parts_ms"].get(part) for part in ("trunk", "head", "decoder")]
        over = f"{row['ms'] / bound:.1f}" if bound else ""
        cells = [milliseconds(ms) if ms is not None else "" for ms in (row["ms"], *parts, bound)]
        part_run = row.get("ar_steps_timed", 0) < row.get("ar_steps", 0)
        steps = f" (from {row['ar_steps_timed']} of {row['ar_steps']} AR steps)" if part_run else ""
        rows.append((row["model"], row["batch"], row["path"] + steps, *cells, over))
    columns = {"model": "", "batch": ">", "path": ""}
    times = ("ms an image", "trunk", "head", "decoder", "bound", "over it")
    return markdown(columns | dict.fromkeys(times, ">"), rows)


def _bound(row: Mapping[str, Any], run: Run) -> float | None:
    """Milliseconds that bound an image, where the run has the limits of a card or measured it."""
    alone = image(run, row["model"], row["batch"], BOUND)
    if alone is not None:
        return alone["ms"]
    found = bounds.of_image(row["model"], row["batch"], run)
    return None if found is None else found["whole"]


def summary(run: Run) -> str:
    """The first eight models and batches: an image's time, as published, and what bounds it."""
    rows = []
    for fast, published in first_images(run):
        bound = _bound(fast, run)
        times = [fast["ms"], published and published["ms"], bound]
        speedup = f"{ratio(published['ms'] / fast['ms'])}x" if published else ""
        cells = [milliseconds(ms) if ms else "" for ms in times]
        rows.append((fast["model"], fast["batch"], *cells[:2], speedup, cells[2]))
    names = ("ms an image", "as published", "times as fast", "bound")
    return f"{machine.headline(run['machine'])}.\n\n" + markdown(
        {"model": "", "batch": ">"} | dict.fromkeys(names, ">"), rows
    )


def first_images(run: Run) -> list[tuple[dict[str, Any], dict[str, Any] | None]]:
    """The rows "fast" and "published" of the first eight models and batches, in their order."""
    fast = [row for row in run.get("images", []) if row["path"] == "fast"][:8]
    models = list(dict.fromkeys(row["model"] for row in fast))
    fast.sort(key=lambda row: (models.index(row["model"]), row["batch"]))
    return [(row, image(run, row["model"], row["batch"], "published")) for row in fast]


def probes(run: Run) -> str:
    """What a card answered to the questions of ``benchmarks.gpu.limits``."""
    names = {"us": "us", "gb_s": "GB/s", "tflop_s": "TFLOP/s", "weight_gb_s": "GB/s of weights"}
    rows = []
    for probe in run["probes"]:
        figures = [f"{probe[key]:.2f} {unit}" for key, unit in names.items() if key in probe]
        figures += [probe["note"]] if "note" in probe else []
        rows.append((probe["probe"], probe["setting"], ", ".join(figures)))
    return markdown({"probe": "", "setting": "", "": ""}, rows)


def ways(run: Run) -> str:
    """Ways that were timed side by side on a card; of a product's launches the fastest."""
    rows = []
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for record in run["ways"]:
        names = [record[k] for k in ("product", "part", "model") if k in record]
        sizes = [f"{k} {record[k]}" for k in ("batch",) if k in record]
        sizes += [f"{record['rows']} rows"] if "rows" in record else []
        setting = ", ".join([*(names or [record["what"]]), *sizes])
        groups.setdefault((record["what"], setting), []).append(record)
    for (what, setting), records in groups.items():
        own = [r for r in records if r.get("launch")]
        fastest = min(own, key=lambda r: r["us"], default=None)
        for record in records:
            if record.get("launch") and record is not fastest:
                continue
            figure = f"{record['us']:.2f} us" if "us" in record else f"{record['ms']:.2f} ms"
            differs = f"{record['different']:.2%}" if "different" in record else ""
            rows.append((setting, _way(what, record), figure, differs))
    return markdown({"": "", "way": "", "median": ">", "differs from the library's": ">"}, rows)


def _way(what: str, record: Mapping[str, Any]) -> str:
    if what == "stage":
        launch = record["launch"]
        return "library" if launch is None else "tiles {}, parts {}, split {}".format(*launch)
    if what == "table":
        return "one table" if record["one_table"] else "a table for each evaluation"
    if what == "turn":  # only in results up to 2026-11-29
        return "adaLN projections in turn" if record["in_turn"] else "as one product"
    return str(record.get("plan") or record["way"])


def training(run: Run) -> str:
    """A row per model, batch and way: a step's time, what bounds it, and its memory."""
    rows = []
    for row in run["training"]:
        bound, peak = row["bound_ms"], row["peak_mb"]
        cells = [milliseconds(row["ms"]), milliseconds(bound) if bound else ""]
        cells += [f"{peak / 1e3:.2f}" if peak else "", f"{row['loss']:.4f}"]
        rows.append((row["model"], row["batch"], row["way"], *cells))
    columns = dict.fromkeys(("ms a step", "bound", "GB beyond the weights", "loss"), ">")
    return markdown({"model": "", "batch": ">", "way": "", **columns}, rows)


def quantization(run: Run) -> str:
    """A row per way: equal bits, and how good the samples are."""
    found = run["quantization"]
    names = dict.fromkeys(name for figures in found["ways"].values() for name in figures)
    shares = {name for name in names if name.startswith(("equal", "samples", "time"))}
    rows = []
    for way, figures in found["ways"].items():
        cells = [(figures.get(name), f".{1 + (name in shares)}{'%' if name in shares else 'f'}")
                 for name in names]  # fmt: skip
        rows.append((way, *("" if value is None else f"{value:{how}}" for value, how in cells)))
    return markdown({"way": ""} | dict.fromkeys(names, ">"), rows)


def processes(run: Run) -> str:
    """A row per comparison of two processes with one, and per share of what holds up a step."""
    rows = []
    for row in run["processes"]:
        times = milliseconds(row["ms"]), milliseconds(row["of_ms"])
        if "ratio" in row:
            found, *spread = row["ratio"]
            value = f"{found:.2f}x ({spread[0]:.2f}-{spread[1]:.2f})"
            limit = f"at least {row['at_least']}x"
        else:
            value = f"{row['share']:.1%}"
            limit = f"less than {row['less_than']:.0%}" if "less_than" in row else ""
        processor = f"{row['processor_ratio']:.2f}x" if "processor_ratio" in row else ""
        rows.append((row["what"], *times, value, processor, limit))
    columns = dict.fromkeys(("ms", "of or against ms", "", "by processor time"), ">")
    return markdown({"what": "", **columns, "target": ""}, rows)


def serving(run: Run) -> str:
    """A row per load: mean latencies with slots, and of one batch after the other."""
    rows = []
    for row in run["serving"]["rows"]:
        times = milliseconds(row["slots_ms"]), milliseconds(row["batches_ms"])
        found, least, greatest = row["ratio"]
        value = f"{found:.2f} ({least:.2f}-{greatest:.2f})"
        rows.append((row["what"], *times, value, f"at most {row['at_most']}"))
    columns = dict.fromkeys(("slots, ms", "batches, ms", "ratio"), ">")
    return markdown({"what": "", **columns, "target": ""}, rows)


KINDS: dict[str, Callable[[Run], str]] = {
    "images": images, "models": models, "probes": probes, "ways": ways,
    "training": training, "quantization": quantization, "processes": processes,
    "serving": serving,
}  # fmt: skip
"""What a result may hold besides the rows of ops."""


def shapes(
    run: Run, kind: str = "rows", only: tuple[str, str] | None = None
) -> Iterator[tuple[dict[str, Any], dict[str, list[float]]]]:
    """For each op and shape the fastest backend's row, and how many times as long others take.

    That is the median, and where they took turns the least and the most. Where no backend was
    timed, the fastest baseline stands for it.

    Args:
        run: a result.
        kind: "rows" or "models".
        only: an op and a shape, to leave out the others.
    """
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in run.get(kind, ()):
        what = row["op"], row["shape"]
        if only is None or what == only:
            groups.setdefault(what, []).append(row)
    for rows in groups.values():
        backends = [row for row in rows if row["kind"] == "backend"]
        best = min(backends or rows, key=lambda row: row["median_us"])
        others = (row for row in rows if row is not best)
        yield (
            best,
            {
                row["name"]: row.get("ratio") or [row["median_us"] / best["median_us"]]
                for row in others
            },
        )


def image(run: Run, model: str, batch: int, path: str) -> dict[str, Any] | None:
    """The record of a whole image, if there is one."""
    wanted = (model, batch, path)
    rows = (r for r in run.get("images", []) if (r["model"], r["batch"], r["path"]) == wanted)
    return next(rows, None)


def time(us: float) -> str:
    return f"{us:.1f} us" if us < 1000 else f"{us / 1000:.2f} ms"


def milliseconds(ms: float) -> str:
    return f"{ms:.2f}" if ms < 10 else f"{ms:.1f}" if ms < 100 else f"{ms:.0f}"


def ratio(value: float) -> str:
    return f"{value:.2f}" if value < 2 else f"{value:.1f}" if value < 10 else f"{value:.0f}"
