"""Captured graphs: a step that is repeated is replayed, at no cost to the host.

A step is a function whose arguments, buffers and results stay at the same addresses, so that
replaying its kernels equals calling it. ``make_runner`` gives the way to run a step on a device: a
CUDA graph, a CPU graph, or a plain call.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import nn

from bitdance.models.tracing import is_traced
from bitdance.sampling.lru_cache import LRUCache
from bitdance_kernels import CaptureError, CpuGraph

__all__ = [
    "CALLS_BEFORE_CAPTURE",
    "MAX_KINDS",
    "CpuGraphRunner",
    "CudaCallRunner",
    "CudaGraphRunner",
    "Runner",
    "make_call_runner",
    "make_runner",
    "parameter_versions",
    "parameters",
    "run_eager",
]

T = TypeVar("T")

Runner = Callable[..., Any]
"""Runs a function: ``runner(function, *inputs)``; results may be overwritten by its next call."""

Inputs = tuple["torch.Tensor | None", ...]
"""Arguments of a function that is run."""

MAX_KINDS = 2
"""Kinds of inputs, guided and not, for which the graph of a function is kept."""

CALLS_BEFORE_CAPTURE = 4
"""Calls on the CPU after which a function is captured.

A capture takes as long as about four calls of a small model; one image alone would not repay it.
"""

_CAPTURE = threading.Lock()
"""Held by the thread that captures a CUDA graph: PyTorch has one stream for captures."""


def run_eager(function: Callable[..., T], *inputs: torch.Tensor | None) -> T:
    """``function(*inputs)``."""
    return function(*inputs)


class CudaGraphRunner:
    """Calls a step the first time, and from then on replays it as a CUDA graph.

    The first call is a real one: it compiles kernels and fills the libraries' workspaces on a side
    stream, which capture requires, and nothing has to be undone after it. Capturing runs no kernel,
    so the second call captures and replays. A replay overwrites the results of the one before.

    The libraries' handles, and the algorithms that cuDNN has timed, belong to a thread: a second
    call from another thread is a real one too.

    Args:
        device: a CUDA device.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._warm: threading.Thread | None = None
        self._graph: torch.cuda.CUDAGraph | None = None
        self._results: Any = ()

    def __call__(self, step: Callable[[], T]) -> T:
        """Results of the step.

        Args:
            step: the same one in every call, which returns a tuple of tensors. It reads its
                arguments from buffers, draws no random numbers from a generator, and reads no value
                on the host.
        """
        if is_traced():
            return step()
        with torch.cuda.device(self._device):
            if self._graph is None:
                thread = threading.current_thread()
                if self._warm is not thread:
                    results = self._run_on_side_stream(step)
                    self._warm = thread  # not before it has succeeded
                    return results
                self._graph, self._results = self._capture(step)
            self._graph.replay()
        return self._results

    def _run_on_side_stream(self, step: Callable[[], T]) -> T:
        main, side = torch.cuda.current_stream(), torch.cuda.Stream()
        side.wait_stream(main)
        with torch.cuda.stream(side):
            results: Any = step()
        main.wait_stream(side)
        for result in results:  # the allocator must not reuse them while `main` reads them
            result.record_stream(main)
        return results

    def _capture(self, step: Callable[[], T]) -> tuple[torch.cuda.CUDAGraph, T]:
        graph = torch.cuda.CUDAGraph()
        # Casts that autocast keeps would outlive the capture, or come from before it.
        cached = torch.is_autocast_cache_enabled()
        torch.set_autocast_cache_enabled(False)
        try:
            # Other threads may use the device meanwhile, a data loader's for example.
            with _CAPTURE, torch.cuda.graph(graph, capture_error_mode="thread_local"):
                results = step()
        finally:
            torch.set_autocast_cache_enabled(cached)
        return graph, results


