"""`python -m benchmarks gpu` without a card: --dry-run, and the process that is replaced."""

import dataclasses
import functools
import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import pytest
import torch
import triton.testing
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import __main__ as command
from benchmarks import gpu, tables, timing
from benchmarks.gpu import checks, large, limits, ops, parts, training
from benchmarks.gpu.worker import Context, collect, work, write
from benchmarks.model import bound, paths
from benchmarks.model import training as model_training
from benchmarks.shapes import Bench, Timing, all_benches
from bitdance_kernels.testing import Call

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def dry_run(tmp_path_factory):
    out = tmp_path_factory.mktemp("gpu")
    usual = [name for name in parts.PARTS if name not in ("attack", "decide")]  # with own tests
    assert command.main(["gpu", "--out", str(out), "--dry-run", "--only", *usual]) == 0
    return json.loads((out / "dry-run.json").read_text())


@pytest.mark.slow
@pytest.mark.nightly
def test_dry_run_goes_through_every_part(dry_run):
    assert dry_run["failed"] == {}
    assert dry_run["not run"] == {}
    assert {key.partition(":")[0] for key in dry_run["done"]} == set(parts.STEPS) - {
        "attack",
        "decide",
    }
    assert {"copy_gb_s", "bf16_tflop_s"} <= dry_run["limits"].keys()
    probes = {probe["probe"] for probe in dry_run["probes"]}
    assert probes == {"L2 read", "launch to launch"}


@pytest.mark.slow
@pytest.mark.nightly
def test_dry_run_checks_every_op_on_reference_and_interpreter(dry_run):
    done = {tuple(name.split(", ")) for name in dry_run["passed"]}
    assert dry_run["checks"] == []  # none is wrong
    for name, case in all_benches().items():
        for backend in case.kernel_op.backends:
            on_cards = (name, backend) == ("linear_fp8", "triton")  # by PyTorch's float8 product
            if case.kernel_op.unavailable(backend) is None and not on_cards:
                for kind in checks.KINDS:
                    assert (name, backend, kind) in done
    assert {op for op, _, kind in done if kind == "past 2^31"} == set(large.SHAPES)
    assert {row["op"] for row in dry_run["rows"]} == set(all_benches())


@pytest.mark.slow
@pytest.mark.nightly
def test_dry_run_times_whole_images(dry_run):
    images = {image["path"]: image for image in dry_run["images"]}
    assert {"fast", "published"} <= images.keys()
    for image in images.values():
        assert 0 < image["min_ms"] <= image["ms"]
        assert image["ar_steps_timed"] == image["ar_steps"] == 4
        assert set(image["parts_ms"]) == {"trunk", "head", "decoder"}


def _context(tmp_path, cases, parts):
    return Context(cases, tmp_path / "run.jsonl", parts, dry_run=True)


def test_wrong_ops_and_failing_samples_are_recorded(tmp_path, monkeypatch, capsys):
    case = all_benches()["pack_signs"]
    op = case.kernel_op
    right = op.backend("triton")
    wrong = dataclasses.replace(right, run=lambda x: right.run(x) ^ 1)
    monkeypatch.setitem(op._loaded, "triton", wrong)
    monkeypatch.setattr(op, "_chosen", {})  # of calls before

    def broken(device):
        raise OSError("no samples today")
        yield

    cases = [Bench(all_benches()["swiglu"].op, "rounded", broken), case]
    assert gpu.main(cases, tmp_path, {"checks": 60.0}, dry_run=True) == 1
    result = json.loads((tmp_path / "dry-run.json").read_text())
    assert "no samples today" in result["failed"]["checks: swiglu"]
    assert any(check["wrong"] for check in result["checks"])
    printed = capsys.readouterr().out
    assert "FAILED pack_signs triton reference" in printed
    assert "ERROR checks: swiglu: OSError: no samples today" in printed


@pytest.mark.parametrize("kind", ["repeated", "like before", "graph", "stream"])
def test_what_changes_from_run_to_run_is_found(kind):
    calls = []

    def op(x, *, backend):
        calls.append(backend)
        return x + len(calls)

    op.__name__ = "swiglu"  # some op that there is
    case = Bench(op, "exact", lambda device: iter(()))
    with pytest.raises(AssertionError, match=r"differs in [1-9]"):
        checks.KINDS[kind](case, Call("x", (torch.ones(8),)), "reference")


