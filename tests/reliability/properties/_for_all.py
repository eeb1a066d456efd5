"""A property: what holds for all arguments that strategies draw."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import hypothesis
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from bitdance_kernels.testing import cpu_isa, cpu_isas, specials

__all__ = ["BYTES", "LEADING", "PLACES", "SEEDS", "Place", "Property", "for_all", "rng", "values"]


@dataclass(frozen=True)
class Property:
    """A statement over drawn arguments.

    Attributes:
        name: of the property, in words.
        strategies: a strategy for each argument of `check`.
        check: raises AssertionError where the property does not hold.
    """

    name: str
    strategies: Mapping[str, SearchStrategy[Any]]
    check: Callable[..., None]

    def run(self, cases: int, seed: int = 0) -> int:
        """Check `cases` cases, the same ones for the same `seed`.

        Returns:
            The number of different cases that held, less than `cases` where there are no more.

        Raises:
            AssertionError: the property does not hold; names it, the seed and the least arguments.
        """
        held = 0

        def check(**arguments: Any) -> None:
            nonlocal held
            self.check(**arguments)
            held += 1

        limits = settings(
            max_examples=cases,
            deadline=None,
            database=None,
            derandomize=False,  # the seed decides
            suppress_health_check=[HealthCheck.too_slow],
        )
        try:
            hypothesis.seed(seed)(limits(given(**self.strategies)(check)))()
        except Exception as error:
            notes = "\n".join(getattr(error, "__notes__", ()))
            raise AssertionError(f"{self.name}, seed {seed}: {error!r}\n{notes}") from error
        return held


def for_all(**strategies: SearchStrategy[Any]) -> Callable[[Callable[..., None]], Property]:
    """A decorator that makes a property of a function; its name is that of the function."""

    def wrap(check: Callable[..., None]) -> Property:
        return Property(check.__name__.replace("_", " ").strip(), strategies, check)

    return wrap


@dataclass(frozen=True)
class Place:
    """Where an op runs: a backend, and the instruction set that the C++ kernels may use."""

    backend: str
    isa: str | None = None

    @contextlib.contextmanager
    def limit(self) -> Iterator[None]:
        """A context in which C++ kernels use no more than that instruction set."""
        with contextlib.nullcontext() if self.isa is None else cpu_isa(self.isa):
            yield


PLACES = (Place("reference"), *(Place("cpu", isa) for isa in cpu_isas()))
"""The reference, and C++ with each instruction set of this processor."""

SEEDS = st.integers(0, 2**32 - 1)
LEADING = st.lists(st.integers(0, 4), max_size=2).map(tuple)
"""Leading dimensions, empty ones among them."""
BYTES = st.integers(1, 40)
"""Bytes of a row of bits."""


def rng(seed: int) -> torch.Generator:
    """A generator on the CPU."""
    return torch.Generator(device="cpu").manual_seed(seed)


def values(seed: int, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """Normals, a fifth of them replaced by zeros of both signs, NaN, infinities and extremes."""
    draw = rng(seed)
    x = torch.randn(shape, generator=draw, dtype=torch.float32, device="cpu").to(dtype)
    odd = torch.tensor(specials(dtype), dtype=dtype, device="cpu")
    which = torch.randint(5 * len(odd), shape, generator=draw, dtype=torch.int64, device="cpu")
    return torch.where(which < len(odd), odd[which % len(odd)], x)