class CudaCallRunner:
    """Calls a function with inputs of a kind once, and from then on replays it as a CUDA graph.

    Inputs are copied into buffers that stay, those of each kind into their own.

    Args:
        device: a CUDA device.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._kinds: LRUCache[tuple[Inputs, CudaGraphRunner]] = LRUCache(MAX_KINDS)

    def __call__(self, function: Callable[..., T], *inputs: torch.Tensor | None) -> T:
        """Result of the function, overwritten by the next call.

        Args:
            function: the same one in every call, as for ``CudaGraphRunner``.
            inputs: its arguments, on the device.
        """
        if is_traced():
            return function(*inputs)
        buffers, run = self._kinds.get(
            None, _kind_of(inputs), lambda: (_buffers(inputs), CudaGraphRunner(self._device))
        )
        _fill(buffers, inputs)
        return run(lambda: function(*buffers))


class CpuGraphRunner:
    """Calls a function on the CPU, and captures it once it is called often with inputs of a kind.

    A function that no graph can repeat is called every time; it is begun twice when the capture
    fails, and must give the same results then.

    Args:
        after: number of calls before the capture.
    """

    def __init__(self, after: int | None = None) -> None:
        self._after = CALLS_BEFORE_CAPTURE if after is None else after
        self._kinds: LRUCache[_Kind] = LRUCache(MAX_KINDS)

    def __call__(self, function: Callable[..., T], *inputs: torch.Tensor | None) -> T:
        """Result of the function, overwritten by the next call.

        Args:
            function: the same one in every call, as for ``CudaGraphRunner``.
            inputs: its arguments.
        """
        if CpuGraph.capturing() or is_traced():
            return function(*inputs)
        # A recorded call has a fixed number of threads.
        threads = torch.get_num_threads()
        kind = self._kinds.get(threads, _kind_of(inputs), _Kind)
        captured = kind.captured
        if captured is not None:
            _fill(captured.inputs, inputs)
            captured.graph.replay()
            return captured.result
        kind.calls += 1
        if kind.calls == self._after + 1:
            kind.captured = _capture(function, inputs)  # which also runs it
            if kind.captured is not None:
                return kind.captured.result
        return function(*inputs)


@dataclass
class _Kind:
    calls: int = 0
    captured: _Captured | None = None


@dataclass(frozen=True)
class _Captured:
    graph: CpuGraph
    inputs: Inputs
    result: Any


def _capture(function: Callable[..., Any], inputs: Inputs) -> _Captured | None:
    buffers, graph = _buffers(inputs), CpuGraph()
    _fill(buffers, inputs)
    try:
        return _Captured(graph, buffers, graph.capture(lambda: function(*buffers)))
    except CaptureError:
        return None


def _kind_of(inputs: Inputs) -> tuple[tuple[torch.Size, torch.dtype] | None, ...]:
    return tuple(None if x is None else (x.shape, x.dtype) for x in inputs)


def _buffers(inputs: Inputs) -> Inputs:
    # Buffers made in inference mode could not be written outside of it.
    with torch.inference_mode(False), torch.no_grad():
        return tuple(None if x is None else torch.empty_like(x) for x in inputs)


def _fill(buffers: Inputs, inputs: Inputs) -> None:
    for buffer, x in zip(buffers, inputs, strict=True):
        if buffer is not None and x is not None:
            buffer.copy_(x)


def make_runner(device: torch.device) -> Runner:
    """The runner of steps without arguments on `device`."""
    return CudaGraphRunner(device) if device.type == "cuda" else make_call_runner(device)


def make_call_runner(device: torch.device, *, nested: bool = False) -> Runner:
    """The runner of functions of tensors on `device`.

    Args:
        device: device of the tensors.
        nested: the calls are part of a step that ``make_runner`` runs. On the CPU they are captured
            later then, if the whole step was not; in a CUDA graph they are plain calls.
    """
    if device.type == "cuda" and not nested:
        return CudaCallRunner(device)
    if device.type != "cpu" or CpuGraph.unavailable() is not None:
        return run_eager
    return CpuGraphRunner(CALLS_BEFORE_CAPTURE * (2 if nested else 1))


def parameters(module: nn.Module) -> list[nn.Parameter]:
    """Parameters of a module; a part that occurs twice counts twice.

    ``module.parameters()`` takes several times as long, which shows beside a small graph.
    """
    found: list[nn.Parameter | None] = []
    modules: list[nn.Module | None] = [module]
    for one in modules:  # the list grows
        if one is not None:
            modules.extend(one._modules.values())
            found.extend(one._parameters.values())
    return [p for p in found if p is not None]


def parameter_versions(module: nn.Module) -> list[tuple[int, int]]:
    """Address of each parameter of a module, and how often it has been written to."""
    all_parameters = parameters(module)
    try:
        return [(p.data_ptr(), p._version) for p in all_parameters]
    except RuntimeError:  # tensors made in inference mode count no versions
        return [(p.data_ptr(), 0 if p.is_inference() else p._version) for p in all_parameters]
