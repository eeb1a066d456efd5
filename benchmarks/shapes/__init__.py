"""What is timed of each op: real shapes of BitDance, and what users would call instead.

One module a family, and one of the products, with ``SHAPES``: by the op's name its timings, its
baselines, which take the arguments of the op, and perhaps its peers, which stand in their place on
a CPU. The names of shapes and baselines are those in ``benchmarks/results``.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from bitdance_kernels.testing import Call, Case
from tests.cases import all_cases

MODULES = ("binary", "denoise", "products", "attention", "autoencode")


@dataclass(frozen=True)
class Timing:
    """One shape to time, with the traffic and arithmetic that it needs at a minimum.

    Attributes:
        name: such as "64 MB float32".
        make: builds the call on a device.
        bytes: bytes that must be moved: every input read once, every output written once.
        flops: floating-point operations that must be done (a multiply-add is two).
        half: they are products of half precision, which the rate of a large one bounds.
        items: of integer work, see ``tests/instructions.py``.
        devices: where this shape is worth timing.
        backward: time the gradients of all floating-point arguments with it.
    """

    name: str
    make: Callable[[torch.device], Call]
    bytes: int
    flops: int = 0
    half: bool = False
    items: int = 0
    devices: tuple[str, ...] = ("cpu", "cuda")
    backward: bool = False


@dataclass(frozen=True)
class Bench(Case):
    """The case of an op with what is timed.

    Attributes:
        timings: shapes.
        baselines: functions by name.
        peers: the same for a CPU; empty for the baselines.
    """

    timings: tuple[Timing, ...] = ()
    baselines: Mapping[str, Callable[..., Any]] = field(default_factory=dict)
    peers: Mapping[str, Callable[..., Any]] = field(default_factory=dict)


class Make:
    """Random tensors on a device."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def randn(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """Normal values."""
        return torch.randn(shape, device=self.device).to(dtype)

    def bytes(self, *shape: int) -> Tensor:
        """Packed codes."""
        return torch.randint(256, shape, dtype=torch.uint8, device=self.device)

    def full(self, value: float, dtype: torch.dtype = torch.float32) -> Tensor:
        """A scalar."""
        return torch.full((), value, dtype=dtype, device=self.device)

    def layer(self, features: int, channels: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Weight [features, channels] and bias of a linear layer."""
        weight = self.randn(features, channels) / channels**0.5
        return weight.to(dtype), weight[:, 0].to(dtype).contiguous()


def timing(
    name: str, arguments: Callable[[Make], Sequence[Any]], moved: int, **more: Any
) -> Timing:
    """A ``Timing`` of the `arguments`; see `call_of`."""
    return Timing(name, lambda device: call_of(name, arguments(Make(device))), moved, **more)


def call_of(name: str, arguments: Sequence[Any]) -> Call:
    """A call of the arguments, of which a dictionary at the end holds those with names."""
    *args, last = arguments
    named = isinstance(last, dict)
    return Call(name, tuple(args) if named else (*args, last), last if named else {})


def short(dtype: torch.dtype) -> str:
    """The name of a dtype in the names of shapes."""
    return str(dtype).removeprefix("torch.")


@functools.cache
def all_benches() -> dict[str, Bench]:
    """The case of every op, with its timings if it has any."""
    shapes: dict[str, tuple[Any, ...]] = {}
    for module in MODULES:
        shapes |= importlib.import_module(f"{__name__}.{module}").SHAPES
    benches = {}
    for name, case in all_cases().items():
        timings, baselines, *peers = shapes.pop(name, ((), {}))
        benches[name] = Bench(
            **vars(case),
            timings=tuple(timings),
            baselines=baselines,
            peers=peers[0] if peers else {},
        )
    if shapes:
        raise KeyError(f"benchmarks.shapes: no case of {', '.join(shapes)}")
    return benches
