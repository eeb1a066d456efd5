"""Memory between guard bands, for the arguments of a call and for all that a backend makes."""

from __future__ import annotations

import contextlib
import functools
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from bitdance_kernels._dispatch.backends import Backend
from bitdance_kernels._dispatch.op import REGISTRY
from bitdance_kernels.testing import Call, Case

GUARD = 4096
"""Bytes of a guard band, either side of a tensor; they keep its alignment."""
_FENCE = 0xC3
_OFFSETS = (0, 0, 0, 1, 2, 3, 4, 8)
_LAYOUTS = ("dense", "dense", "gaps", "permuted", "expanded")


@dataclass
class _Held:
    """A buffer with a tensor inside: its bytes as they were, and those that may change."""

    what: str
    buffer: Tensor
    before: Tensor
    free: Tensor  # bool, of the bytes that anybody may write
    end: int  # the first byte past the tensor


class Guards:
    """Everything that a call reads and writes, each between guard bands.

    Args:
        device: of the tensors.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._held: list[_Held] = []

    def hold(
        self, what: str, size: Sequence[int], stride: Sequence[int], dtype: torch.dtype,
        *, offset: int = 0, content: Tensor | None = None, written: bool = True,
    ) -> Tensor:  # fmt: skip
        """A tensor between guard bands, with poison in all elements and gaps but its `content`.

        Args:
            what: its name, for messages.
            size: of the tensor.
            stride: of the tensor; not negative.
            dtype: of the tensor.
            offset: elements from the aligned address to the tensor.
            content: what it holds; poison by default.
            written: whether its elements may change.
        """
        unit = dtype.itemsize
        last = sum((n - 1) * step for n, step in zip(size, stride, strict=True))
        end = GUARD + unit * (offset + (last + 1 if 0 not in size else 0))
        span = -(-(end - GUARD) // 8) * 8  # so that all dtypes can view it
        buffer = torch.full((span + 2 * GUARD,), _FENCE, dtype=torch.uint8, device=self.device)
        # All bits set is NaN in every floating-point dtype.
        poison = 0xFF if dtype.is_floating_point else 0x01 if dtype == torch.bool else 0x7F
        buffer[GUARD + unit * offset : end] = poison
        tensor = _inside(buffer, size, stride, dtype, offset)
        if content is not None:  # of what is expanded the first row alone
            once = tuple(slice(0, 1 if step == 0 else None) for step in stride)
            tensor[once].copy_(content[once])
        free = torch.zeros_like(buffer)
        if written:
            # A byte at a time, as the strides of the elements say.
            _inside(free, (*size, unit), [unit * s for s in stride] + [1], torch.uint8,
                    unit * offset).fill_(1)  # fmt: skip
        self._held.append(_Held(what, buffer, buffer.clone(), free.bool(), end))
        return tensor

    def place(self, case: Case, call: Call, choice: random.Random) -> Call:
        """`call` with every tensor between guard bands, in random layouts at random offsets."""
        written = {id(call.args[i]) for i in case.mutates}
        # Triton compiles once more for each set of aligned arguments: few sets, mostly all alike.
        common = choice.choice(_OFFSETS)
        numbers = iter(range(1 << 30))

        def place(tensor: Tensor) -> Tensor:
            may_change = id(tensor) in written
            offset = choice.choice(_OFFSETS) if choice.random() < 0.1 else common
            layout = choice.choice(_LAYOUTS[:3] if may_change else _LAYOUTS)
            if layout == "expanded" and tensor.dim() > 1 and len(tensor) > 1:
                tensor = tensor[:1].expand_as(tensor)
            stride = _strides(tensor, layout, choice)
            return self.hold(
                f"tensor {next(numbers)}", tensor.shape, stride, tensor.dtype, offset=offset,
                content=tensor, written=may_change,
            )  # fmt: skip

        return call.map(place)

    def problems(self) -> list[str]:
        """What was written that must not be, a line each tensor."""
        if not self._held:
            return []
        wrong = torch.stack([
            ((held.buffer != held.before) & ~held.free).any() for held in self._held
        ])  # fmt: skip
        return [
            _described(held)
            for held, is_wrong in zip(self._held, wrong.tolist(), strict=True)
            if is_wrong
        ]


def _inside(
    buffer: Tensor, size: Sequence[int], stride: Sequence[int], dtype: torch.dtype, offset: int
) -> Tensor:
    first = GUARD // dtype.itemsize + offset
    return buffer.view(dtype).as_strided(tuple(size), tuple(stride), first)


def _strides(tensor: Tensor, layout: str, choice: random.Random) -> Sequence[int]:
    """Strides of the values of `tensor` in another layout; those of maps keep their order."""
    shape = tensor.shape
    if layout == "expanded":
        return tensor.stride()
    channels_last = tensor.dim() == 4 and tensor.stride(1) == 1 and not tensor.is_contiguous()
    order = list(range(tensor.dim()))
    if channels_last:
        order = [0, 2, 3, 1]
    elif layout == "permuted" and tensor.dim() > 2:
        order = [*order[1:-1], 0, order[-1]]
    gap = choice.choice((1, 3, 8)) if layout == "gaps" else 0
    strides, step = [0] * tensor.dim(), 1
    for place, dim in enumerate(reversed(order)):
        strides[dim] = step
        step = step * max(shape[dim], 1) + (gap if place == 0 else 0)
    return strides


def _described(held: _Held) -> str:
    changed = ((held.buffer != held.before) & ~held.free).nonzero().flatten()
    first = int(changed[0])
    where = (
        f"{GUARD - first} bytes before it" if first < GUARD
        else f"{first - held.end} bytes past its end" if first >= held.end
        else f"byte {first - GUARD} of it"
    )  # fmt: skip
    return f"{held.what}: {len(changed)} bytes changed, the first one {where}"


class Fresh(TorchDispatchMode):
    """A mode that sees each tensor that PyTorch makes for a backend.

    Args:
        take: gets the name of the operator and the new tensor, and returns what takes its place.
    """

    def __init__(self, take: Callable[[str, Tensor], Tensor]) -> None:
        super().__init__()
        self._take = take

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        given = {
            leaf.untyped_storage().data_ptr()
            for leaf in pytree.tree_leaves((args, kwargs))
            if isinstance(leaf, Tensor)
        }

        def take(tensor: Tensor) -> Tensor:
            is_view = tensor.untyped_storage().data_ptr() in given
            return tensor if is_view or tensor.numel() == 0 else self._take(str(func), tensor)

        return pytree.tree_map_only(Tensor, take, result)


def guarding(guards: Guards) -> Fresh:
    """A mode in which what a backend makes lies between guard bands, poisoned unless it is full."""

    def take(operator: str, tensor: Tensor) -> Tensor:
        if tensor.device.type != guards.device.type:
            return tensor
        empty = operator.removeprefix("aten.").startswith(("empty", "new_empty"))
        return guards.hold(
            f"what {operator} made", tensor.shape, tensor.stride(), tensor.dtype,
            content=None if empty else tensor,
        )  # fmt: skip

    return Fresh(take)


_modes: list[Callable[[], contextlib.AbstractContextManager[object]]] = []


@functools.cache
def _in_modes(backend: Backend) -> Backend:
    """`backend` with its `run` in the mode that is current then.

    There is one for each, since PyTorch's formulas are made once for each.
    """

    def run(*args: Any) -> Any:
        with _modes[-1]() if _modes else contextlib.nullcontext():
            return backend.run(*args)

    return replace(backend, run=run)


@contextlib.contextmanager
def backends_in(
    case: Case, mode: Callable[[], contextlib.AbstractContextManager[object]]
) -> Iterator[None]:
    """A context in which all backends of the op and of its gradient run in a mode.

    PyTorch's dispatcher hides from a mode around the call what an op does inside.
    """
    with contextlib.ExitStack() as stack:
        for op in REGISTRY.values():
            if op.package == case.kernel_op.package:
                loaded = {name: op.backend(name) for name in op.backends if name != "reference"}
                wrapped = {n: _in_modes(b) for n, b in loaded.items() if isinstance(b, Backend)}
                stack.enter_context(mock.patch.dict(op._loaded, wrapped))
                stack.enter_context(mock.patch.object(op, "_chosen", {}))
        _modes.append(mode)
        stack.callback(_modes.pop)
        yield
