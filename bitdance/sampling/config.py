"""How the head and the trunk are run on a card, as measurements have decided it.

``measured.json`` has a table for every card that was measured, by the name that the driver gives
it. Each of its entries may be left out:

    {"NVIDIA H200": {"head": {"mlp": [[1, "packed"], [65, "library"]], "transformer": [...]},
                     "trunk": [[1, "packed"]], "t2i_trunk": [...], "max_table_rows": 64}}

A list has pairs of a number of rows (tokens of a batch) and the plan from there on, in ascending
order. ``PLANS`` has the plans: "library" runs the library's products with elementwise ops between
them, "packed" products with packed weights that include their norms and gates, "persistent" all
evaluations of an AR step of a class-conditional head as one op. All compute the same.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Hashable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from bitdance.io.json_files import read_json
from bitdance.io.validation import brief

__all__ = [
    "ARCHITECTURES",
    "PARTS",
    "PLANS",
    "Measured",
    "choose_plan",
    "forced_plans",
    "max_table_rows",
    "measured",
    "tables",
    "use_plans",
]

PLANS = ("library", "packed", "persistent")
"""Names of the plans."""

PARTS = ("head", "trunk", "t2i_trunk")
"""What has a plan; "t2i_trunk" is the language model of text-to-image models."""

ARCHITECTURES = ("mlp", "transformer", "t2i")
"""Heads, which have tables of their own."""

MAX_PACKED_ROWS = 128
"""Maximum of rows of the kernels for packed weights."""

MAX_PERSISTENT_ROWS = {
    ("mlp", 768): 32, ("mlp", 1024): 32, ("mlp", 1280): 16, ("transformer", 768): 32
}  # fmt: skip
"""Maximum of rows of the kernel for all evaluations, by the heads that it is made for: their
architecture and channels."""

MAX_PERSISTENT_PATCH = 16
"""Maximum of tokens of a patch of that kernel."""

MAX_TABLE_ROWS = 64
"""Rows up to which the modulations of all evaluations of an AR step are one product, by default.