def test_a_wrapped_offset_is_found():
    """As if addresses past 4096 elements began again at 0."""
    built = large.build(all_benches()["swiglu"], CPU, 2**12)
    assert max(t.numel() for t in built.large.tensors()) > 2**12

    def op(x, *, backend):
        y = all_benches()["swiglu"].op(x, backend=backend)
        flat = y.view(-1)
        if flat.numel() > 2**12:
            flat[2**12 :] = flat[: flat.numel() - 2**12].clone()
        return y

    large.check(all_benches()["swiglu"], built, "reference")
    built = large.build(all_benches()["swiglu"], CPU, 2**13 + 2304)
    with pytest.raises(AssertionError, match="not those of the same rows"):
        large.check(Bench(op, "exact", lambda device: iter(())), built, "reference")


def test_the_time_that_is_used_up_is_said(tmp_path, capsys):
    context = _context(tmp_path, [all_benches()["swiglu"]], {"checks": 0.0, "timings": 0.0})
    assert work(context, parts.STEPS) == 0
    assert context.result["not run"]["checks: swiglu"] == "the time was used up"
    assert context.result["not run"]["timings: swiglu"] == "the time was used up"
    assert context.result["rows"] == []


def test_pytorchs_copy_of_pybind11_stands_in(monkeypatch, tmp_path):
    """A machine with a card may have PyTorch and nvcc and little else."""
    assert gpu.with_pybind11({"A": "1"}) == {"A": "1"}
    monkeypatch.setattr(gpu.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(gpu, "ROOT", tmp_path)
    environment = gpu.with_pybind11({**os.environ, "PYTHONPATH": "elsewhere"})
    code = "import pybind11; print(pybind11.get_include())"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert (Path(done.stdout.strip()) / "pybind11" / "pybind11.h").exists()
    assert environment["PYTHONPATH"].endswith(f"{os.pathsep}elsewhere")


WORKER = """
import json, os, time
path = {path!r}
def write(name, value):
    with open(path, "a") as file:
        file.write("\\n" + json.dumps([name, None, value]))
done = open(path).read() if os.path.exists(path) else ""
for step in ("one", "crash", "hang", "last"):
    if json.dumps(["done", None, step]) in done:
        continue
    write("doing", step)
    if step == "crash":
        with open(path, "a") as file:
            file.write('\\n["rows", null, {{"half a l')
        os._exit(139)
    if step == "hang" and {hang}:
        time.sleep(60)
    write("done", step)
    write("doing", None)
"""


@pytest.mark.parametrize("hang", [False, True])
def test_a_process_that_dies_costs_its_step_alone(tmp_path, hang, monkeypatch):
    path = tmp_path / "run.jsonl"
    monkeypatch.setattr(gpu, "GRACE", 0.5)
    monkeypatch.setattr(gpu, "_POLL", 0.05)
    code = WORKER.format(path=str(path), hang=hang)
    start = time.monotonic()
    gpu.supervise([sys.executable, "-c", code], path, 60.0, 4.0)
    assert time.monotonic() - start < 50  # it hangs for a minute
    result = collect(path)
    assert result["done"] == ["one", "crash", "hang", "last"]
    expected = {"crash": "the process ended with status 139 in this step"}
    expected |= {"hang": "the process hung in this step"} if hang else {}
    assert result["failed"] == expected
    assert result["rows"] == []


@pytest.mark.slow
def test_the_worker_understands_its_command(tmp_path):
    """On the CPU, where the real one would have the card."""
    command = gpu.worker_command(["swiglu"], tmp_path, {"checks": 30.0, "large": 9.0}, (1, 2))
    path = gpu.journal_of(tmp_path, {"checks": 30.0, "large": 9.0}, 1, 2)
    gpu.supervise([*command, "--dry-run"], path, 60.0)
    result = collect(path)
    assert result["failed"] == {}
    assert result["done"] == ["checks: swiglu", "large: swiglu"]
    assert {check["check"] for check in result["checks"]} == {"past 2^31"}  # of one sample, half


def test_processes_that_check_side_by_side_are_put_together(tmp_path, monkeypatch):
    ran = []

    def supervise(command, path, seconds, patience):
        at = command.index("--worker")
        i, count = map(int, command[at + 1 : at + 3])
        ran.append((i, count))
        if i == 2:
            return  # it never began
        for _ in range(i):
            check = {"op": "x", "backend": "cpu", "check": "graph", "wrong": None}
            write(path, "checks", check)
        write(path, "done", "checks: x")
        if i == 1:
            write(path, "failed", "slow", "checks: x")

    monkeypatch.setattr(gpu, "supervise", supervise)
    monkeypatch.setattr(gpu, "build", lambda: None)
    monkeypatch.setattr(gpu, "_CHECKERS", 4)
    monkeypatch.setattr(gpu.os, "cpu_count", lambda: 16)
    assert gpu.main([all_benches()["swiglu"]], tmp_path, {"checks": 5.0}) == 1
    assert sorted(ran) == [(i, 4) for i in range(4)]
    result = json.loads((tmp_path / "gpu-checks.json").read_text())
    assert result["passed"] == {"x, cpu, graph": 0 + 1 + 3}
    never = {"run": "1 of 4 processes never began"}
    assert result["failed"] == {"checks: x": "slow", **never}


def test_a_part_fits_its_lease(tmp_path, monkeypatch):
    """The build is in its time, and a kernel that hangs must not take all of it."""
    ran = []

    def supervise(command, path, seconds, patience):
        ran.append((command, seconds, patience))
        write(path, "machine", {})

    def build():
        monkeypatch.setattr(gpu.time, "monotonic", lambda: 100.0)
        return "no nvcc"

    monkeypatch.setattr(gpu, "supervise", supervise)
    monkeypatch.setattr(gpu, "build", build)
    monkeypatch.setattr(gpu.time, "monotonic", lambda: 60.0)
    assert gpu.main([all_benches()["linear"]], tmp_path, {"decide": 480.0}) == 0
    ((command, seconds, patience),) = ran
    assert command[command.index("--budget") + 1] == "decide=440.0"
    assert (seconds, patience) == (500.0, 45.0)
    assert json.loads((tmp_path / "gpu-decide.json").read_text())["cuda module"] == "no nvcc"
    assert parts.START + parts.SECONDS + gpu.GRACE < parts.LEASE


def test_sums_that_are_divided_otherwise_are_held_by_the_rule():
    """Where the rows' number changes their rounding, rounding passes and another row does not."""
    case = all_benches()["group_norm_silu"]
    built = large.build(case, CPU, 2**18)

    def op(change):
        def changed(x, *args, backend, **kwargs):
            y = case.op(x, *args, backend=backend, **kwargs)
            return change(y) if len(x) > len(built.block.args[0]) else y

        changed.__name__ = case.name
        return Bench(changed, case.rule, case.samples)

    def neighbor(y):
        flat = y.view(torch.int16).clone()
        flat.view(-1)[:1] += 1
        return flat.view(y.dtype)

    large.check(op(neighbor), built, "reference")
    with pytest.raises(AssertionError, match=r"many times over: .* over the bound"):
        large.check(op(lambda y: y.roll(1, 0)), built, "reference")


def test_what_a_check_raises_is_recorded(tmp_path):
    def op(x, *, backend):
        if x.is_contiguous():
            return x + 1
        raise OSError("no strides today")

    registered = all_benches()["swiglu"]
    op.__name__ = "swiglu"
    case = Bench(op, "rounded", registered.samples)
    assert gpu.main([case], tmp_path, {"checks": 60.0}, dry_run=True) == 1
    result = json.loads((tmp_path / "dry-run.json").read_text())
    assert "OSError: no strides today" in {check["wrong"] for check in result["checks"]}


def test_a_worker_that_never_starts_is_given_up(tmp_path):
    start = time.monotonic()
    command = [sys.executable, "-c", "import sys; sys.exit(1)"]
    gpu.supervise(command, tmp_path / "run.jsonl", 200.0)
    assert time.monotonic() - start < 100


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a card")
def test_without_a_card_it_says_so(tmp_path, capsys):
    assert command.main(["gpu", "--out", str(tmp_path)]) == 2
    assert "no CUDA device that PyTorch can use" in capsys.readouterr().err


def test_budgets_are_read(tmp_path, monkeypatch, capsys):
    seen = {}
    monkeypatch.setattr(gpu, "main", lambda *args, **options: seen.update(parts=args[2]) or 0)
    base = ["gpu", "--out", str(tmp_path), "--dry-run"]
    only = ["--only", "images", "checks", "--budget", "checks=12"]
    assert command.main([*base, *only]) == 0
    assert seen["parts"] == {"checks": 12.0, "images": gpu.DRY_RUN}
    assert command.main(base) == 0
    assert list(seen["parts"]) == list(parts.PARTS)
    with pytest.raises(SystemExit):
        command.main([*base, "--budget", "cheques=12"])
    assert "'cheques=12' is no PART=SECONDS" in capsys.readouterr().err


def test_the_next_part_is_the_first_without_a_result_or_the_oldest(tmp_path, monkeypatch):
    names = list(parts.PARTS)
    assert parts.due(tmp_path) == names

    def ran(name, date):
        parts.result_of(tmp_path, name).write_text(json.dumps({"machine": {"date": date}}))

    ran(names[0], "2026-01-02 00:00 UTC")
    ran(names[2], "2026-01-01 00:00 UTC")
    assert parts.due(tmp_path) == [names[1], *names[3:], names[2], names[0]]
    assert parts.due(tmp_path / "new", tmp_path) == parts.due(tmp_path)
    seen = {}
    monkeypatch.setattr(gpu, "main", lambda *args, **options: seen.update(parts=args[2]) or 0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(command.report, "RESULTS", tmp_path / "committed")
    assert command.main(["gpu", "--out", str(tmp_path)]) == 0
    assert seen["parts"] == {names[1]: parts.SECONDS}


def test_limits_are_measured_before_the_first_part_that_needs_them():
    given = {"checks": 9.0, "small": 90.0, "images": 80.0}
    found = parts.stages(given)
    assert list(found) == ["checks", "machine", "small", "images"]
    assert sum(found.values()) == sum(given.values())
    assert list(parts.stages({"checks": 5.0})) == ["checks"]


def test_an_op_that_is_wrong_is_not_timed(tmp_path, monkeypatch):
    cases = [all_benches()[name] for name in ("swiglu", "pack_signs")]
    op = cases[1].kernel_op
    right = op.backend("triton")
    wrong = dataclasses.replace(right, run=lambda x: right.run(x) ^ 1)
    monkeypatch.setitem(op._loaded, "triton", wrong)
    monkeypatch.setattr(op, "_chosen", {})  # of calls before
    context = _context(tmp_path, cases, {"small": 60.0})
    assert work(context, {"small": lambda c: ops.steps(c, "small", ["swiglu", "pack_signs"])}) == 0
    assert {row["op"] for row in context.result["rows"]} == {"swiglu"}
    assert "pack_signs is wrong" in context.result["not run"]["small: pack_signs"]


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("name", training.MODELS)
def test_training_goes_every_way_to_the_same_loss(name, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    losses, draws = {}, None
    for way in training.WAYS:
        model = training.model_of(name, CPU, tiny=True)
        if draws is None:
            draws, tokens = model_training.draws(model, 2), paths.random_tokens(model, 2)
        with torch.no_grad(), training.loss_of(way, model, compiled=True) as loss:
            losses[way] = loss(tokens, torch.tensor([0, 1]), draws)
    for way in training.WAYS[1:]:
        torch.testing.assert_close(losses[way], losses["fast"])


def test_operations_of_a_training_step():
    """Nearly those of PyTorch's counter, which sees no mask and no gradient that nobody needs."""
    model = training.model_of("14B-64x head", CPU, tiny=True)
    draws, tokens = model_training.draws(model, 2), paths.random_tokens(model, 2)
    with (
        FlopCounterMode(display=False) as counter,
        training.loss_of("published", model, compiled=False) as loss,
    ):
        loss(tokens, torch.tensor([0, 1]), draws).backward()
    assert bound.training_flops(model, 2) == pytest.approx(counter.get_total_flops(), rel=0.05)


def test_training_is_measured_as_on_a_card(tmp_path, monkeypatch):
    """With the CPU for a card: autocast, memory, the bound, and a way that needs too much."""
    context = _context(tmp_path, [], {"training": 60.0})
    context.dry_run = False
    context.add("limits", 2.0, "bf16_tflop_s")
    monkeypatch.setattr(Context, "device", CPU)
    tiny = functools.partial(training.model_of, tiny=True)
    monkeypatch.setattr(training, "model_of", lambda name, device, **_: tiny(name, device))
    monkeypatch.setattr(training, "_TIMED", (("14B-64x head", 2),))
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    memory = {"memory_allocated": 2e6, "max_memory_allocated": 5e6}
    for name in (*memory, "synchronize", "reset_peak_memory_stats"):
        monkeypatch.setattr(torch.cuda, name, lambda *_, name=name: memory.get(name))
    steps = dict(training.steps(context))
    assert len(steps) == len(training.WAYS)
    for way in ("fast", "published"):
        steps[f"14B-64x head, batch 2, {way}"]()
    rows = context.result["training"]
    assert [row["way"] for row in rows] == ["fast", "published"]
    assert [row["peak_mb"] for row in rows] == [3.0, 3.0]
    assert all(math.isfinite(row["loss"]) for row in rows)
    expected = 1e3 * bound.training_flops(training.model_of("14B-64x head", CPU), 2) / 2e12
    assert rows[0]["bound_ms"] == pytest.approx(expected)
    assert f"| 14B-64x head | 2 | fast | {tables.milliseconds(rows[0]['ms'])} | " in (
        tables.training(context.result)
    )

    def too_large(*_, **__):
        raise torch.OutOfMemoryError("out of memory\nand more")

    monkeypatch.setattr(training, "loss_of", too_large)
    steps["14B-64x head, batch 2, fast, compiled"]()
    assert context.result["not timed"] == {
        "training: 14B-64x head, batch 2, fast, compiled": "out of memory"
    }


@pytest.mark.slow
@pytest.mark.nightly
def test_dry_run_trains(dry_run):
    found = {(row["model"], row["way"]): row["loss"] for row in dry_run["training"]}
    ways = {way for _, way in found}
    assert ways == set(training.WAYS) - {"published, flex"}
    for name in training.MODELS:
        for way in ways:
            losses = (torch.tensor(found[name, w]) for w in (way, "fast"))
            torch.testing.assert_close(*losses)
    assert "| B-16x | 2 | fast | " in tables.training(dry_run)


def test_timings_begin_with_the_first_shape_of_every_op(tmp_path):
    case = all_benches()["pack_signs"]
    one = Timing("one", lambda device: Call("one", (torch.ones(1, 8),)), bytes=1)
    two = Timing("two", lambda device: Call("two", (torch.ones(1, 8),)), bytes=1)
    context = _context(
        tmp_path,
        [Bench(case.op, case.rule, case.samples, timings=(one, two))] * 2,
        {"timings": 9.0},
    )
    context.dry_run = False
    names = [name for name, _ in parts.STEPS["timings"](context)]
    assert names == ["pack_signs, one"] * 2 + ["pack_signs, two"] * 2


def test_graphs_are_timed_by_triton(monkeypatch, tmp_path):
    """With the arguments that Triton's functions have, and times of one call in seconds."""
    graph, device = mock.Mock(), SimpleNamespace(L2_cache_size=100)
    replays = mock.create_autospec(triton.testing.do_bench, return_value=[8.0, 4.0])
    monkeypatch.setattr(triton.testing, "do_bench", replays)
    monkeypatch.setattr(timing, "_capture", lambda function, calls: function(calls) or graph)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: device)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    sets = []
    shape = Timing("x", lambda _: Call("x", (torch.ones(1),)), bytes=50)

    def broken(calls):
        raise ValueError("no graph\nat all")

    functions = {"ours": lambda calls: sets.append(len(calls)), "broken": broken}
    times, failed = timing.time_cuda(functions, shape, 0.9)
    assert sets == [4]  # twice the cache
    assert times == {"ours": [0.002, 0.001] * 3}
    assert failed == {"broken": "ValueError: no graph"}
    assert replays.call_args.kwargs["rep"] == pytest.approx(300)
    once = mock.create_autospec(triton.testing.do_bench_cudagraph, return_value=5.0)
    monkeypatch.setattr(triton.testing, "do_bench_cudagraph", once)
    context = _context(tmp_path, [], {})
    context.dry_run = False
    assert limits.seconds_of(context, lambda: None) == 0.005
