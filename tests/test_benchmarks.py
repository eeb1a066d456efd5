import dataclasses
import functools
import json
import os
import types
from pathlib import Path
from unittest import mock

import pytest
import torch

from benchmarks import __main__ as command
from benchmarks import bounds, cards, cpu, limits, machine, peers, report, tables, targets, timing
from benchmarks.gpu import parts
from benchmarks.model import Comparison
from benchmarks.shapes import Bench, Timing, all_benches
from bitdance_kernels.testing import Call

ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def _keep_threads():
    threads = torch.get_num_threads()
    affinity = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None
    yield
    torch.set_num_threads(threads)
    if affinity is not None:
        os.sched_setaffinity(0, affinity)


@pytest.fixture
def small():
    """pack_signs with one tiny shape to time."""
    case = all_benches()["pack_signs"]
    call = Call("tiny", (torch.randn(4, 16),))
    timing = Timing("tiny", lambda device: call.map(lambda t: t.to(device)), bytes=272)
    return Bench(case.op, case.rule, case.samples, timings=(timing,), peers=case.peers)


@pytest.fixture(autouse=True)
def _small_limits(monkeypatch):
    monkeypatch.setattr(cpu.limits, "measure", lambda: {"read_gb_s": 20.0, "fma_gflop_s": 80.0})


def test_list_names_every_op(capsys):
    assert command.main(["list"]) == 0
    printed = capsys.readouterr().out
    for name in all_benches():
        assert f"\n{name}\n" in f"\n{printed}"


