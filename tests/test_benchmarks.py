import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import __main__ as command
from benchmarks import gpu, report, run, timing
from benchmarks.cases import all_cases
from bitdance_kernels.testing import Call, Case, Timing

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
    case = all_cases()["pack_signs"]
    call = Call("tiny", (torch.randn(4, 16),))
    timing = Timing("tiny", lambda device: call.map(lambda t: t.to(device)), bytes=272)
    return Case(case.op, case.rule, case.samples, (timing,), case.baselines)


@pytest.fixture(autouse=True)
def _small_limits(monkeypatch):
    monkeypatch.setattr(run.machine, "cpu_limits", lambda: {"read_gb_s": 20.0})


def test_list_names_every_op(capsys):
    assert command.main(["list"]) == 0
    printed = capsys.readouterr().out
    for name in all_cases():
        assert f"\n{name}\n" in f"\n{printed}"


def test_run_times_backends_and_baselines(small, tmp_path):
    result = run.run(small, seconds=0.01)
    assert result["wrong"] == []
    names = {row["name"] for row in result["rows"]}
    assert {"reference", "numpy", "torch"} <= names
    for row in result["rows"]:
        assert 0 < row["p20_us"] <= row["median_us"] <= row["p80_us"]
        assert row["rounds"] >= 5
        assert row["gb_s"] == pytest.approx(272 / row["median_us"] / 1e3)
    printed = run.table(result)
    assert "pack_signs, tiny" in printed
    assert "read 20.0 GB/s" in printed
    run.save(result, tmp_path / "new" / "run.json")
    assert json.loads((tmp_path / "new" / "run.json").read_text())["rows"] == result["rows"]


def test_a_wrong_backend_is_not_timed(small, monkeypatch, capsys):
    op = small.kernel_op
    right = op.backend("triton")
    wrong = type(right)(lambda x: right.run(x) ^ 1, right.unsupported)
    monkeypatch.setitem(op._loaded, "triton", wrong)
    result = run.run(small, backends=["triton"], seconds=0.01)
    assert result["rows"] == []
    assert "elements differ" in result["wrong"][0]
    monkeypatch.setattr(command, "all_cases", lambda: {"pack_signs": small})
    assert command.main(["run", "pack_signs", "--backend", "triton"]) == 1
    assert "is wrong, so it is not timed" in capsys.readouterr().out


def test_unknown_ops_are_refused(capsys):
    with pytest.raises(SystemExit) as stopped:
        command.main(["run", "sign_pack"])
    assert stopped.value.code == 2
    assert "no op 'sign_pack'; there are " in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a card")
def test_gpu_without_a_card_says_so(tmp_path, capsys):
    assert command.main(["gpu", "--out", str(tmp_path)]) == 2
    assert "no CUDA device that PyTorch can use" in capsys.readouterr().err


def test_gpu_dry_run_goes_through_everything(small, tmp_path, capsys):
    assert gpu.main([small], tmp_path, seconds=60, quick=True, dry_run=True) == 0
    result = json.loads((tmp_path / "dry-run.json").read_text())
    assert {check["check"] for check in result["checks"]} >= {"reference", "strided", "repeated"}
    assert "triton" in {check["backend"] for check in result["checks"]}
    assert result["failed"] == {}
    assert result["rows"]
    assert "0 failed" in capsys.readouterr().out


def test_gpu_records_what_fails_and_goes_on(small, tmp_path, monkeypatch, capsys):
    op = small.kernel_op
    right = op.backend("triton")
    wrong = type(right)(lambda x: right.run(x) ^ 1, right.unsupported)
    monkeypatch.setitem(op._loaded, "triton", wrong)

    def broken(device):
        raise OSError("no samples today")
        yield

    other = Case(all_cases()["swiglu"].op, "rounded", broken)
    assert gpu.main([other, small], tmp_path, seconds=60, quick=True, dry_run=True) == 1
    result = json.loads((tmp_path / "dry-run.json").read_text())
    assert "no samples today" in result["failed"]["swiglu"]
    assert any(check["wrong"] for check in result["checks"])
    printed = capsys.readouterr().out
    assert "FAILED pack_signs triton reference" in printed
    assert "ERROR swiglu: OSError: no samples today" in printed


def test_report_makes_tables_and_plots(small, tmp_path, capsys):
    run.save(run.run(small, seconds=0.01), tmp_path / "cpu.json")
    arguments = ["report", "--results", str(tmp_path), "--plots", str(tmp_path / "plots")]
    assert command.main(arguments) == 0
    printed = capsys.readouterr().out
    assert "## cpu.json" in printed
    assert "| pack_signs | tiny | numpy |" in printed
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


def test_committed_results_are_what_the_readme_says():
    runs = report.load(report.RESULTS)
    report.markdown(runs)
    text = (ROOT / "README.md").read_text()
    assert report.filled(text, runs) == text, "run python -m benchmarks report --into README.md"


def test_gradients_are_timed():
    def op(x, *, backend):
        calls.append(backend)
        return x * x

    calls = []
    case = Case(op, "exact", lambda device: iter(()), (), {"exp": torch.exp})
    call = Call("x", (torch.randn(3),))
    with torch.inference_mode():
        timed = timing.functions(case, call, ["reference"], backward=True)
        (of_x,), (of_exp,) = timed["reference"](call), timed["exp"](call)
    assert calls == ["reference"]
    torch.testing.assert_close(of_x, 2 * call.args[0])
    torch.testing.assert_close(of_exp, call.args[0].exp())


@pytest.mark.slow
def test_compare_times_another_commit_and_cleans_up(tmp_path):
    """On a clone with one commit, so that this checkout's worktrees are left alone."""
    clone = tmp_path / "clone"
    subprocess.run(["git", "init", "-q", clone], check=True)
    files = subprocess.run(
        ["git", "-C", ROOT, "ls-files", "-z", "--", ":!tests", ":!bitdance/assets"],
        capture_output=True, text=True, check=True,
    ).stdout.split("\0")  # fmt: skip
    for name in filter(None, files):
        if (ROOT / name).exists():
            (clone / name).parent.mkdir(parents=True, exist_ok=True)
            (clone / name).write_bytes((ROOT / name).read_bytes())
    git = ["git", "-C", clone, "-c", "user.name=t", "-c", "user.email=t@example.org"]
    subprocess.run([*git, "add", "-A"], check=True)
    subprocess.run([*git, "commit", "-qm", "all"], check=True)
    environment = {**os.environ, "PYTHONPATH": str(clone), "CXX": "/hidden/c++"}
    environment["NVCC"] = "/hidden/nvcc"
    call = [sys.executable, "-m", "benchmarks", "compare"]
    options = ["--rounds", "1", "--seconds", "0.01"]
    done = subprocess.run(
        [*call, "HEAD", "bit_counts", *options],
        cwd=clone, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "reference" in done.stdout
    listed = subprocess.run([*git, "worktree", "list"], capture_output=True, text=True).stdout
    assert len(listed.splitlines()) == 1
    unknown = subprocess.run(
        [*call, "nowhere", "bit_counts"], cwd=clone, env=environment, capture_output=True, text=True
    )
    assert unknown.returncode == 2
    assert "compare: git" in unknown.stderr
