import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from benchmarks import __main__ as command
from benchmarks import bounds, cards, cpu, machine, plots, products, report, tables, targets, timing
from benchmarks.gpu import parts
from benchmarks.model import decode, paths, training
from benchmarks.model.published import Published
from benchmarks.shapes import Bench, Timing, all_benches
from bitdance.sampling.class_conditional import ClassConditionalSampler
from bitdance_kernels import swiglu
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
    return Bench(case.op, case.rule, case.samples, timings=(timing,), baselines=case.baselines)


@pytest.fixture(autouse=True)
def _small_limits(monkeypatch):
    monkeypatch.setattr(cpu.machine, "cpu_limits", lambda: {"read_gb_s": 20.0})


def test_list_names_every_op(capsys):
    assert command.main(["list"]) == 0
    printed = capsys.readouterr().out
    for name in all_benches():
        assert f"\n{name}\n" in f"\n{printed}"


def test_run_times_backends_and_baselines(small, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(command, "all_benches", lambda: {"pack_signs": small})
    out = tmp_path / "new" / "run.json"
    assert command.main(["run", "pack_signs", "--seconds", "0.01", "--out", str(out)]) == 0
    result = json.loads(out.read_text())
    assert result["wrong"] == []
    names = {row["name"] for row in result["rows"]}
    assert {"reference", "numpy", "torch"} <= names
    for row in result["rows"]:
        assert 0 < row["min_us"] <= row["q25_us"] <= row["median_us"] <= row["q75_us"]
        assert row["rounds"] >= 5
        assert row["gb_s"] == pytest.approx(272 / row["median_us"] / 1e3)
    printed = capsys.readouterr().out
    assert "| pack_signs | tiny |" in printed
    assert " numpy: " in printed
    assert "read 20.0 GB/s" in printed
    assert "not timed: pack_signs: cuda: " in printed


def test_a_wrong_backend_is_not_timed(small, monkeypatch, capsys):
    op = small.kernel_op
    right = op.backend("triton")
    wrong = dataclasses.replace(right, run=lambda x: right.run(x) ^ 1)
    monkeypatch.setitem(op._loaded, "triton", wrong)
    result = cpu.new_result(1)
    cpu.add(result, small, 0.01, ["triton"])
    assert result["rows"] == []
    assert "elements differ" in result["wrong"][0]
    monkeypatch.setattr(command, "all_benches", lambda: {"pack_signs": small})
    assert command.main(["run", "pack_signs", "--backend", "triton"]) == 1
    assert "WRONG, so not timed: pack_signs" in capsys.readouterr().out


def test_unknown_ops_are_refused(capsys):
    with pytest.raises(SystemExit) as stopped:
        command.main(["run", "sign_pack"])
    assert stopped.value.code == 2
    assert "no op 'sign_pack'; there are " in capsys.readouterr().err


def test_report_makes_tables_and_plots(small, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(report, "all_benches", lambda: {"pack_signs": small})
    result = cpu.new_result(1)
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
    "page", ["README", "docs/benchmarks", "docs/cards", "benchmarks/results/README"]
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
    first, second = _target("cpu", what, "speedup").shapes()

    def timed(shape, us):
        return [
            _row(what, shape, "float product", "baseline", us),
            _row(what, shape, "cpu", "backend", 1.0),
        ]

    old = _run(rows=timed(first, 1.0) + timed(second, 9.0))
    new = _run(date="2026-02-01 00:00 UTC", rows=timed(first, 11.0), limits={"read_gb_s": 1.0})
    later = _run(date="2026-03-01 00:00 UTC")
    text = targets.table({"old.json": old, "new.json": new, "later.json": later})
    goal = "at least 10x a float product"
    assert (
        f"| CPU | {what} | {first} | {goal} | 67.37 ms, read | 11x | **reached** | new.json |"
        in text
    )
    assert f"| {second} | {goal} | not counted | 9.0x | missed | old.json |" in text
    alone = targets.table({"new.json": new})
    assert f"| {second} | {goal} | 4.20 ms, read |  | not measured | limits: new.json |" in alone
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
        for m in ("fashion", "B-16x", "B-1x")
        for b in (1, 8, 64, 384)
        for p, ms in (("fast", 1.1), ("published", 22.0), ("products alone", 1.0))
    ]
    limits = dict.fromkeys(("copy_gb_s", "read_gb_s", "write_gb_s"), 1.0)
    baselines = {t.arguments["over"] for t in targets.TARGETS if "over" in t.arguments}
    rows = []
    for case in all_benches().values():
        for shape in (t.name for t in case.timings):
            rows.append(_row(case.name, shape, "cpu", "backend", 2.0, 0.9, 9e5) | {"peak_mb": 1})
            rows += [
                _row(case.name, shape, b, "baseline", 200.0) | {"peak_mb": 40}
                for b in sorted(baselines)
            ]
    plans = [
        {"what": "plan", "part": "head", "repeatable": True, "model": m, "rows": r, "us": 9.0}
        for m, r in (("B-1x", 2), ("B-16x", 32))
    ]
    everything = {
        "c": _run(
            limits=limits,
            rows=rows,
            images=images,
            model={
                "head_sampling": {"runner / products": 1.1},
                "decode": {
                    f"{what}, decoder / convolutions": 1.1
                    for what in ("fashion, 1 image", "fashion, 8 images", "d16c32, 1 image")
                },
            },
        ),
        "g": _run("cuda", limits=limits, rows=rows, images=images, ways=plans),
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


def test_images_against_their_products_alone(tmp_path):
    model = paths.random_model(paths.TINY, torch.device("cpu"))
    rows = cpu.images("tiny", model, 2, 2, rounds=2, seconds=0.0)
    assert [row["path"] for row in rows] == ["fast", "plain", "published", "products alone"]
    fast = next(row for row in rows if row["path"] == "fast")
    alone = next(row for row in rows if row["path"] == "products alone")
    assert min(fast["ms"], alone["ms"]) > 0  # either may be less: `linear` is no product of theirs
    assert set(fast["parts_ms"]) == {"trunk", "head", "decoder"}
    run = _run(images=rows)
    assert f"| {fast['ms'] / alone['ms']:.2f} |" in tables.images(run)
    plots.draw(run, tmp_path / "tiny")
    assert "products alone" in (tmp_path / "tiny.images.svg").read_text()
    for factor in (1, 100, 0.001):  # whichever of the two is the faster one
        fast["ms"] *= factor
        plots.draw(run, tmp_path / "tiny")
        summary = (tmp_path / "tiny.summary.svg").read_text()
        assert "published" in summary
        assert f" {tables.milliseconds(fast['ms'])}<" in summary


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_products_are_recorded_and_replayed(mode):
    weight = torch.randn(5, 3)
    out = torch.empty(2, 5)

    @mode()
    def work():
        x = torch.randn(2, 3)
        torch.addmm(torch.zeros(5), x, weight.t(), out=out)
        F.conv2d(torch.randn(1, 2, 4, 4), torch.randn(3, 2, 1, 1))
        swiglu(x.repeat(1, 2) @ torch.randn(6, 4)) + 1

    recorded = products.record(work, [weight])
    assert [p.function._schema.name for p in recorded] == [
        "aten::addmm", "aten::convolution", "aten::mm",
    ]  # fmt: skip
    assert recorded[0].args[2].data_ptr() == weight.data_ptr()
    assert products.flops(recorded) == 2 * (2 * 3 * 5 + 16 * 2 * 3 + 2 * 6 * 4)
    products.replay(recorded)


def test_the_published_sampler_gives_the_models_tokens():
    model = paths.random_model(paths.TINY, torch.device("cpu"))
    for P in (1, 4):
        config = dataclasses.replace(paths.TINY, parallel_num=P)
        model = paths.random_model(config, torch.device("cpu"))
        draw = torch.Generator().manual_seed(P)
        patch = () if P == 1 else (P,)
        noise = [
            [torch.randn(4 if i == 0 else 2, *patch, 8, generator=draw) for _ in range(4)]
            for i in range(config.ar_steps)
        ]
        labels = torch.tensor([0, 2])
        sampler = ClassConditionalSampler(model)
        expected = sampler.sample(labels, num_inference_steps=3, guidance_scale=2.0, noise=noise)
        actual = Published(model, compiled=False).sample(
            labels, num_inference_steps=3, guidance_scale=2.0, noise=noise
        )
        assert len(expected.unique()) == 2
        assert (
            actual == expected
        ).float().mean() > 0.99  # a value next to 0 may round to the other
        decoded = Published(model, compiled=False).decode(expected.to(torch.float32))
        torch.testing.assert_close(decoded, model.decode(expected.to(torch.float32)))


def test_cpu_command_writes_its_file(small, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(cpu, "_images", lambda result, *_: result["images"].append({"ms": 1}))
    monkeypatch.setattr(cpu, "_model", lambda result, name, *_: result["model"].update({name: {}}))
    monkeypatch.setattr(command, "all_benches", lambda: {"pack_signs": small})
    out = tmp_path / "cpu.json"
    assert command.main(["cpu", "--out", str(out), "--quick", "--threads", "1"]) == 0
    result = json.loads(out.read_text())
    assert {row["op"] for row in result["rows"]} >= {"pack_signs"}
    assert result["limits"] == {"read_gb_s": 20.0}
    assert len(result["images"]) == 2
    assert set(result["model"]) == set(cpu.PROGRAMS)
    assert "ops: pack_signs" in capsys.readouterr().out


def test_programs_of_the_model_give_their_figures(tmp_path, monkeypatch, capsys):
    figures = {"seconds": {"fast": 1.5}, "runner / products": 1.25}
    monkeypatch.setitem(command.PROGRAMS, "packed_dataset", lambda: figures)

    def call(arguments, **options):
        assert arguments[1:4] == ["-m", "benchmarks", "model"]
        return subprocess.CompletedProcess(arguments, command.main(arguments[3:]))

    monkeypatch.setattr(cpu.subprocess, "run", call)
    monkeypatch.setattr(cpu.machine, "describe", lambda *_: {"threads": 1})
    result = {"model": {}}
    cpu._model(result, "packed_dataset", 1)
    assert result["model"] == {"packed_dataset": {"machine": {"threads": 1}, **figures}}
    assert tables.model(result).splitlines()[2:] == [
        "| packed_dataset | seconds, fast | 1.5 |",
        "| packed_dataset | runner / products | 1.25 |",
    ]
    assert '"runner / products": 1.25' in capsys.readouterr().out


def test_decoding_is_held_against_its_convolutions_alone():
    model = paths.random_model(paths.TINY, torch.device("cpu")).vae
    figures = decode.decoding(model, "tiny", images=2, cells=4, rounds=1)
    seconds = figures["tiny, 2 images, seconds"]
    assert set(seconds) == {"decoder", "plain", "NCHW", "NHWC"}
    alone = min(seconds["NCHW"], seconds["NHWC"])
    ratios = {way: figures[f"tiny, 2 images, {way} / convolutions"] for way in ("decoder", "plain")}
    assert ratios == {way: seconds[way] / alone for way in ratios}
    assert figures["tiny, 2 images, grey levels between decoder and plain"] <= 1


def test_cpu_command_goes_on_behind_a_failure(small, tmp_path, monkeypatch, capsys):
    def broken(*_):
        raise OSError("no model today")

    monkeypatch.setattr(cpu, "_images", broken)
    arguments = ([small], tmp_path / "cpu.json", ["images", "ops"])
    assert cpu.main(*arguments, threads=1, quick=True) == 1
    assert "ERROR images: fashion, batch 1: OSError: no model today" in capsys.readouterr().out
    assert json.loads((tmp_path / "cpu.json").read_text())["rows"]


@pytest.mark.slow
def test_bench_collects_every_cpu_shape():
    call = [sys.executable, "-m", "pytest", "benchmarks/bench_cpu.py", "-o", "addopts=-q"]
    done = subprocess.run([*call, "--collect-only"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for case in all_benches().values():
        for shape in case.timings:
            collected = f"test_speed[{case.name}, {shape.name}]" in done.stdout
            assert collected == ("cpu" in shape.devices)


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


def test_training_step_is_the_same_every_way():
    """What is timed against each other computes the same loss and gradients."""
    torch.manual_seed(0)
    model = paths.random_model(paths.TINY, torch.device("cpu")).requires_grad_(True).train()
    tokens, draws = paths.random_tokens(model, 2), training.draws(model, 2)
    weights = [w for w in model.parameters() if w.requires_grad]
    results = {}
    for way in training.WAYS:
        with training.going(way, model):
            loss = model(tokens, torch.tensor([0, 1]), draws)
            results[way] = [loss, *torch.autograd.grad(loss, weights, allow_unused=True)]
    for way in ("plain", "published"):
        torch.testing.assert_close(results[way], results["fast"])


def test_training_benchmark_measures(monkeypatch):
    model = paths.random_model(paths.TINY, torch.device("cpu")).requires_grad_(True)
    figures = training.training(model, 2, 1)
    assert set(figures["seconds"]) == set(figures["head peak bytes"]) == set(training.WAYS)
    rows, tokens, width = figures["head rows"]
    assert min(figures["head peak bytes"].values()) > 4 * rows * tokens * width
