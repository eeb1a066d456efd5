"""`python -m benchmarks gpu --only decide`: what the figures decide, and its way on the CPU."""

import inspect
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import cpu, report
from benchmarks.gpu.decide import (
    calls,
    check,
    common,
    decoder,
    exchange,
    plans,
    stages,
    tables,
    trunks,
)
from benchmarks.gpu.worker import Context, work
from benchmarks.model import paths
from benchmarks.shapes import all_benches
from bitdance.sampling import config, graphs
from bitdance.sampling.trunk_products import PackedTransformer
from bitdance_kernels._dispatch.op import REGISTRY
from bitdance_kernels._shared import native, skinny_config
from bitdance_kernels.testing import check_backend
from tests import sass
from tests.launches import NVCC, objects, recording

CPU, ROOT = torch.device("cpu"), Path(__file__).parent.parent


def _plan(name, rows, us, *, part="head", architecture="mlp", different=0.0, of_pytorch=0.01,
          repeatable=True):  # fmt: skip
    return {
        "what": "plan", "part": part, "architecture": architecture, "rows": rows, "plan": name,
        "all_us": [us, 1.01 * us, 0.99 * us], "different": different,
        "different_pytorch": of_pytorch, "repeatable": repeatable,
    }  # fmt: skip


def test_the_library_keeps_what_is_not_won_by_five_percent():
    for us, expected in ((94.0, "packed"), (96.0, "library"), (100.0, "library")):
        records = [_plan("library", 2, 100.0), _plan("packed", 2, us)]
        assert tables.plan(records) == expected


def test_the_median_decides():
    us = {"library": [10.0, 10, 10], "packed": [9.0, 9, 30], "persistent": [1.0, 11, 11]}
    assert tables.winner(us, "library") == "packed"


@pytest.mark.parametrize(
    ("different", "of_pytorch", "agrees"),
    [(0.019, 0.01, True), (0.021, 0.01, False), (5e-4, 0.0, True), (2e-3, 0.0, False)],
)
def test_a_plan_may_differ_as_pytorch_does(different, of_pytorch, agrees):
    records = [
        _plan("library", 2, 100.0),
        _plan("packed", 2, 50.0, different=different, of_pytorch=of_pytorch),
    ]
    assert (tables.plan(records) == "packed") is agrees


