import contextlib
import dataclasses
import json
import os
import re
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch

from bitdance_kernels import BackendError, env_report, linear, pack_weight, testing
from bitdance_kernels._dispatch.op import REGISTRY
from bitdance_kernels._shared import native
from tests.cases import all_cases

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


@pytest.mark.parametrize(
    ("capabilities", "states"),
    [
        ([(9, 0), (8, 9)], ["yes", "it needs compute capability 9.0 or 10.x .*, got 8.9"]),
        ([(8, 6)], ["it needs compute capability 9.0 or 10.x .*, got 8.6"]),
        ([(10, 0), (10, 3)], ["yes", "yes"]),
        ([(12, 0)], ["it needs compute capability 9.0 or 10.x .*, got 12.0"]),
    ],
)
def test_sm90_code_runs_on_cards_with_clusters(capabilities, states, cards):
    cards(capabilities)
    found = env_report.collect()["sm_90"]["devices"]
    assert [device["name"] for device in found] == [f"card {c}" for c in capabilities]
    for device, state in zip(found, states, strict=True):
        assert re.fullmatch(state, device["state"])
        assert f"{device['name']}: {device['state']}" in env_report.text(env_report.collect())


def test_sm90_code_needs_a_module_and_a_driver_that_runs_it(cards, monkeypatch):
    cards([(9, 0)], seen=0)
    (device,) = env_report.collect()["sm_90"]["devices"]
    assert "driver is older" in device["state"]
    cards([(9, 0)])
    native.cuda.disable("it was not built")
    (device,) = env_report.collect()["sm_90"]["devices"]
    assert device["state"] == "it was not built"


def test_sm90_code_is_reported_without_a_card(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert env_report.collect()["sm_90"]["devices"] == []
    printed = env_report.text(env_report.collect())
    assert re.search(r"\nsm_90 code   no device.*9\.0 and 10\.x; other cards use the", printed)


def test_sm90_code_is_refused_on_the_cpu():
    assert native.sm90_unsupported(torch.device("cpu")) == "it needs CUDA tensors, got cpu"


@pytest.fixture
def cards(monkeypatch):
    """A function that pretends that there are cards of such capabilities."""

    def pretend(capabilities, seen=None):
        """`seen`: how many of them the runtime of the compiled module sees, by default all."""
        count = len(capabilities)
        module = native.NativeModule("_cuda", "")
        module._module = types.SimpleNamespace(
            device_count=lambda: count if seen is None else seen, architectures="90"
        )
        monkeypatch.setattr(native, "cuda", module)
        native._capability.cache_clear()
        for name, function in {
            "is_available": lambda: True,
            "device_count": lambda: count,
            "get_device_name": lambda device: f"card {capabilities[device.index]}",
            "get_device_capability": lambda index: capabilities[index],
        }.items():
            monkeypatch.setattr(torch.cuda, name, function)

    yield pretend
    native._capability.cache_clear()


def test_unknown_option_is_refused():
    assert _run("-m", "bitdance_kernels", "--yaml").returncode == 2


def test_a_reader_that_leaves_is_no_error():
    command = [sys.executable, "-m", "bitdance_kernels"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as run:
        run.stdout.close()
        assert run.stderr.read() == b""
    assert run.returncode == 141


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


class _Recorder:
    """A compiled module with every function, which records those that were requested or called."""

    def __init__(self, module):
        self.module, self.names = module, set()

    def unavailable(self, function=None):
        self.names.add(function)

    def __getattr__(self, function):
        self.names.add(function)
        return getattr(self.module, function)


@pytest.mark.skipif(native.cpu.unavailable() is not None, reason="no C++ module")
def test_ops_name_the_native_functions_that_they_ask_for_and_call(monkeypatch):
    """The report and `unsupported` ask for the functions that `run` calls."""
    modules = {name: _Recorder(getattr(native, name)) for name in ("cpu", "cuda")}
    for name, module in modules.items():
        monkeypatch.setattr(native, name, module)
    asked = {}

    def watched(op, backend):
        def run(*inputs):
            for name, module in modules.items():
                if name in op.backends:
                    module.names = set()
                    other = op.backend(name)
                    other.unsupported(*inputs)
                    asked.setdefault((op.name, name), set()).update(module.names)
            modules["cpu"].names = set()
            results = backend.run(*inputs)
            helpers = {"evenly_spaced", "readable"}
            assert modules["cpu"].names - helpers <= set(backend.native_functions), op.name
            return results

        return dataclasses.replace(backend, run=run)

    cases = all_cases()
    ops = [op for op in REGISTRY.values() if "cpu" in op.backends]
    for op in ops:
        monkeypatch.setitem(op._loaded, "cpu", watched(op, op.backend("cpu")))
        monkeypatch.setattr(op, "_chosen", {})  # of calls before
    for case in cases.values():
        if case.kernel_op in ops:
            for call in case.samples(torch.device("cpu")):
                with contextlib.suppress(BackendError):  # it does not take every call
                    testing._outputs(case, call, "cpu", case.kernel_op.differentiable)
    int8 = pack_weight(torch.ones(16, 8, dtype=torch.int8), "panels", scales=torch.ones(16))
    for weight in (torch.ones(16, 8), torch.ones(1, 8, 16), int8):
        linear(torch.ones(2, 8), weight, out=torch.empty(2, 16))
    for op in ops:
        assert asked[op.name, "cpu"] == set(op.backend("cpu").native_functions), op.name
        if "cuda" in op.backends:  # it may refuse such inputs earlier
            assert asked[op.name, "cuda"] <= set(op.backend("cuda").native_functions), op.name


@pytest.mark.skipif(native.cpu.unavailable() is not None, reason="no C++ module")
@pytest.mark.parametrize("backend", ["cpu", "cuda"])
def test_only_a_module_without_the_functions_is_called_older(backend, monkeypatch):
    """For each op: no reason if all its functions exist, a reason if one is missing."""
    whole = types.SimpleNamespace(
        **{name: None for op in REGISTRY.values() for name in _functions(op, backend)}
    )
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for op in REGISTRY.values():
        for missing in _functions(op, backend):
            for functions, stale in ((whole, False), (_without(whole, missing), True)):
                module = native.NativeModule(f"_{backend}", "")
                module._module = functions
                monkeypatch.setattr(native, backend, module)
                reason = op.unavailable(backend)
                assert ("build it again" in str(reason)) is stale, (op.name, missing)


def _functions(op, backend):
    return op.backend(backend).native_functions if backend in op.backends else ()


def _without(module, name):
    return types.SimpleNamespace(**{k: v for k, v in vars(module).items() if k != name})


@pytest.mark.skipif(native.cpu.unavailable() is not None, reason="no C++ module")
def test_a_fresh_build_is_not_told_to_build_again():
    report = env_report.collect()
    assert "build it again" not in json.dumps(report)
    assert "build it again" not in env_report.text(report)
    for op in REGISTRY.values():
        if "cpu" in op.backends:
            assert report["ops"][op.name]["cpu"] == "yes"
            assert report["auto"][op.name]["cpu"] == "cpu"
