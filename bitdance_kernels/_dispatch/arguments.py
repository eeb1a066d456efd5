"""Checks of arguments by an op's schema: kinds, numbers, memory."""

from __future__ import annotations

import importlib
import math
import numbers
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from bitdance_kernels._dispatch.tracing import is_traced
from bitdance_kernels._shared import checks

_INT64 = range(-(2**63), 2**63)
# Allocations lie above, except the heap of a Python that is not position-independent. The address
# of a tensor whose storage was freed is the offset of its view.
_LOW_ADDRESS = 1 << 40
_PACKAGE = __name__.rpartition("._dispatch.")[0]  # a copy may have another name


@dataclass(frozen=True)
class Argument:
    """One argument of a schema, under the name that callers use."""

    name: str
    kind: str  # "Tensor", "int", "float", "bool" or "ScalarType"
    optional: bool
    written: bool

    @property
    def is_tensor(self) -> bool:
        return self.kind == "Tensor"


def parse(schema: str, called: Mapping[str, str]) -> tuple[Argument, ...]:
    """The arguments of "Tensor x, Tensor? bias, Tensor(a!) cache, int k"; lists are not used."""
    found = []
    for declaration in schema.split(","):
        kind, name = declaration.split()
        plain = kind.rstrip("?").partition("(")[0]
        found.append(Argument(called.get(name, name), plain, kind.endswith("?"), "!" in kind))
    return tuple(found)


def checked_kind(op: str, argument: Argument, value: Any) -> Any:
    """`value` as a backend takes it, numbers as Python's own types.

    Raises:
        TypeError: it is of another kind than the schema says.
        ValueError: a number that is not finite, or beyond 64 bits.
    """
    if value is None and argument.optional:
        return value
    value = _CHECKED[argument.kind](op, argument.name, value)
    if argument.written and (value.is_neg() or value._is_zerotensor()):
        got = "a view to be negated" if value.is_neg() else "a zero tensor without memory"
        raise checks.fail(op, argument.name, "memory to write to", got)
    return value


def tensor(op: str, argument: str, value: Any) -> Any:
    """`value`, a dense tensor.

    Raises:
        TypeError: it is none; of an array the message tells whether there is a function for it. Or
            it is sparse, nested or in a layout of another library.
    """
    if isinstance(value, torch.Tensor):
        if value.layout is not torch.strided or value.is_nested:
            got = "a nested tensor" if value.is_nested else value.layout
            raise TypeError(f"{op}: {argument} must be a dense tensor, got {got}")
        return value
    kind = type(value)
    name = "None" if value is None else f"{kind.__module__}.{kind.__qualname__}"
    message = f"{op}: {argument} must be a torch.Tensor, got {name.removeprefix('builtins.')}"
    if kind.__module__.partition(".")[0] == "numpy":
        front = importlib.import_module(f"{_PACKAGE}.binary.numpy")
        if op in front.__all__:
            message += f"; bitdance_kernels.binary.numpy.{op} takes arrays"
        else:
            message += "; torch.from_numpy makes one of an array"
    raise TypeError(message)


def integer(op: str, argument: str, value: Any) -> Any:
    """`value`, checked to be an integer and no bool."""
    if type(value) is int or isinstance(value, torch.SymInt):
        return value
    if is_traced():  # its numbers may not be known yet
        return value
    if not isinstance(value, numbers.Integral) or isinstance(value, bool):
        raise TypeError(f"{op}: {argument} must be an integer, got {_shown(value)}")
    return int(value)


def _int64(op: str, argument: str, value: Any) -> Any:
    value = integer(op, argument, value)
    if type(value) is int and value not in _INT64:
        raise checks.fail(op, argument, "an integer of 64 bits", value)
    return value


def real(op: str, argument: str, value: Any) -> Any:
    """`value`, checked to be a finite number and no bool."""
    value = number(op, argument, value)
    check_finite(op, argument, value)
    return value


def check_finite(op: str, argument: str, value: Any) -> None:
    """Raise ValueError if `value` is an infinite or NaN float."""
    if type(value) is float and not torch.compiler.is_compiling() and not math.isfinite(value):
        raise checks.fail(op, argument, "finite", value)


def number(op: str, argument: str, value: Any) -> Any:
    """`value` as a float, checked to be a number and no bool; it may be infinite."""
    if isinstance(value, (torch.SymFloat, torch.SymInt)) or is_traced():
        return value
    if not isinstance(value, numbers.Real) or isinstance(value, bool):
        raise TypeError(f"{op}: {argument} must be a number, got {_shown(value)}")
    try:
        return float(value)
    except OverflowError:
        return math.inf


def boolean(op: str, argument: str, value: Any) -> bool:
    """`value`, checked to be True or False, also one of numpy's."""
    if type(value) is bool or (type(value).__module__ == "numpy" and str(value.dtype) == "bool"):
        return bool(value)
    raise TypeError(f"{op}: {argument} must be True or False, got {_shown(value)}")


def _dtype(op: str, argument: str, value: Any) -> torch.dtype:
    if isinstance(value, torch.dtype):
        return value
    raise TypeError(f"{op}: {argument} must be a torch.dtype, got {_shown(value)}")


_CHECKED = {
    "Tensor": tensor, "int": _int64, "float": number, "bool": boolean, "ScalarType": _dtype,
}  # fmt: skip


def _shown(value: Any) -> str:
    if value is None or isinstance(value, (bool, int, float, complex)):
        return repr(value)
    return f"{value!r:.40}" if isinstance(value, str) else type(value).__name__


def check_memory(op: str, argument: str, value: torch.Tensor, *, has_memory: bool) -> None:
    """Raise unless the storage of `value` holds all its elements.

    Raises:
        TypeError: it is no dense tensor.
        ValueError: its storage was given up, as FSDP does with parameters that are elsewhere.
    """
    tensor(op, argument, value)
    if not has_memory or not (value.is_cpu or value.is_cuda) or value.data_ptr() >= _LOW_ADDRESS:
        return
    held, used = value.untyped_storage().nbytes(), value.storage_offset() + span(value)
    if used * value.element_size() > held and value.numel():
        expected = f"a tensor whose storage holds its {used} elements"
        raise checks.fail(op, argument, expected, f"a storage of {held} bytes")


def span(value: torch.Tensor) -> int:
    """Number of elements from the first to the last of a tensor in memory, both included."""
    last = sum((n - 1) * step for n, step in zip(value.shape, value.stride(), strict=True))
    return 1 + last if value.numel() else 0


def broadcast(value: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """`value` expanded to `shape` if it broadcasts to it, else unchanged."""
    if value.shape == shape or value.dim() > len(shape):
        return value
    pairs = zip(reversed(value.shape), reversed(shape), strict=False)
    return value.expand(shape) if all(n in (1, wanted) for n, wanted in pairs) else value
