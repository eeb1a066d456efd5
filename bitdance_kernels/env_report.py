"""Environment report: versions, devices, instruction sets, and each backend of each op.

The report must always print, so only the standard library is imported up here, and a probe that
fails becomes a line of the report.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sys
from collections.abc import Callable
from typing import Any

VARIABLES = (
    "BITDANCE_KERNELS_BACKEND",
    "BITDANCE_KERNELS_CPU_ISA",
    "BITDANCE_BUILD_CUDA",
    "BITDANCE_CUDA_ARCHS",
    "TRITON_INTERPRET",
)
PACKAGES = ("torch", "triton", "numpy", "flash-attn")


def collect() -> dict[str, Any]:
    """The whole report as plain data, for ``--json`` and for bug reports.

    Returns:
        "version", "python", "platform", "packages" (None: not installed), "cpu", "cuda", "native",
        "sm_90": per card "yes" or the reason why the kernels of ``*_sm90.cu`` do not run on it,
        "environment", "ops": per op and backend "yes" or the reason why not, "auto": per op and
        device the backend that would be taken. A probe that failed gives {"error": text} in place
        of its value.
    """
    return {
        "version": _probe(_version),
        "python": f"{platform.python_version()} ({platform.python_implementation()})",
        "platform": platform.platform(),
        "packages": {name: _installed(name) for name in PACKAGES},
        "cpu": _probe(_cpu),
        "cuda": _probe(_cuda),
        "native": _probe(_native),
        "sm_90": _probe(_sm90),
        "environment": {name: os.environ[name] for name in VARIABLES if name in os.environ},
        "ops": _probe(_ops),
        "auto": _probe(_auto),
    }


def text(report: dict[str, Any]) -> str:
    """The report as text."""
    packages = ", ".join(f"{k} {v or 'not installed'}" for k, v in report["packages"].items())
    environment = ", ".join(f"{k}={v}" for k, v in report["environment"].items())
    lines = [
        f"bitdance_kernels {report['version']}, Python {report['python']}",
        f"platform     {report['platform']}",
        f"packages     {packages}",
        f"CPU          {_describe(report['cpu'], _cpu_text)}",
        f"CUDA         {_describe(report['cuda'], _cuda_text)}",
        f"native code  {_describe(report['native'], _native_text)}",
        f"sm_90 code   {_describe(report['sm_90'], _sm90_text)}",
        f"environment  {environment or 'nothing set'}",
        "",
    ]
    return "\n".join(lines + _ops_table(report["ops"], report["auto"]))


def _probe(function: Callable[[], Any]) -> Any:
    try:
        return function()
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}


def _describe(value: Any, to_text: Callable[[Any], str]) -> str:
    if isinstance(value, dict) and "error" in value:
        return f"unknown ({value['error']})"
    return to_text(value)


def _installed(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _version() -> str:
    from bitdance_kernels._version import __version__

    return __version__


def _cpu() -> dict[str, Any]:
    import torch

    from bitdance_kernels._shared import native

    detected = None if native.cpu.unavailable() else native.ISAS[: native.cpu.isa_detected() + 1]
    return {
        "model": _cpu_model(),
        "cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "instruction_sets": detected,
        "instruction_set_used": None if detected is None else native.cpu_isa(),
    }


def _cpu_model() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _cpu_text(cpu: dict[str, Any]) -> str:
    threads = f"{cpu['model']}, {cpu['cores']} cores, {cpu['torch_threads']} threads in use"
    if cpu["instruction_sets"] is None:
        return threads
    return (
        f"{threads}; instruction sets {', '.join(cpu['instruction_sets'])}; "
        f"used: {cpu['instruction_set_used']}"
    )


def _cuda() -> dict[str, Any]:
    import torch

    if not torch.cuda.is_available():
        return {"devices": [], "torch_cuda": torch.version.cuda}
    devices = []
    for i in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(i)
        devices.append(
            {
                "name": properties.name,
                "capability": f"{properties.major}.{properties.minor}",
                "memory_gib": round(properties.total_memory / 2**30, 1),
                "multiprocessors": properties.multi_processor_count,
            }
        )
    return {"devices": devices, "torch_cuda": torch.version.cuda}


def _cuda_text(cuda: dict[str, Any]) -> str:
    built = f"torch built for CUDA {cuda['torch_cuda']}" if cuda["torch_cuda"] else "torch for CPU"
    devices = [f"{d['name']} ({d['capability']}, {d['memory_gib']} GiB)" for d in cuda["devices"]]
    return f"{', '.join(devices) or 'no device'}; {built}"


def _native() -> dict[str, str]:
    from bitdance_kernels._shared import native

    modules = {"_cpu": native.cpu.unavailable() or "loaded"}
    reason = native.cuda.unavailable()
    modules["_cuda"] = reason or f"loaded (compiled for sm {native.cuda.architectures})"
    return modules


def _native_text(native: dict[str, str]) -> str:
    return "; ".join(f"{name}: {state}" for name, state in native.items())


def _sm90() -> dict[str, Any]:
    import torch

    from bitdance_kernels._shared import native

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    module = native.cuda.unavailable()
    if module is None and native.cuda.device_count() < count:
        module = "the driver is older than the CUDA runtime of the compiled module"
    devices = [torch.device("cuda", i) for i in range(count)]
    return {
        "module": module or "yes",
        "devices": [
            {
                "name": torch.cuda.get_device_name(device),
                "state": module or native.sm90_unsupported(device) or "yes",
            }
            for device in devices
        ],
    }


def _sm90_text(sm90: dict[str, Any]) -> str:
    cards = "; ".join(f"{d['name']}: {d['state']}" for d in sm90["devices"]) or (
        "no device" if sm90["module"] == "yes" else f"no device; {sm90['module']}"
    )
    return f"{cards}. For compute capability 9.0 and 10.x; other cards use the library's products"


def _ops() -> dict[str, dict[str, str]]:
    from bitdance_kernels import explain  # noqa: F401  (registers the ops)
    from bitdance_kernels._dispatch.backends import BACKENDS
    from bitdance_kernels._dispatch.op import REGISTRY

    return {
        name: {b: op.unavailable(b) or "yes" for b in BACKENDS if b in op.backends}
        for name, op in sorted(REGISTRY.items())
    }


def _auto() -> dict[str, dict[str, str]]:
    import torch

    from bitdance_kernels._dispatch.op import REGISTRY

    devices = ["cpu"] + ["cuda"] * torch.cuda.is_available()
    return {
        name: {
            device: next(b for b in op.order[device] if op.unavailable(b) is None)
            for device in devices
        }
        for name, op in sorted(REGISTRY.items())
    }


def _ops_table(ops: dict[str, Any], auto: dict[str, Any]) -> list[str]:
    if "error" in ops or "error" in auto:
        return [f"ops          unknown ({ops.get('error') or auto.get('error')})"]
    columns = ("reference", "cpu", "triton", "cuda")
    width = max(map(len, ops), default=2) + 2
    lines = ["op".ljust(width) + "".join(c.ljust(11) for c in columns) + "auto takes"]
    reasons: list[str] = []
    for name, backends in ops.items():
        cells = []
        for column in columns:
            state = backends.get(column, "-")
            if state not in ("yes", "-"):
                if state not in reasons:
                    reasons.append(state)
                state = f"no [{reasons.index(state) + 1}]"
            cells.append(state.ljust(11))
        taken = ", ".join(f"{b} on {d}" for d, b in auto[name].items())
        lines.append(name.ljust(width) + "".join(cells) + taken)
    lines += [f"[{i}] {reason}" for i, reason in enumerate(reasons, 1)]
    return lines


def main(arguments: list[str] | None = None) -> int:
    """Print the report; ``--json`` for machines."""
    import argparse
    import json

    parser = argparse.ArgumentParser(
        prog="python -m bitdance_kernels",
        description="Versions, devices, instruction sets, and which backend each op takes here.",
    )
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    options = parser.parse_args(sys.argv[1:] if arguments is None else arguments)
    report = collect()
    print(json.dumps(report, indent=2) if options.json else text(report))
    return 0
