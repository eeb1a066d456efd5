"""A CUDA graph for the CPU: a step captured as the list of its computations, to be replayed.

The kernels of a small model take a few microseconds each; dispatch, checks, the choice of a backend
and allocation take several times as long. None of that changes when a step runs again on the same
memory, so a graph does it once.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode_stack
from torch.utils.dlpack import from_dlpack

from bitdance_kernels._dispatch.arguments import span
from bitdance_kernels._dispatch.namespace import NAMESPACE
from bitdance_kernels._dispatch.op import REGISTRY, KernelOp
from bitdance_kernels._shared import native_modules

__all__ = ["CaptureError", "CpuGraph"]

_ALIGNMENT = 64  # bytes: a cache line, and the longest vector

_aten = torch.ops.aten
# The fastest functions for products with out=.
_SHORT = {_aten.addmm.out: torch.addmm, _aten.mm.out: torch.mm, _aten.bmm.out: torch.bmm}
_EMPTY = {
    _aten.empty.memory_format,
    _aten.empty_like.default,
    _aten.empty_strided.default,
    _aten.new_empty.default,
    _aten.new_empty_strided.default,
}
_VIEWS = {_aten._unsafe_view.default}  # of results that are used in no other way


class CaptureError(RuntimeError):
    """The step does something that a graph cannot repeat, as the message says; it was aborted."""


class CpuGraph:
    """The computations of a step, to be replayed on the same memory.

    As for ``torch.cuda.CUDAGraph`` the step must read and write memory that stays in place, draw no
    random numbers from a generator and read no value on the host. Unlike there, it runs while it is
    captured. Every replay overwrites its results; the graph keeps the memory of all intermediates.

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
        """The reason why this process cannot capture; None if it can."""
        return native_modules.cpu.unavailable("start_recording")

    @staticmethod
    def capturing() -> bool:
        """Whether this thread is capturing a graph."""
        return any(isinstance(mode, _Recorder) for mode in _get_current_dispatch_mode_stack())

    def capture(self, step: Callable[[], Any]) -> Any:
        """Run `step` without gradients and record it.

        Returns:
            What `step` returns.

        Raises:
            CaptureError: the step draws random numbers, reads a value, or uses tensors that are
                not on the CPU; or this thread is capturing already.
            RuntimeError: no compiled module; see ``unavailable``.
        """
        if CpuGraph.capturing():
            raise CaptureError("a graph cannot be captured within another")
        recorder = _Recorder()
        # Replays outside of inference mode could not write tensors made in it.
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
        """Size of the memory that the graph keeps for results and intermediates."""
        return self._memory.bytes

    def replay(self) -> None:
        """Run the computations again; they overwrite the results of `capture`."""
        with torch.no_grad():
            for call in self._calls:
                call()


@dataclass
class _Block:
    """A piece of memory, and the storage of the tensors that lie in it during a capture."""

    base: torch.Tensor
    lent: StorageWeakRef


class _Memory:
    """Memory for the results of a step, reused when no tensor lies in it any more."""

    def __init__(self) -> None:
        self._blocks: dict[int, list[_Block]] = {}  # by size
        self._bases: dict[int, torch.Tensor] = {}  # by address

    @property
    def bytes(self) -> int:
        return sum(size * len(blocks) for size, blocks in self._blocks.items())

    def like(self, tensor: torch.Tensor) -> torch.Tensor:
        """An empty tensor of the same dtype and layout."""
        size = span(tensor) * tensor.element_size()
        lent = self._lend(max(1, -(-size // _ALIGNMENT)) * _ALIGNMENT)
        return lent.view(tensor.dtype).as_strided(tensor.shape, tensor.stride())

    def alias(self, tensor: torch.Tensor) -> torch.Tensor | None:
        """The same memory for replays; it does not keep the memory from other tensors."""
        base = self._bases.get(tensor.untyped_storage().data_ptr())
        if base is None:
            return None
        offset = tensor.storage_offset()
        return base.view(tensor.dtype).as_strided(tensor.shape, tensor.stride(), offset)

    def _lend(self, size: int) -> torch.Tensor:
        """Bytes in a block of this size, as a storage of their own that tells when it is unused."""
        blocks = self._blocks.setdefault(size, [])
        block = next((block for block in blocks if block.lent.expired()), None)
        base = torch.zeros(size, dtype=torch.uint8, device="cpu") if block is None else block.base
        lent = from_dlpack(base)
        storage = StorageWeakRef(lent.untyped_storage())
        if block is None:
            blocks.append(_Block(base, storage))
            self._bases[base.data_ptr()] = base
        else:
            block.lent = storage
        return lent


class _Recorder(TorchDispatchMode):
    """Runs every operator that it sees in memory of its own, and records it."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """False, so that PyTorch does not import its compiler, which takes seconds, to skip it."""
        return False

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Callable[[], object]] = []
        self.kept: dict[int, torch.Tensor] = {}
        self.memory = _Memory()

    def flush(self) -> None:
        """Append the native calls since the last time to the list."""
        recording = native_modules.cpu.take_recording()
        if len(recording):
            self.calls.append(recording)

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
        owned = pytree.tree_map_only(torch.Tensor, self._own, results)
        targets = pytree.tree_map_only(torch.Tensor, self._later, owned)
        out = _out_variant(func)
        if out is not None and isinstance(targets, torch.Tensor):
            self.calls.append(functools.partial(out, *args, **kwargs, out=targets))
        else:
            replay = functools.partial(func, *args, **kwargs)
            if isinstance(targets, torch.Tensor):
                copy = functools.partial(_copy_result, replay, targets)
            else:
                copy = functools.partial(_copy_results, replay, pytree.tree_leaves(targets))
            self.calls.append(copy)
        return owned

    def _own(self, result: torch.Tensor) -> torch.Tensor:
        return self.memory.like(result).copy_(result)

    def _run_op(self, op: KernelOp, args: tuple[Any, ...]) -> Any:
        backend = op.select(args[-1], args[:-1])
        if backend is op.backend("reference"):
            if op.reads_values:
                raise CaptureError(f"{op.name} chooses by values what its reference does")
        elif backend is not op.backend("cpu"):
            raise CaptureError(f"{op.name} runs on neither the reference nor the cpu backend")
        with self:  # to record what the op does besides its native call
            return op.run(*args)

    def _later(self, tensor: torch.Tensor) -> torch.Tensor:
        alias = self.memory.alias(tensor)
        return tensor if alias is None else alias

    def _keep(self, tensor: torch.Tensor) -> None:
        _check_device(tensor)
        if self.memory.alias(tensor) is None:
            self.kept.setdefault(tensor.untyped_storage().data_ptr(), tensor)


def _check_device(tensor: torch.Tensor | None) -> None:
    if tensor is not None and tensor.device.type != "cpu":
        raise CaptureError(f"a graph of the CPU has nothing to do on {tensor.device}")


@functools.cache
def _out_variant(func: Any) -> Any | None:
    """The overload of a function that writes its one result to an argument `out`."""
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