@pytest.mark.parametrize(("rows", "bits", "agrees"), [(8, 2, True), (8, 3, False), (512, 9, False)])
def test_two_bits_may_differ(rows, bits, agrees):
    of = {"different": bits / (rows // 2 * 32), "of_pytorch": 0.0}
    records = [
        {"model": "B-1x", **record}
        for record in (_plan("library", rows, 100.0), _plan("packed", rows, 50.0, **of))
    ]
    assert (tables.plan(records) == "packed") is agrees


def test_the_tables_are_those_of_the_results():
    result = json.loads((ROOT / "benchmarks/results/gpu-decide.json").read_text())
    card = result["machine"]["cuda"]["devices"][0]["name"]
    assert json.loads(config.FILE.read_text())[card] == tables.of_plans(result["ways"])
    launches = json.loads(skinny_config.MEASURED.read_text())[card]
    assert launches == tables.of_launches(result["ways"])


def test_a_plan_whose_bits_change_from_run_to_run_never_wins():
    records = [_plan("library", 2, 100.0), _plan("packed", 2, 10.0, repeatable=False)]
    assert tables.plan(records) == "library"


@pytest.mark.parametrize(
    ("winners", "expected"),
    [
        ({2: "packed", 8: "packed", 32: "library"}, [[1, "packed"], [9, "library"]]),
        ({2: "library", 8: "packed"}, [[1, "library"], [3, "packed"], [9, "library"]]),
        ({2: "library"}, [[1, "library"]]),
        ({32: "persistent", 128: "packed"},
         [[1, "persistent"], [33, "packed"], [129, "library"]]),
    ],
)  # fmt: skip
def test_ranges_of_rows_end_where_something_else_won(winners, expected):
    assert tables.ranges(winners) == expected


def test_the_table_is_one_that_the_sampler_reads(tmp_path):
    records = [
        _plan("library", 2, 100.0), _plan("packed", 2, 20.0),
        _plan("library", 32, 100.0, architecture="transformer"),
        _plan("packed", 32, 99.0, architecture="transformer"),
        _plan("library", 2, 100.0, part="trunk", architecture=""),
        _plan("packed", 2, 20.0, part="trunk", architecture=""),
    ]  # fmt: skip
    for rows, one, each in ((64, 10.0, 11.0), (128, 10.0, 11.0), (256, 10.0, 10.1)):
        for one_table, us in ((True, one), (False, each)):
            records.append(
                {"what": "table", "rows": rows, "one_table": one_table, "all_us": [us] * 3}
            )
    path = tmp_path / "measured.json"
    path.write_text(tables.with_entry("{}", "a card", tables.of_plans(records)))
    read = config.tables(path)["a card"]
    assert read.max_table_rows == 128
    assert [read.plan("mlp", rows) for rows in (1, 2, 3)] == ["packed", "packed", "library"]
    assert read.plan("transformer", 32) == "library"
    assert read.plan("trunk", 1) == "packed"


def test_one_table_is_given_up_only_for_a_gain():
    def table(*us):
        return [
            {"what": "table", "rows": rows, "one_table": one, "all_us": [value]}
            for rows, pair in us
            for one, value in zip((True, False), pair, strict=True)
        ]

    assert tables.max_table_rows([]) is None
    assert tables.max_table_rows(table((64, (10.0, 9.8)), (128, (10.0, 10.2)))) == 64
    assert tables.max_table_rows(table((64, (10.0, 9.0)), (128, (1.0, 10.0)))) == 0


def _stage(launch, us, *, rows=2, row_class=8, product="wo", shape=(768, 768)):
    return {
        "what": "stage", "product": product, "rows": rows, "row_class": row_class,
        "channels": shape[0], "features": shape[1], "launch": launch, "all_us": [us] * 3,
    }  # fmt: skip


def test_launches_that_beat_the_rule_are_kept():
    records = [
        _stage(None, 1.0), _stage([1, 8, 1], 2.0), _stage([2, 4, 1], 1.5),  # the rule is first
        _stage([1, 8, 1], 2.0, rows=8), _stage([2, 4, 1], 1.5, rows=8),
        _stage([9, 1, 8], 2.0, row_class=32), _stage([5, 1, 8], 1.95, row_class=32),
    ]  # fmt: skip
    expected = {"rows": 8, "channels": 768, "features": 768, "launch": [2, 4, 1]}
    assert tables.of_launches(records) == [expected]


def test_a_launch_must_win_over_all_products_of_its_shape():
    records = [
        _stage([1, 8, 1], 2.0), _stage([2, 4, 1], 1.0), _stage([4, 2, 1], 0.5),
        _stage([1, 8, 1], 2.0, product="w2"), _stage([2, 4, 1], 4.0, product="w2"),
    ]  # fmt: skip
    assert tables.of_launches(records) == []


def test_other_cards_keep_their_entries():
    text = json.dumps({"one": {"a": 1}, "other": {"b": 2}})
    assert json.loads(tables.with_entry(text, "one", {})) == {"one": {}, "other": {"b": 2}}


def test_differences_are_of_signs_or_relative():
    a, b = torch.tensor([1.0, -1, 0, 2]), torch.tensor([2.0, 1, -3, 2])
    assert plans.difference(a, b, bits=True) == 0.25
    assert plans.difference(2 * b, b, bits=False) == pytest.approx(1.0)


def _context(tmp_path, benches=(), **parts):
    return Context(benches, tmp_path / "journals" / "run.jsonl", parts or {"decide": 60.0}, True)


def test_nothing_that_uses_the_kernels_is_timed_after_a_wrong_one(tmp_path, monkeypatch):
    ran = []
    context = _context(tmp_path)
    what = {"op": "linear", "sample": "x", "backend": "cuda", "check": "graph"}
    right = {"step": f"{common.CHECK}, linear", **what, "wrong": None}

    def find(wrong):
        return lambda: context.add("checks", {**right, "wrong": wrong})

    steps = [
        common.unless_wrong(context, "right, linear", find(None)),
        common.unless_wrong(context, "right, adaln_linear", find("3 of 4 elements differ")),
        ("exchange, words", lambda: ran.append("exchange")),
        common.unless_wrong(context, "w1, 2 rows", lambda: ran.append("timed")),
    ]
    assert work(context, {"decide": lambda _: steps}) == 0
    assert ran == ["exchange"]
    why = "linear is wrong: 3 of 4 elements differ"
    assert context.result["not run"] == {"decide: w1, 2 rows": why}
    assert "persistent" in common.plans(context)


def test_a_wrong_persistent_kernel_stops_its_plan_alone(tmp_path):
    context = _context(tmp_path)
    what = {"op": "denoise_patch", "sample": "x", "backend": "cuda", "check": "graph"}
    step = f"{common.CHECK}, denoise_patch"
    context.add("checks", {"step": step, **what, "wrong": "a bit differs"})
    assert common.wrong(context) is None
    assert "persistent" not in common.plans(context)
    assert "packed" in common.plans(context)


def test_a_check_that_ends_its_process_stops_the_rest_too(tmp_path):
    context = _context(tmp_path)
    context.add("failed", "the process hung in this step", f"{common.CHECK}, linear")
    assert common.wrong(context) == f"{common.CHECK}, linear failed"
    context = _context(tmp_path / "other")
    context.add("failed", "no nvcc", "decide: exchange, words")
    assert common.wrong(context) is None


def test_every_op_of_sm90_is_checked():
    """Those whose backend in CUDA C++ asks whether the card has clusters."""
    expected = set()
    for name in all_benches():
        op = REGISTRY[name]
        if "cuda" in op.backends:
            source = Path(inspect.getfile(op.backend("cuda").run)).read_text(encoding="utf-8")
            if "sm90_unsupported" in source or "skinny_cuda" in source:
                expected.add(name)
    assert expected
    assert expected == set(check.NEW) & set(REGISTRY)


@pytest.mark.skipif(
    NVCC is None or native.cuda.unavailable() is not None or torch.cuda.is_available(),
    reason="needs nvcc and the CUDA module, and no card",
)
def test_every_compiled_kernel_is_checked():
    launched = set()
    with recording() as launches:
        for name in set(check.NEW) & set(REGISTRY):
            bench = all_benches()[name]
            for call in [*bench.samples(CPU), *calls.of_op(name, CPU)]:
                if cpu.runnable(bench, call, ["cuda"])["cuda"] is None:
                    launched |= {launch.kernel for launch in launches()}
    compiled = {n for o in objects("csrc/**/*_sm90.cu.o") for n in sass.names(o, "sm_90")}
    assert compiled
    missing = compiled - launched
    assert [sass.short_name(kernel) for kernel in missing] == []


@pytest.mark.parametrize("name", sorted(calls._MAKERS))
def test_calls_are_those_of_the_op(name):
    bench = all_benches()[name]
    for call in calls.of_op(name, CPU, rows=(2, 3)):
        check_backend(bench, call, "reference")


@pytest.fixture(scope="module")
def dry_run(tmp_path_factory):
    out = tmp_path_factory.mktemp("decide")
    before = {path: path.read_bytes() for path in (config.FILE, skinny_config.MEASURED)}
    command = [sys.executable, "-m", "benchmarks", "gpu", "--only", "decide", "--dry-run"]
    done = subprocess.run([*command, "--out", out], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert {path: path.read_bytes() for path in before} == before
    return out


@pytest.mark.slow
@pytest.mark.nightly
def test_dry_run_goes_through_every_step(dry_run):
    result = json.loads((dry_run / "dry-run.json").read_text())
    assert result["failed"] == {}
    assert result["not run"] == {}
    assert {record["what"] for record in result["ways"]} == {
        "stage", "plan", "table", "decoder", "image", "decode attention"
    }  # fmt: skip
    plans_of = {
        "head": {"library", "packed", "persistent"},
        "trunk": {"library", "packed"},
        "t2i_trunk": {"library", "packed"},
    }
    for part, expected in plans_of.items():
        assert {r["plan"] for r in result["ways"] if r.get("part") == part} == expected
    assert {name.split(", ")[0] for name in result["passed"]} == set(check.NEW) & set(REGISTRY)


@pytest.mark.slow
@pytest.mark.nightly
def test_the_report_has_a_table_of_the_figures(dry_run, tmp_path):
    shutil.copy(dry_run / "dry-run.json", tmp_path / "gpu-decide.json")
    page = "<!-- results: ways gpu-decide.json -->\n<!-- end of results -->"
    text = report.filled(page, report.load(tmp_path))
    for line in ("| w1, 2 rows | library | ", "| head, tiny, 16 rows | packed | "):
        assert line in text
    assert report.markdown(report.load(tmp_path))


@pytest.mark.slow
@pytest.mark.nightly
def test_dry_run_writes_tables_to_its_folder_alone(dry_run):
    assert "dry run" in config.tables(dry_run / "tables" / config.FILE.name)
    launches = dry_run / "tables" / skinny_config.MEASURED.name
    assert "dry run" in json.loads(launches.read_text())


@pytest.fixture
def pretended(tmp_path, monkeypatch):
    """A run that takes the CPU for a card, with tables of its own, on small models."""
    context = _context(tmp_path)
    context.dry_run = False
    monkeypatch.setattr(Context, "device", CPU)
    monkeypatch.setattr(Context, "multiprocessors", 132)
    for owner, name in ((plans, "_REPEATS"), (plans, "_STEPS_OF_TRUNK"), (common, "ROUNDS"),
                        (stages, "_CHAIN"), (stages, "_REPLAYS")):  # fmt: skip
        monkeypatch.setattr(owner, name, 2)
    monkeypatch.setattr(plans, "_EVALUATIONS", 2)
    for module, name in ((config, "FILE"), (skinny_config, "MEASURED")):
        path = tmp_path / getattr(module, name).name
        path.write_text("{}")
        monkeypatch.setattr(module, name, path)
    for name, value in {
        "get_device_name": "a card", "get_device_capability": (9, 0), "synchronize": None
    }.items():  # fmt: skip
        monkeypatch.setattr(torch.cuda, name, lambda *_, value=value: value)
    yield context
    config.tables.cache_clear()
    skinny_config._measured.cache_clear()


def test_an_op_whose_backend_takes_no_call_fails(pretended):
    """The card's backend refuses tensors of the CPU."""
    with pytest.raises(AssertionError, match="linear: the cuda backend takes no sample"):
        check._check(pretended, all_benches()["linear"])


def test_plans_are_measured_and_written_where_the_library_reads_them(pretended):
    plans._head(pretended, "tiny", 2)
    plans._trunk(pretended, "tiny", 2)
    plans._table(pretended, "tiny", 2)
    plans._images(pretended, "tiny", 1, 1)
    records = pretended.result["ways"]
    assert all(r["repeatable"] for r in records if r["what"] == "plan")
    for part, expected in (("head", set(config.PLANS)), ("trunk", {"library", "packed"})):
        assert {r["plan"] for r in records if r.get("part") == part} == expected
    assert {r["plan"] for r in records if r["what"] == "image"} == set(config.PLANS)
    entry = tables.of_plans(records)
    assert json.loads(config.FILE.read_text()) == {"a card": entry}
    assert config.tables(config.FILE)["a card"].max_table_rows == entry["max_table_rows"]


def test_layers_of_a_language_model_have_a_table_of_their_own(pretended, monkeypatch):
    monkeypatch.setattr(trunks, "_LAYERS", trunks._TINY)
    monkeypatch.setattr(trunks, "_TOKENS", 32)
    monkeypatch.setattr(trunks, "_CALLS", 2)
    for name, step in trunks.steps(pretended):
        if "batch" not in name or name.endswith("14B-16x, batch 1"):
            step()
    found = {r["plan"]: r for r in pretended.result["ways"] if r.get("part") == "t2i_trunk"}
    assert found.keys() == {"library", "packed"}
    assert all(r["repeatable"] and r["rows"] == 32 for r in found.values())
    entry = json.loads(config.FILE.read_text())["a card"]
    assert {plan for _, plan in entry["t2i_trunk"]} <= set(config.PLANS)
    ways = [r["way"] for r in pretended.result["ways"] if r["what"] == "decode attention"]
    assert ways == ["split", "one launch"] * 2


def test_launches_are_measured_each_by_itself(pretended, monkeypatch):
    """What is chosen for a launch is what is recorded for it, on the backend of a card."""
    chosen, product = [], stages.products(64)[2]

    def own(layers, i, backend):
        assert backend == "cuda"
        chosen.append(skinny_config.choose(2, 64, 192, CPU))
        return layers.library(i)

    monkeypatch.setattr(stages._Layers, "own", own)
    stages._time(pretended, product, 2)
    launches = [r["launch"] for r in pretended.result["ways"]]
    assert launches[0] is None
    assert launches[1:] == [list(launch) for launch in dict.fromkeys(chosen)]
    assert launches[1:] == [list(c) for c in skinny_config.candidates(2, 64, 192)]
    assert "a card" in json.loads(skinny_config.MEASURED.read_text())


def test_a_wrong_launch_is_reported_and_not_timed(pretended, monkeypatch):
    product = stages.products(64)[1]
    wrong = skinny_config.candidates(2, 64, 64)[1]

    def own(layers, i, backend):
        return layers.library(i) + (skinny_config.choose(2, 64, 64, CPU) == wrong)

    monkeypatch.setattr(stages._Layers, "own", own)
    stages._time(pretended, product, 2)
    assert list(wrong) not in [r["launch"] for r in pretended.result["ways"]]
    assert [str(wrong) in key for key in pretended.result["failed"]] == [True]


def test_decoding_is_timed_with_a_graph_and_without(pretended, monkeypatch):
    model = plans.model(pretended, "tiny")
    monkeypatch.setattr(plans, "model", lambda context, name: model)
    asked = []
    inner = graphs.make_call_runner
    monkeypatch.setattr(graphs, "make_call_runner", lambda d: asked.append(d) or inner(d))
    decoder._decoder(pretended)
    ways = [(r["batch"], r["way"]) for r in pretended.result["ways"]]
    assert ways == [(batch, way) for batch in (1, 2, 4, 8) for way in ("graph", "plain")]
    assert len(asked) == 4, "the plain way has no runner"


@pytest.mark.skipif(NVCC is None or torch.cuda.is_available(), reason="needs nvcc, and no card")
def test_exchanges_that_no_card_runs_say_so(pretended):
    for _, step in exchange.steps(pretended):
        step()
    notes = {probe["note"] for probe in pretended.result["probes"]}
    assert all(note.startswith("CUDA error ") for note in notes)
    assert len(pretended.result["probes"]) == 15


def test_a_step_of_the_trunk_takes_the_plan_that_holds(monkeypatch, tmp_path):
    model, ran = plans.model(_context(tmp_path), "tiny"), []
    inner = PackedTransformer.decode
    monkeypatch.setattr(
        PackedTransformer, "decode", lambda self, *args: ran.append(1) or inner(self, *args)
    )
    for plan, count in (("library", 0), ("packed", 1)):
        with config.use_plans(trunk=plan):
            paths.trunk_step(model, 1)()
        assert len(ran) == count
