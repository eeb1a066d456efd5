"""A step on the CPU captured as the list of its computations: what a CUDA graph is on a card.

The kernels of a small model take a few microseconds each, and what surrounds them in PyTorch and
Python several times as long: dispatch, checks, the choice of a backend, allocation. None of that
changes when a step is done again on the same memory, so it is done once.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode_stack

from bitdance_kernels._dispatch.op import NAMESPACE, REGISTRY, KernelOp
from bitdance_kernels._shared import native_modules

__all__ = ["CaptureError", "CpuGraph"]

_ALIGNMENT = 64  # bytes: a cache line, and the longest vector

_aten = torch.ops.aten
# Products in their out= form, by the function that gets there soonest.
_SHORT = {_aten.addmm.out: torch.addmm, _aten.mm.out: torch.mm, _aten.bmm.out: torch.bmm}
_EMPTY = {
    _aten.empty.memory_format,
    _aten.empty_like.default,
    _aten.empty_strided.default,
    _aten.new_empty.default,
    _aten.new_empty_strided.default,
}
_VIEWS = {_aten._unsafe_view.default}  # of results of which nothing else is used


class CaptureError(RuntimeError):
    """A step does what a graph cannot repeat; the message says what. The step has not finished."""


class CpuGraph:
    """What a step computed, to be computed again on the same memory.

    The step must read and write memory that stays where it is, draw no random numbers from a
    generator and ask for no value on the host, as for ``torch.cuda.CUDAGraph``. Unlike there, it is
    carried out while it is captured. Its results stay where they are, and are overwritten by every
    replay; what it needs in between has memory of its own, which the graph keeps.

    Example:
        >>> import torch
        >>> from bitdance_kernels import swiglu
        >>> h, graph = torch.ones(1, 4), CpuGraph()
        >>> y = graph.capture(lambda: swiglu(h))
        >>> _ = h.zero_()
        >>> graph.replay()
        >>> y
        tensor([[0., 0.]])
    """

    def __init__(self) -> None:
        self._calls: list[Callable[[], object]] = []
        self._memory = _Memory()
        self._kept: list[torch.Tensor] = []

    @staticmethod
    def unavailable() -> str | None:
        """Why this process cannot capture; None when it can."""
        return native_modules.cpu.unavailable("start_recording")

    @staticmethod
    def capturing() -> bool:
        """Whether this thread is capturing a graph."""
        return any(isinstance(mode, _Recorder) for mode in _get_current_dispatch_mode_stack())

    def capture(self, step: Callable[[], Any]) -> Any:
        """Carry out `step` without gradients and keep what it does.

        Returns:
            What `step` returns.

        Raises:
            CaptureError: the step draws random numbers, asks for a value, or uses tensors that are
                not on the CPU; or another capture is going on.
            RuntimeError: no compiled module; see ``unavailable``.
        """
        if CpuGraph.capturing():
            raise CaptureError("a graph cannot be captured within another")
        recorder = _Recorder()
        # What is made in inference mode could not be written by a replay outside of it.
        with torch.inference_mode(False), torch.no_grad(), recorder:
            native_modules.cpu.start_recording()
            try:
                results = step()
                recorder.flush()
            finally:
                native_modules.cpu.stop_recording()
        self._calls = recorder.calls
        self._memory, self._kept = recorder.memory, list(recorder.kept.values())
        return results

    @property
    def memory_bytes(self) -> int:
        """Size of the memory that the graph keeps for what its step makes."""
        return self._memory.bytes

    def replay(self) -> None:
        """Compute it again; the results are where they were."""
        with torch.no_grad():
            for call in self._calls:
                call()


class _Memory:
    """Memory for what a step makes, used again when no tensor lies in it any more."""

    def __init__(self) -> None:
        # By size: arrays that every tensor in them holds, and the memory itself, held by nobody.
        self._arrays: dict[int, list[np.ndarray]] = {}
        self._bases: dict[int, torch.Tensor] = {}

    @property
    def bytes(self) -> int:
        return sum(size * len(arrays) for size, arrays in self._arrays.items())

    def like(self, tensor: torch.Tensor) -> torch.Tensor:
        """An empty tensor of the same kind and layout."""
        elements = 1 + sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))
        size = max(0, elements) * tensor.element_size() if tensor.numel() else 0
        array = self._free(-(-size // _ALIGNMENT) * _ALIGNMENT)
        flat = torch.from_numpy(array).view(tensor.dtype)
        return flat.as_strided(tensor.shape, tensor.stride())

    def alias(self, tensor: torch.Tensor) -> torch.Tensor | None:
        """The same values for later, without keeping the memory from other tensors until then."""
        if tensor.is_mkldnn:  # a weight in oneDNN's own order, which has no address
            return None
        base = self._bases.get(tensor.untyped_storage().data_ptr())
        if base is None:
            return None
        offset = tensor.storage_offset()
        return base.view(tensor.dtype).as_strided(tensor.shape, tensor.stride(), offset)

    def _free(self, size: int) -> np.ndarray:
        arrays = self._arrays.setdefault(size, [])
        for i in range(len(arrays)):
            if sys.getrefcount(arrays[i]) == 2:  # the list, and the argument of this function
                return arrays[i]
        # PyTorch's allocation, so that its error is raised where there is no memory.
        whole = torch.zeros(size + _ALIGNMENT, dtype=torch.uint8, device="cpu").numpy()
        start = -whole.ctypes.data % _ALIGNMENT
        array = whole[start : start + size]
        arrays.append(array)
        base = torch.from_numpy(whole[start : start + size])
        self._bases[base.data_ptr()] = base
        return array


class _Recorder(TorchDispatchMode):
    """Carries out what it sees, in memory of its own, and keeps it."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Whether PyTorch hides this mode from its compiler, to which end it would import that.

        Nothing is compiled within a capture, and the import takes seconds.
        """
        return False

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Callable[[], object]] = []
        self.kept: dict[int, torch.Tensor] = {}
        self.memory = _Memory()

    def flush(self) -> None:
        """Move what native code has done since the last time into the list."""
        taken = native_modules.cpu.take_recording()
        if len(taken):
            self.calls.append(taken)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        for tensor in pytree.tree_leaves((args, kwargs)):
            if isinstance(tensor, torch.Tensor):
                self._keep(tensor)
        if func.namespace == NAMESPACE:
            return self._run_op(REGISTRY[func._schema.name.partition("::")[2]], args)
        if torch._C._dispatch_has_kernel_for_dispatch_key(
            func.name(), torch._C.DispatchKey.CompositeImplicitAutograd
        ):
            with self:
                return func.decompose(*args, **kwargs)
        if func in _EMPTY:
            return self.memory.like(func(*args, **kwargs))
        if torch.Tag.nondeterministic_seeded in func.tags:
            raise CaptureError(f"a graph cannot draw the random numbers of {func}")
        results = func(*args, **kwargs)
        for result in pytree.tree_leaves(results):
            if not isinstance(result, torch.Tensor | None):
                raise CaptureError(f"a graph cannot ask for the value of {func}")
            _check_device(result)
        if func.is_view or func in _VIEWS:
            return results
        self.flush()
        args, kwargs = pytree.tree_map_only(torch.Tensor, self._later, (args, kwargs))
        if func._schema.is_mutable:
            self.calls.append(functools.partial(_SHORT.get(func, func), *args, **kwargs))
            return results
        made = pytree.tree_map_only(torch.Tensor, self._own, results)
        into = pytree.tree_map_only(torch.Tensor, self._later, made)
        out = _out_variant(func)
        if out is not None and isinstance(into, torch.Tensor):
            self.calls.append(functools.partial(out, *args, **kwargs, out=into))
        else:
            again = functools.partial(func, *args, **kwargs)
            if isinstance(into, torch.Tensor):
                self.calls.append(functools.partial(_copy_result, again, into))
            else:
                self.calls.append(functools.partial(_copy_results, again, pytree.tree_leaves(into)))
        return made

    def _own(self, result: torch.Tensor) -> torch.Tensor:
        return self.memory.like(result).copy_(result)

    def _run_op(self, op: KernelOp, args: tuple[Any, ...]) -> Any:
        backend = op.select(args[-1], args[:-1])
        if backend is op.backend("reference"):
            if op.reads_values:
                raise CaptureError(f"{op.name} chooses by values what its reference does")
        elif backend is not op.backend("cpu"):
            raise CaptureError(f"{op.name} runs on neither the reference nor the cpu backend")
        with self:  # to see what the op does besides its native call
            return op.run(*args)

    def _later(self, tensor: torch.Tensor) -> torch.Tensor:
        alias = self.memory.alias(tensor)
        return tensor if alias is None else alias

    def _keep(self, tensor: torch.Tensor) -> None:
        _check_device(tensor)
        if self.memory.alias(tensor) is None:
            key = id(tensor) if tensor.is_mkldnn else tensor.untyped_storage().data_ptr()
            self.kept.setdefault(key, tensor)


def _check_device(tensor: torch.Tensor | None) -> None:
    if tensor is not None and tensor.device.type != "cpu":
        raise CaptureError(f"a graph of the CPU has nothing to do on {tensor.device}")


@functools.cache
def _out_variant(func: Any) -> Any | None:
    """The overload of a function that writes its one result into an argument `out`."""
    wanted = [(a.name, str(a.type)) for a in func._schema.arguments]
    for name in func.overloadpacket.overloads():
        overload = getattr(func.overloadpacket, name)
        *others, last = overload._schema.arguments
        if last.name == "out" and [(a.name, str(a.type)) for a in others] == wanted:
            return overload
    return None


def _copy_result(function: Callable[[], torch.Tensor], target: torch.Tensor) -> None:
    target.copy_(function())


def _copy_results(function: Callable[[], Any], targets: list[Any]) -> None:
    for target, result in zip(targets, pytree.tree_leaves(function()), strict=True):
        if isinstance(target, torch.Tensor):
            target.copy_(result)