def test_run_times_backends_and_baselines(small, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(command, "all_benches", lambda: {"pack_signs": small})
    out = tmp_path / "new" / "run.json"
    arguments = ["run", "pack_signs", "--seconds", "0.01", "--backend", "reference"]
    assert command.main([*arguments, "--out", str(out)]) == 0
    result = json.loads(out.read_text())
    assert result["wrong"] == []
    ours, *others = result["rows"]
    assert {"reference", "numpy", "torch"} <= {row["name"] for row in result["rows"]}
    assert ours["kind"] == "backend"
    for row in result["rows"]:
        assert 0 < row["min_us"] <= row["q25_us"] <= row["median_us"] <= row["q75_us"]
        assert row["wall_us"] > 0
        assert row["rounds"] >= 5
        assert row["gb_s"] == pytest.approx(272 / row["median_us"] / 1e3)
    for row in others:
        median, low, high = row["ratio"]
        assert low <= median <= high
    if limits.unavailable() is None:
        assert ours["bound"] == "memory"
        assert ours["bound_us"] > 0
        assert ours["share"] > 0
    printed = capsys.readouterr().out
    assert "| pack_signs | tiny |" in printed
    assert "numpy: " in printed
    assert "read 20.0 GB/s, multiply-adds 80 GFLOP/s" in printed
    assert "not timed: pack_signs: cuda: " in printed


def test_a_wrong_backend_is_not_timed(small, monkeypatch, capsys):
    op = small.kernel_op
    right = op.backend("triton")
    wrong = dataclasses.replace(right, run=lambda x: right.run(x) ^ 1)
    monkeypatch.setitem(op._loaded, "triton", wrong)
    monkeypatch.setattr(op, "_chosen", {})  # of calls before
    runnable = cpu.runnable
    monkeypatch.setattr(cpu, "runnable", lambda case, call, *_: runnable(case, call, ["triton"]))
    result = cpu.new_result()
    cpu.add(result, small, 0.01)
    assert result["rows"] == []
    assert "elements differ" in result["wrong"][0]
    monkeypatch.setattr(command, "all_benches", lambda: {"pack_signs": small})
    assert command.main(["run", "pack_signs"]) == 1
    assert "WRONG, so not timed: pack_signs" in capsys.readouterr().out


def test_unknown_ops_are_refused(capsys):
    with pytest.raises(SystemExit) as stopped:
        command.main(["run", "sign_pack"])
    assert stopped.value.code == 2
    assert "no op 'sign_pack'; there are " in capsys.readouterr().err


def test_report_makes_tables_and_plots(small, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(report, "all_benches", lambda: {"pack_signs": small})
    result = cpu.new_result()
    cpu.add(result, small, 0.01)
    cpu.save(result, tmp_path / "cpu.json")
    arguments = ["report", "--results", str(tmp_path), "--plots", str(tmp_path / "plots")]
    assert command.main(arguments) == 0
    printed = capsys.readouterr().out
    assert "## cpu.json" in printed
    assert "| pack_signs | tiny |" in printed
    assert "## Targets" in printed
    for plot in ("cpu.svg", "cpu.bandwidth.svg"):
        assert "<svg" in (tmp_path / "plots" / plot).read_text()
    page = tmp_path / "page.md"
    page.write_text("a\n<!-- results: cpu.json -->\nold\n<!-- end of results -->\nz\n")
    assert command.main([*arguments, "--into", str(page)]) == 0
    text = page.read_text()
    assert "| pack_signs | tiny |" in text
    assert "old" not in text
    assert text.endswith("\nz\n")
    assert report.filled(text, report.load(tmp_path)) == text
    page.write_text("<!-- results: nothing.json -->\n<!-- end of results -->\n")
    assert command.main([*arguments, "--into", str(page)]) == 2
    assert "'nothing.json' has no results" in capsys.readouterr().err
    (tmp_path / "other.json").write_text("[]")
    assert command.main(arguments) == 2
    assert "other.json is no result" in capsys.readouterr().err


@pytest.mark.parametrize(
    "page",
    [
        "README",
        *(f"docs/{name}" for name in ("benchmarks", "cards", "generation", "processes")),
        "benchmarks/results/README",
    ],
)
def test_committed_results_are_what_the_documents_say(page):
    runs = report.load(report.RESULTS)
    text = (ROOT / f"{page}.md").read_text()
    assert report.BEGIN in text
    assert report.filled(text, runs) == text, "run `make report`"


def _row(op, shape, name, kind, us, gb_s=0.0, gflop_s=0.0):
    return {
        "op": op, "shape": shape, "name": name, "kind": kind, "device": "cpu", "median_us": us,
        "gb_s": gb_s, "gflop_s": gflop_s,
    }  # fmt: skip


def _run(device="cpu", date="2026-01-01 00:00 UTC", **content):
    machine = {"device": device, "date": date}
    if device == "cuda":
        card = {"name": "NVIDIA H200", "multiprocessors": 132}
        machine |= {"cuda": {"devices": [card]}, "commit": "abc", "packages": {}}
    return {"machine": machine, "limits": {}, "rows": [], "images": [], **content}


def _target(device, what, measure):
    found = (t for t in targets.TARGETS if (t.device, t.what, t.measure) == (device, what, measure))
    return next(found)


def test_each_shape_of_a_target_is_judged_by_the_newest_result_that_has_it():
    what = "hamming_distance"
    first, second, *_ = _target("cpu", what, "speedup").shapes()

    def timed(shape, us, **more):
        ours = _row(what, shape, "cpu", "backend", 1.0) | more
        return [_row(what, shape, "faiss", "baseline", us), ours]

    old = _run(rows=timed(first, 1.0) + timed(second, 0.9))
    bound = {"bound": "memory", "bound_us": 0.5}
    new = _run(date="2026-02-01 00:00 UTC", rows=timed(first, 11.0, **bound))
    later = _run(date="2026-03-01 00:00 UTC")
    text = targets.table({"old.json": old, "new.json": new, "later.json": later})
    goal = "at least 0.97x faiss"
    assert (
        f"| CPU | {what} | {first} | {goal} | 0.5 us, memory | 11x | **reached** | new.json |"
        in text
    )
    assert f"| {second} | {goal} | not counted | 0.90x | missed | old.json |" in text
    assert f"| {second} | {goal} | not counted |  | not measured |  |" in targets.table({})
    on_card = _run("cuda", rows=new["rows"], dry_run=True)
    assert "reached" not in targets.table({"dry.json": on_card})


def test_no_shape_stands_for_another():
    """What was measured at some megabytes says nothing about a gigabyte."""
    target = _target("cuda", "flip_signs", "share")
    (shape,) = target.shapes()
    run = _run("cuda", limits={"copy_gb_s": 1.0})
    run["rows"] = [_row("flip_signs", "4.2 M float32", "cuda", "backend", 1.0, gb_s=9.0)]
    assert target.value(shape, run) is None
    run["rows"] = [_row("flip_signs", shape, "cuda", "backend", 1.0, gb_s=9.0)]
    assert target.value(shape, run) == 9.0


def test_targets_of_every_unit_are_measured():
    """Each target finds its figure in a result that has it, and less is better where it is."""
    images = [
        {"model": m, "batch": b, "path": p, "ms": ms, "parts_ms": {"decoder": ms}}
        for m in ("fashion, 1 thread", "fashion, 2 threads", "B-16x", "B-1x")
        for b in (1, 8, 64, 384)
        for p, ms in (("fast", 1.1), ("published", 22.0), (tables.BOUND, 1.0))
    ]
    rates = dict.fromkeys(("copy_gb_s", "read_gb_s", "write_gb_s"), 1.0)
    baselines = {t.arguments["over"] for t in targets.TARGETS if "over" in t.arguments}

    def timed(op, shape):
        bound = {"bound": "memory", "bound_us": 1.9}
        ours = _row(op, shape, "cpu", "backend", 2.0, 0.9, 9e5) | {"peak_mb": 1} | bound
        others = (_row(op, shape, b, "baseline", 200.0) for b in sorted(baselines))
        return [ours, *(row | {"peak_mb": 40} for row in others)]

    cases = all_benches().values()
    rows = [row for case in cases for t in case.timings for row in timed(case.name, t.name)]
    named = (t.arguments for t in targets.TARGETS if "shape" in t.arguments)
    models = [row for given in named for row in timed(given["op"], given["shape"])]
    plans = [
        {"what": "plan", "part": "head", "repeatable": True, "model": m, "rows": r, "us": 9.0}
        for m, r in (("B-1x", 2), ("B-16x", 32))
    ]
    everything = {
        "c": _run(limits=rates, rows=rows, images=images, models=models),
        "g": _run("cuda", limits=rates, rows=rows, images=images, ways=plans),
    }
    lines = targets.table(everything).splitlines()[2:]
    assert len(lines) >= len(targets.TARGETS)
    assert [line for line in lines if "**reached**" not in line] == []


def test_a_target_of_less_is_missed_above_it():
    target = _target("cuda", "packed_linear", "microseconds")
    assert [target.state(us) for us in (11.9, 12.1)] == ["**reached**", "missed"]
    share = _target("cuda", "flip_bits", "bound_share")
    assert [share.state(value) for value in (0.81, 0.79)] == ["**reached**", "missed"]


def test_what_bounds_an_op_is_the_longest_of_its_limits():
    """At the rates of a card, by hand."""
    probes = [
        {"probe": "launch to launch", "setting": "plain", "us": 1.3},
        {"probe": "launch to launch", "setting": "PDL", "us": 0.8},
    ]
    limits = {"copy_gb_s": 4000.0, "bf16_tflop_s": 800.0, "sm_clock_ghz": 2.0}
    run = _run("cuda", limits=limits, probes=probes)
    attention = "block_causal_attention"
    # q, k, v and the result; the 63 tokens of a prefix see each other and themselves before.
    moved = 4 * 64 * 319 * 12 * 64 * 2
    expected = (moved / 4e12, "copy")
    assert bounds.of_op(attention, "ImageNet B, 64 images, bfloat16", run) == expected
    pairs = 8192 * 8193 // 2
    expected = (4 * 40 * 128 * pairs / 800e12, "matrix rate")
    assert bounds.of_op(attention, "causal 8k, bfloat16", run) == pytest.approx(expected)
    assert bounds.of_op("denoise_step", "B-16x batch 1 [1, 16, 32] bfloat16", run) == (
        pytest.approx(0.8e-6), "launch",
    )  # fmt: skip
    # Eight words a pair, of which each is counted at 16 a cycle of 132 multiprocessors.
    seconds = 8 * 4096**2 / (16 * 132 * 2.0e9)
    found = bounds.of_op("hamming_distance", "4096 x 4096, 256 bits", run)
    assert found == (pytest.approx(seconds), "instructions")
    assert bounds.of_op("hamming_distance", "another", run) is None
    before = bounds.of_image("B-1x", 1, run | {"limits": {**limits, "l2_gb_s": 7000.0}})
    faster = [*probes, {"probe": "exchange, words", "setting": "6 KB", "us": 0.5}]
    run = run | {"limits": {**limits, "l2_gb_s": 7000.0}, "probes": faster}
    assert bounds.of_image("B-1x", 1, run)["head"] < before["head"]
    step = ("denoise_step", "B-16x batch 1 [1, 16, 32] bfloat16")
    assert bounds.of_op(*step, run).seconds == pytest.approx(0.8e-6)
    assert bounds.of_op("hamming_distance", "4096 x 4096, 256 bits", _run("cuda")) is not None


def test_every_target_has_a_shape_and_every_measured_one_a_bound_and_a_file():
    lines = targets.table(report.load(report.RESULTS)).splitlines()[2:]
    for line in lines:
        _, device, _, shape, _, bound, measured, _, file, _ = map(str.strip, line.split("|"))
        assert shape
        if measured:
            assert (report.RESULTS / file).exists()
        if device == "GPU" and "memory" not in line:
            assert bound != "not counted", line


def test_rows_of_what_there_is_no_more_are_left_out(tmp_path):
    shape = all_benches()["swiglu"].timings[0].name
    run = _run(limits={"read_gb_s": 1.0}, threads=1)
    run["machine"] = machine.describe(torch.device("cpu"), 1)
    run["rows"] = [
        _row("swiglu", shape, "cpu", "backend", 1.0),
        _row("swiglu", shape, "a backend that is gone", "backend", 1.0),
        _row("swiglu", "a shape that is gone", "cpu", "backend", 1.0),
        _row("an op that is gone", shape, "cpu", "backend", 1.0),
    ]
    (tmp_path / "run.json").write_text(json.dumps(run))
    (loaded,) = report.load(tmp_path).values()
    assert loaded["rows"] == run["rows"][:1]
    assert "3 rows of what this version no longer has are left out." in tables.speedups(loaded)


def test_the_page_of_cards_says_what_has_run_and_what_has_not():
    ran = _run(
        "cuda", done=["small: flip_bits", "small: swiglu", "small: rope"],
        failed={"small: swiglu": "why"}, passed={"swiglu, triton, graph": 3},
        checks=[{"op": "swiglu", "backend": "triton", "wrong": "all of it"}],
    )  # fmt: skip
    ran["not run"] = {"small: rope": "the time was used up"}
    ran["machine"] |= {"packages": {"torch": "1", "triton": "2"}}
    text = cards.page({"gpu-small.json": ran, "cpu.json": _run()})
    where = "NVIDIA H200 | torch 1 triton 2 | abc | 2026-01-01 00:00 UTC | gpu-small.json"
    for name, part in parts.PARTS.items():
        what = f"{where} | 1 | 1 | 1 |" if name == "small" else "**none yet** |"
        assert f"| `{name}` | {part.proves} | {what}" in text
    assert "* `small`, gpu-small.json, not run or not in full: rope.\n" in text
    assert "| swiglu |  | 3 passed, 1 failed at abc |" in text
    assert "| pack_signs | **not run** | **not run** |" in text


def test_benchmarks_are_at_most_a_sixth_of_the_packages():
    def size(*folders):
        kinds = {".py", ".h", ".cpp", ".cu", ".cuh"}
        paths = (path for folder in folders for path in (ROOT / folder).rglob("*"))
        return sum(path.stat().st_size for path in paths if path.suffix in kinds)

    assert size("benchmarks") <= size("bitdance", "bitdance_kernels", "csrc") / 6


def test_cpu_command_writes_its_file(small, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(cpu, "_images", lambda result, *_: result["images"].append({"ms": 1}))
    monkeypatch.setattr(cpu.start, "rows", lambda starts: [{"op": "start", "starts": starts}])
    comparison = Comparison("decoder", "tiny", {"bitdance": float, "other": int}, 2e6)
    monkeypatch.setattr(cpu, "MODELS", {"decoder": lambda: iter([comparison])})
    monkeypatch.setattr(command, "all_benches", lambda: {"pack_signs": small})
    out = tmp_path / "cpu.json"
    arguments = ["--only", "start", "images", "decoder", "ops", "--threads", "2"]
    assert command.main(["cpu", "--out", str(out), "--quick", *arguments]) == 0
    result = json.loads(out.read_text())
    assert {row["op"] for row in result["rows"]} == {"pack_signs"}
    assert result["limits"] == {"read_gb_s": 20.0, "fma_gflop_s": 80.0}
    assert len(result["images"]) == 2 * 2
    first, *rows = result["models"]
    assert first == {"op": "start", "starts": 1}
    assert [row["name"] for row in rows] == ["bitdance", "other"] * 2
    assert [row["shape"] for row in rows] == ["tiny"] * 2 + ["tiny, 2 threads"] * 2
    assert "ops: pack_signs" in capsys.readouterr().out


def test_a_comparison_says_what_failed_and_what_is_lost(capsys):
    """A peer that is missing is a line below the table, not an error."""

    def missing():
        peers.installed("no_such_package")

    ways = {"bitdance": lambda: sum(range(20000)), "quick": int, "missing": missing}
    result = cpu.new_result()
    cpu.compare(result, Comparison("decoder", "tiny", ways), 0.0)
    assert cpu.report(result) == 0
    printed = capsys.readouterr().out
    assert "not timed: decoder, tiny: missing: RuntimeError: not installed" in printed
    assert "**quick: 0.0" in printed
    assert "1 of 1 comparisons are lost by more than 3%." in printed
    with pytest.raises(RuntimeError, match=r"^bitdance: ValueError: no$"):
        cpu.compare(result, Comparison("decoder", "tiny", {"bitdance": _refuse}), 0.0)


def test_ways_take_turns_and_slow_ones_are_left_out():
    calls = []
    ways = {name: functools.partial(calls.append, name) for name in ("a", "b")}
    turns = timing.take_turns(ways, 8)
    rounds = [calls[i : i + 2] for i in range(0, 18, 2)]  # a first call of each, then eight rounds
    assert len(calls) == 18
    assert all(sorted(turn) == ["a", "b"] for turn in rounds)
    assert {tuple(turn) for turn in rounds} == {("a", "b"), ("b", "a")}
    assert [len(t) for t in turns.values()] == [8, 8]
    ticks = iter(range(10**6))
    slow = types.SimpleNamespace(perf_counter=lambda: next(ticks), process_time=lambda: 0.0)
    with mock.patch.object(timing, "time", slow):
        turns = timing.take_turns({"quick": int}, 5, seconds=200.0)
        assert len(turns["quick"]) > 5
        turns = timing.take_turns({"slow": int}, 5, seconds=0.5)
    assert len(turns["slow"]) == 5


def _refuse():
    raise ValueError("no")


def test_programs_compare_or_give_figures(tmp_path, monkeypatch, capsys):
    comparison = Comparison("decoder", "tiny", {"bitdance": float})
    monkeypatch.setattr(cpu, "MODELS", {"decoder": lambda: iter([comparison])})
    out = tmp_path / "figures.json"
    assert command.main(["model", "decoder", "--out", str(out)]) == 0
    assert "| decoder | tiny | bitdance |" in capsys.readouterr().out
    assert json.loads(out.read_text())["models"][0]["op"] == "decoder"
    figures = {"seconds": {"fast": 1.5}}
    monkeypatch.setitem(command.PROGRAMS, "packed_dataset", lambda: figures)
    assert command.main(["model", "packed_dataset", "--out", str(out)]) == 0
    assert json.loads(out.read_text()).items() >= figures.items()


def test_cpu_command_goes_on_behind_a_failure(small, tmp_path, monkeypatch, capsys):
    def broken(*_):
        raise OSError("no model today")

    monkeypatch.setattr(cpu, "_images", broken)
    arguments = ([small], tmp_path / "cpu.json", ["images", "ops"])
    assert cpu.main(*arguments, threads=1, quick=True) == 1
    assert "ERROR images: batch 1, threads 1: OSError: no model today" in capsys.readouterr().out
    assert json.loads((tmp_path / "cpu.json").read_text())["rows"]


def test_gradients_are_timed():
    def op(x, *, backend):
        calls.append(backend)
        return x * x

    calls = []
    case = Bench(op, "exact", lambda device: iter(()), baselines={"exp": torch.exp})
    call = Call("x", (torch.randn(3),))
    with torch.inference_mode():
        timed = timing.functions(case, ["reference"], backward=True)
        (grad_x,), (grad_exp,) = timed["reference"](call), timed["exp"](call)
    assert calls == ["reference"]
    torch.testing.assert_close(grad_x, 2 * call.args[0])
    torch.testing.assert_close(grad_exp, call.args[0].exp())
