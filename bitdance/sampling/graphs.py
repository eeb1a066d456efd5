"""Captured steps: the one place of the model layer that knows of graphs.

A step is a function without arguments. What it reads and writes lies in memory that stays where it
is, so that replaying its kernels is as good as calling it, and costs the host nothing. On the CPU,
where some steps look at values and cannot be captured, a part of such a step still can.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch import nn
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

from bitdance_kernels import CaptureError, CpuGraph

__all__ = [
    "CapturedStep",
    "EagerStep",
    "Recent",
    "RecordedCall",
    "RecordedStep",
    "call",
    "call_for",
    "is_traced",
    "memory",
    "parameters",
    "step_for",
]

Step = Callable[[], tuple[torch.Tensor, ...]]
T = TypeVar("T")

MOST_KINDS = 2
"""Kinds of arguments, guided and not, for which a recorded call keeps a graph."""

CALLS_BEFORE_CAPTURE = 4
"""Calls on the CPU after which a function is captured.

A capture takes as long as some four calls of a small model; a single image would not earn it back.
"""


_CAPTURE = threading.Lock()
"""Held by the thread that captures a CUDA graph: PyTorch has one stream for captures."""


def is_traced() -> bool:
    """Whether a call is written down as a program, to be run later on other values.

    By torch.compile, torch.export, torch.onnx.export, torch.jit.trace or ``make_fx``. What is
    written down must be a function of its arguments: it uses no memory that a model keeps, replays
    no graph, and looks at no values.
    """
    if torch.compiler.is_compiling() or torch.jit.is_tracing():  # type: ignore[attr-defined]
        return True
    return bool(_get_current_dispatch_mode_stack()) and not CpuGraph.capturing()


class EagerStep:
    """A step that is called."""

    def __call__(self, step: Step) -> tuple[torch.Tensor, ...]:
        """The step's results."""
        return step()


