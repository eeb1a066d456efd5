import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bitdance_kernels import env_report
from bitdance_kernels._op import REGISTRY

ROOT = Path(__file__).parent.parent


def _run(*arguments, **environment):
    return subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, **environment},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


def test_text_names_every_op_and_gives_reasons():
    printed = _run("-m", "bitdance_kernels", TRITON_INTERPRET="0").stdout
    for name in REGISTRY:
        assert f"\n{name} " in printed
    assert "packages     torch " in printed
    assert "] no CUDA device" in printed or "CUDA         NVIDIA" in printed


def test_json_is_complete():
    report = json.loads(_run("-m", "bitdance_kernels", "--json").stdout)
    assert set(report["ops"]) == set(REGISTRY)
    assert report["ops"]["pack_signs"]["reference"] == "yes"
    assert report["auto"]["pack_signs"]["cpu"] in ("cpu", "reference")
    assert report["packages"]["torch"]


def test_unknown_option_is_refused():
    assert _run("-m", "bitdance_kernels", "--yaml").returncode == 2


@pytest.mark.parametrize("missing", ["torch", "triton", "numpy"])
def test_prints_whatever_is_missing(missing, tmp_path):
    """A module that cannot be imported stands in for one that is not installed."""
    (tmp_path / f"{missing}.py").write_text(f"raise ImportError('no {missing} here')\n")
    path = f"{tmp_path}{os.pathsep}{ROOT}"
    for flag in ([], ["--json"]):
        done = _run("-m", "bitdance_kernels", *flag, PYTHONPATH=path)
        assert done.returncode == 0, done.stderr
        assert "bitdance_kernels" in done.stdout or json.loads(done.stdout)
    if missing == "torch":
        assert "no torch here" in done.stdout
    if missing == "triton":
        assert "no triton here" in done.stdout


def test_a_failing_probe_becomes_a_line(monkeypatch):
    def fail():
        raise OSError("nvidia driver says no")

    monkeypatch.setattr(env_report, "_cuda", fail)
    monkeypatch.setattr(env_report, "_ops", fail)
    printed = env_report.text(env_report.collect())
    assert "CUDA         unknown (OSError: nvidia driver says no)" in printed
    assert "ops          unknown (OSError: nvidia driver says no)" in printed