For few rows the time goes into reading weights, which are then read once. For more rows one product
per evaluation is better, since its result is still in the cache when it is used.
"""

FILE = Path(__file__).with_name("measured.json")

_OF_LIBRARY = {"fp8": "inputs in float8", "int8_weight_only": "weights in int8"}
"""What only the plan "library" can run, by quantizations."""

_CAPABILITIES = ((9, 0), (10, 0))  # of cards that the kernels for packed weights are compiled for

Steps = tuple[tuple[int, str], ...]


@dataclass(frozen=True)
class Measured:
    """What was measured on a card.

    Attributes:
        plans: pairs (min_rows, plan), by the part or, for a head, by its architecture.
        max_table_rows: see ``MAX_TABLE_ROWS``.
    """

    plans: Mapping[str, Steps] = field(default_factory=dict)
    max_table_rows: int = MAX_TABLE_ROWS

    def plan(self, name: str, rows: int) -> str:
        """The plan for that many rows; "library" where nothing is known."""
        found = [plan for min_rows, plan in self.plans.get(name, ()) if rows >= min_rows]
        return found[-1] if found else "library"


def choose_plan(
    part: str,
    rows: int,
    widths: tuple[int, ...],
    dtype: torch.dtype,
    device: torch.device,
    *,
    architecture: str = "",
    patch: int = 1,
    quantization: str | None = None,
    plan: str = "auto",
) -> str:
    """The plan of a part of a model for batches of one size.

    "auto" is what the card's table says. Where it says nothing, and where the kernels of a plan
    cannot run, it is "library".

    Args:
        part: one of ``PARTS``.
        rows: tokens of a batch.
        widths: channels and features of all its products.
        dtype: dtype of the products.
        device: where they run.
        architecture: of a head, one of ``ARCHITECTURES``.
        patch: tokens that a head has attention among.
        quantization: of its weights, see ``quantization_of``. Products with packed weights take
            float8 weights, but round no inputs and take no int8 weights.
        plan: one of ``PLANS`` or "auto".

    Raises:
        ValueError: there is no such plan, or the plan that was asked for cannot run these products;
            or the table is not as it must be.
    """
    if plan == "auto":
        plan = dict(_FORCED.get().plans).get(part, "auto")
    if plan not in ("auto", *PLANS):
        raise ValueError(f"choose_plan: plan must be one of auto, {', '.join(PLANS)}, got {plan!r}")
    if plan == "library":
        return plan
    of_library = _OF_LIBRARY.get(quantization or "")
    reason = of_library or _unsuited(rows, widths)
    not_persistent = (
        "weights in float8"
        if quantization is not None
        else _not_persistent(part, rows, widths, device, architecture, patch)
    )
    if plan != "auto":
        only_library = plan == "packed" or of_library is not None
        if reason is None and plan == "persistent":
            reason = not_persistent
        if reason is not None:
            others = "'library'" if only_library else "another one"
            raise ValueError(f"choose_plan: plan must be {others} for {reason}, got {plan!r}")
        return plan
    if reason is not None or device.type != "cuda":
        return "library"
    if dtype not in (torch.bfloat16, torch.float16):
        return "library"
    if torch.cuda.get_device_capability(device) not in _CAPABILITIES:
        return "library"
    plan = measured(device).plan(architecture or part, rows)
    return "packed" if plan == "persistent" and not_persistent is not None else plan


def _unsuited(rows: int, widths: tuple[int, ...]) -> str | None:
    """What weights cannot be packed for, or the kernels not be run with; None if all is well."""
    if rows > MAX_PACKED_ROWS:
        return f"{rows} rows, more than {MAX_PACKED_ROWS}"
    odd = [width for width in widths if width % 16 != 0]
    return f"a width of {odd[0]}, no multiple of 16" if odd else None


def _not_persistent(
    part: str,
    rows: int,
    widths: tuple[int, ...],
    device: torch.device,
    architecture: str,
    patch: int,
) -> str | None:
    """What "persistent" is not for, of what "packed" can run; None if it can run this."""
    if part != "head" or architecture not in ("mlp", "transformer"):
        return "what is no head of a class-conditional model"
    if device.type != "cuda":  # the op's reference takes any
        return None
    if patch > MAX_PERSISTENT_PATCH:
        return f"patches of {patch} tokens, more than {MAX_PERSISTENT_PATCH}"
    for (of_architecture, channels), max_rows in MAX_PERSISTENT_ROWS.items():
        same = architecture == of_architecture
        if same and set(widths) == {32, channels, 3 * channels // 2, 3 * channels}:
            return f"{rows} rows, more than {max_rows}" if rows > max_rows else None
    return f"widths of {', '.join(map(str, sorted(set(widths))))}"


@dataclass(frozen=True)
class _Forced:
    """What ``use_plans`` says; hashable."""

    plans: tuple[tuple[str, str], ...] = ()
    max_table_rows: int | None = None


_FORCED: ContextVar[_Forced] = ContextVar("plans", default=_Forced())  # noqa: B039


@contextlib.contextmanager
def use_plans(*, max_table_rows: int | None = None, **plans: str) -> Iterator[None]:
    """A context in which "auto" is the plan given for a part, on any card and for any dtype.

    Args:
        max_table_rows: what to take for the table's; None to leave it.
        **plans: plans by the names in ``PARTS``.

    Raises:
        ValueError: there is no such part. An unknown plan, or one that cannot run, is refused where
            it is used.
    """
    unknown = [part for part in plans if part not in PARTS]
    if unknown:
        raise ValueError(f"use_plans: part must be one of {', '.join(PARTS)}, got {unknown[0]!r}")
    before = _FORCED.get()
    merged = tuple(sorted({**dict(before.plans), **plans}.items()))
    rows = before.max_table_rows if max_table_rows is None else max_table_rows
    token = _FORCED.set(_Forced(merged, rows))
    try:
        yield
    finally:
        _FORCED.reset(token)


def forced_plans() -> Hashable:
    """What tells contexts of ``use_plans`` apart."""
    return _FORCED.get()


def max_table_rows(device: torch.device) -> int:
    """Rows up to which the modulations of all evaluations of an AR step are one product."""
    forced = _FORCED.get().max_table_rows
    return measured(device).max_table_rows if forced is None else forced


def measured(device: torch.device) -> Measured:
    """What was measured on a card like `device`, or the defaults.

    Raises:
        ValueError: ``measured.json`` is not as it must be.
    """
    if device.type != "cuda":
        return Measured()
    return tables(FILE).get(torch.cuda.get_device_name(device), Measured())


@functools.cache
def tables(path: Path) -> Mapping[str, Measured]:
    """The tables of a file, by the names of the cards.

    Raises:
        ValueError: it is not as it must be.
        FileNotFoundError: there is none.
    """
    return {card: _measured(f"{path.name}: {card}", of) for card, of in read_json(path).items()}


def _measured(where: str, content: Any) -> Measured:
    fields = _object(where, content, (*PARTS, "max_table_rows"))
    most = fields.pop("max_table_rows", MAX_TABLE_ROWS)
    if type(most) is not int or most < 0:
        raise _wrong(f"{where}: max_table_rows", "a number of rows", most)
    heads = _object(f"{where}: head", fields.pop("head", {}), ARCHITECTURES)
    lists = {**heads, **fields}
    return Measured({name: _steps(f"{where}: {name}", lists[name]) for name in lists}, most)


def _object(where: str, value: Any, names: tuple[str, ...]) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _wrong(where, "an object", value)
    unknown = [name for name in value if name not in names]
    if unknown:
        raise _wrong(where, f"an object with some of {', '.join(names)}", unknown[0])
    return dict(value)


def _steps(where: str, value: Any) -> Steps:
    expected = f"a list of [min_rows, plan] with rows that ascend and plans of {', '.join(PLANS)}"
    if not isinstance(value, list):
        raise _wrong(where, expected, value)
    steps: list[tuple[int, str]] = []
    for pair in value:
        if not isinstance(pair, list) or len(pair) != 2:
            raise _wrong(where, expected, pair)
        rows, plan = pair
        if type(rows) is not int or rows < 0 or plan not in PLANS:
            raise _wrong(where, expected, pair)
        if steps and rows <= steps[-1][0]:
            raise _wrong(where, expected, pair)
        steps.append((rows, plan))
    return tuple(steps)


def _wrong(where: str, expected: str, got: Any) -> ValueError:
    return ValueError(f"{where} must be {expected}, got {brief(got)}")