class CapturedStep:
    """A step that is called the first time, and from then on replayed as a CUDA graph.

    The first call is a real one: it compiles kernels and fills the libraries' workspaces on a side
    stream, as a capture wants it, and nothing need be undone after it. Capturing runs no kernel, so
    the second call captures and replays. A graph's results are overwritten by its next replay.

    Args:
        device: a CUDA device.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._warm = False
        self._graph: torch.cuda.CUDAGraph | None = None
        self._results: tuple[torch.Tensor, ...] = ()

    def __call__(self, step: Step) -> tuple[torch.Tensor, ...]:
        """The step's results.

        Args:
            step: the same one in every call. It reads its arguments from memory that stays, draws
                no random numbers from a generator, and asks for no value on the host.
        """
        if is_traced():
            return step()
        with torch.cuda.device(self._device):
            if not self._warm:
                results = self._aside(step)
                self._warm = True  # not before it has succeeded
                return results
            if self._graph is None:
                self._graph, self._results = self._capture(step)
            self._graph.replay()
        return self._results

    def _aside(self, step: Step) -> tuple[torch.Tensor, ...]:
        main, side = torch.cuda.current_stream(), torch.cuda.Stream()
        side.wait_stream(main)
        with torch.cuda.stream(side):
            results = step()
        main.wait_stream(side)
        for result in results:  # the allocator must not reuse them while `main` reads them
            result.record_stream(main)
        return results

    def _capture(self, step: Step) -> tuple[torch.cuda.CUDAGraph, tuple[torch.Tensor, ...]]:
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


def step_for(device: torch.device) -> EagerStep | CapturedStep | RecordedStep:
    """How a step runs on `device`."""
    if device.type == "cuda":
        return CapturedStep(device)
    return RecordedStep() if _captures(device) else EagerStep()


class RecordedStep:
    """A step on the CPU that is captured after some calls and replayed from then on.

    A step that no graph can repeat is called, every time.
    """

    def __init__(self) -> None:
        self._call = RecordedCall()

    def __call__(self, step: Step) -> tuple[torch.Tensor, ...]:
        """The step's results, overwritten by the next call.

        Args:
            step: as for ``CapturedStep``. Where it cannot be captured it is begun twice, and must
                give the same then.
        """
        return self._call(step)


class RecordedCall:
    """A function of tensors on the CPU: captured when it is called often with tensors of a kind.

    What a graph cannot capture is called, every time.

    Args:
        after: how many calls it is captured after.
    """

    def __init__(self, after: int | None = None) -> None:
        self._after = CALLS_BEFORE_CAPTURE if after is None else after
        self._kinds: Recent[_Kind] = Recent(MOST_KINDS)

    def __call__(self, function: Callable[..., T], *inputs: torch.Tensor | None) -> T:
        """The function's result, overwritten by the next call.

        Args:
            function: the same one in every call, as for ``CapturedStep``.
            inputs: its arguments.
        """
        if CpuGraph.capturing() or is_traced():
            return function(*inputs)
        # How many threads a kernel takes is in its recorded call.
        threads = torch.get_num_threads()
        kind = tuple(None if x is None else (x.shape, x.dtype) for x in inputs)
        of_kind = self._kinds.get(threads, kind, _Kind)
        captured = of_kind.captured
        if captured is not None:
            for kept, given in zip(captured.inputs, inputs, strict=True):
                if kept is not None and given is not None:
                    kept.copy_(given)
            captured.graph.replay()
            return captured.result
        of_kind.calls += 1
        if of_kind.calls == self._after + 1:
            of_kind.captured = _capture(function, inputs)  # which carries it out
            if of_kind.captured is not None:
                return of_kind.captured.result
        return function(*inputs)


@dataclass
class _Kind:
    calls: int = 0
    captured: _Captured | None = None


@dataclass(frozen=True)
class _Captured:
    graph: CpuGraph
    inputs: tuple[torch.Tensor | None, ...]
    result: Any


def _capture(
    function: Callable[..., Any], inputs: tuple[torch.Tensor | None, ...]
) -> _Captured | None:
    # Made in inference mode, memory could not be written outside of it.
    with torch.inference_mode(False), torch.no_grad():
        kept = tuple(None if x is None else torch.empty_like(x).copy_(x) for x in inputs)
    graph = CpuGraph()
    try:
        return _Captured(graph, kept, graph.capture(lambda: function(*kept)))
    except CaptureError:
        return None


def call(function: Callable[..., T], *inputs: torch.Tensor | None) -> T:
    """Call it."""
    return function(*inputs)


def call_for(device: torch.device, *, within: bool = False) -> Callable[..., Any]:
    """How a function on `device` is called: f(function, *inputs).

    Args:
        device: of its tensors.
        within: a step that ``step_for`` calls. It is captured later then, if the step was not.
    """
    after = CALLS_BEFORE_CAPTURE * (2 if within else 1)
    return RecordedCall(after) if _captures(device) else call


def _captures(device: torch.device) -> bool:
    return device.type == "cpu" and CpuGraph.unavailable() is None


def parameters(module: nn.Module) -> list[nn.Parameter]:
    """A module's parameters; those of a part that is there twice are there twice.

    ``module.parameters()`` takes several times as long, which is felt beside a small graph.
    """
    found: list[nn.Parameter | None] = []
    modules: list[nn.Module | None] = [module]
    for one in modules:  # of which there are more and more
        if one is not None:
            modules.extend(one._modules.values())
            found.extend(one._parameters.values())
    return [p for p in found if p is not None]


def memory(module: nn.Module) -> list[tuple[int, int]]:
    """Where a module's parameters lie, and how often each has been written to."""
    of_module = parameters(module)
    try:
        return [(p.data_ptr(), p._version) for p in of_module]
    except RuntimeError:  # what was made in inference mode counts no versions
        return [(p.data_ptr(), 0 if p.is_inference() else p._version) for p in of_module]


class Recent(Generic[T]):
    """The most recently used of what is costly to make, each for a key.

    Copies and pickles of it are empty: graphs can be neither copied nor saved.

    Args:
        most: how many are kept.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self._kept: OrderedDict[Hashable, T] = OrderedDict()
        self._owner: Hashable = None

    def get(self, owner: Hashable, key: Hashable, make: Callable[[], T]) -> T:
        """What is kept for `key`, or what `make` returns; all is dropped when `owner` changes."""
        if owner != self._owner:
            self._kept.clear()
            self._owner = owner
        if key not in self._kept:
            while len(self._kept) >= self.most:
                self._kept.popitem(last=False)  # before the next is made, so that it has the room
            self._kept[key] = make()
        self._kept.move_to_end(key)
        return self._kept[key]

    def clear(self) -> None:
        """Drop all that is kept."""
        self._kept.clear()

    def __len__(self) -> int:
        return len(self._kept)

    def __deepcopy__(self, memo: dict[int, Any]) -> Recent[T]:
        return Recent(self.most)

    def __reduce__(self) -> tuple[type[Recent[T]], tuple[int]]:
        return Recent, (self.most,)
