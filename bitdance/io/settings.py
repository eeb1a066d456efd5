"""Configurations as frozen dataclasses that check their fields, from Python, JSON or TOML.

pydantic checks types, ranges, unknown and missing keys. This module has the field types that all
configurations share, and turns pydantic's errors into one line.
"""

from __future__ import annotations

import dataclasses
import functools
import operator
import os
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, TypeVar

import pydantic.dataclasses
from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    Field,
    Strict,
    TypeAdapter,
    ValidationError,
)
from pydantic_core import ErrorDetails
from typing_extensions import dataclass_transform

from bitdance.io.validation import as_number, brief

__all__ = [
    "Bool",
    "Count",
    "Depth",
    "Fraction",
    "Integer",
    "ListOrTuple",
    "NonNegative",
    "Number",
    "PathText",
    "Positive",
    "Size",
    "Text",
    "invalid",
    "invalid_value",
    "parse",
    "settings",
]

T = TypeVar("T")


def _integer(value: object) -> object:
    number = as_number(value)
    return number if isinstance(number, int) else value


def _number(value: object) -> object:
    number = as_number(value)
    return value if number is None else number


def _storable(text: str) -> str:
    """Surrogates stand for bytes that are not UTF-8, which no configuration can store."""
    if "\0" in text or any("\ud800" <= letter <= "\udfff" for letter in text):
        raise ValueError(f"must be UTF-8 text without zero bytes, got {brief(text)}")
    return text


def _listed(value: object) -> object:
    """Sets have no order, and a string is not a list of its letters."""
    if isinstance(value, (list, tuple)):
        return value
    raise ValueError(f"must be a list, got {brief(value)}")


Integer = Annotated[int, BeforeValidator(_integer), Strict()]
"""Any number that is exactly an integer."""
Count = Annotated[Integer, Field(ge=1, le=2**31 - 1)]
Size = Annotated[Integer, Field(ge=1, le=2**20)]
"""A width or a number of pixels; larger ones are mistakes that would exhaust the memory."""
Depth = Annotated[Integer, Field(ge=1, le=2**12)]
"""A number of layers."""
Number = Annotated[float, BeforeValidator(_number), Strict(), Field(allow_inf_nan=False)]
"""A finite number."""
Positive = Annotated[Number, Field(gt=0)]
NonNegative = Annotated[Number, Field(ge=0)]
Fraction = Annotated[Number, Field(ge=0, le=1)]
Bool = Annotated[bool, Strict()]
Text = Annotated[str, Strict(), AfterValidator(_storable)]
ListOrTuple = BeforeValidator(_listed)
"""For tuples: accepts lists and tuples only."""
PathText = Annotated[
    Text, BeforeValidator(lambda path: os.fspath(path) if isinstance(path, os.PathLike) else path)
]
"""A path, stored as text."""


@dataclass_transform(frozen_default=True, field_specifiers=(dataclasses.field, Field))
def settings(cls: type[T]) -> type[T]:
    """Class decorator: a frozen dataclass that checks its fields and raises errors of one line.

    ``__post_init__`` checks the fields against each other; see `invalid`.

    Raises (when an object is created):
        ValueError: unknown or missing fields, values of the wrong type or out of range.
    """
    make: Callable[[type[T]], type[T]] = pydantic.dataclasses.dataclass(  # type: ignore[assignment]
        frozen=True, config=ConfigDict(extra="forbid")
    )
    result = make(cls)
    check = result.__init__
    names = [field.name for field in dataclasses.fields(result)]  # type: ignore[arg-type]

    @functools.wraps(check)
    def init(self: Any, *args: Any, **values: Any) -> None:
        try:
            check(self, *args, **values)
        except ValidationError as error:
            raise ValueError(f"{cls.__name__}: {_problems(error, names)}") from None

    result.__init__ = init  # type: ignore[method-assign]
    return result


def parse(kind: type[T], values: Any, source: str = "") -> T:
    """An object of a `settings` class from nested mappings, such as the content of a file.

    Args:
        kind: the class.
        values: the nested mappings.
        source: their name in errors; by default the name of the class.

    Raises:
        ValueError: one line with each wrong key, what was expected and what was given.
    """
    try:
        return TypeAdapter(kind).validate_python(values)
    except ValidationError as error:
        raise ValueError(f"{source or kind.__name__}: {_problems(error)}") from None


def invalid(config: object, name: str, expected: str) -> ValueError:
    """The error for a field, or a section.field, that does not fit the others.

    ``__post_init__`` raises it.
    """
    return invalid_value(name, expected, operator.attrgetter(name)(config))


def invalid_value(name: str, expected: str, got: object) -> ValueError:
    """The error for a value by its name, for validators to raise."""
    return _FieldError(f"{name} must be {expected}, got {brief(got)}")


class _FieldError(ValueError):
    """An error whose text begins with the name of the field."""


_MAX_PROBLEMS = 3  # problems in one error
_EXPECTED: Mapping[str, Callable[[Mapping[str, Any]], str]] = {
    "greater_than_equal": lambda ctx: f"at least {ctx['ge']:g}",
    "greater_than": lambda ctx: f"greater than {ctx['gt']:g}",
    "less_than_equal": lambda ctx: f"at most {ctx['le']}",
    "less_than": lambda ctx: f"less than {ctx['lt']:g}",
    "int_type": lambda ctx: "an integer",
    "int_from_float": lambda ctx: "an integer",
    "float_type": lambda ctx: "a number",
    "finite_number": lambda ctx: "a finite number",
    "bool_type": lambda ctx: "true or false",
    "string_type": lambda ctx: "text",
    "string_too_short": lambda ctx: "not empty",
    "literal_error": lambda ctx: ctx["expected"],
    "tuple_type": lambda ctx: "a list",
    "too_short": lambda ctx: "not empty",
    "too_long": lambda ctx: f"a list of at most {ctx['max_length']}",
    "dataclass_type": lambda ctx: "a section of keys and values",
    "mapping_type": lambda ctx: "a section of keys and values",
    "dict_type": lambda ctx: "a section of keys and values",
}  # fmt: skip


def _problems(error: ValidationError, names: Sequence[str] = ()) -> str:
    """All problems on one line; `names` are those of positional arguments."""
    details = error.errors(include_url=False)[:_MAX_PROBLEMS]
    problems = [_problem(detail, names) for detail in details]
    count = error.error_count()
    more = [f"and {count - _MAX_PROBLEMS} more"] if count > _MAX_PROBLEMS else []
    return "; ".join([*problems, *more])


def _problem(details: ErrorDetails, names: Sequence[str]) -> str:
    kind, context = details["type"], details.get("ctx", {})
    name = _name(details["loc"], names)
    if kind in ("missing", "missing_argument"):
        return f"{name} is missing"
    if kind in ("unexpected_keyword_argument", "extra_forbidden"):
        return f"unknown key {name}"
    own = context.get("error")
    if isinstance(own, _FieldError):
        return f"{name}.{own}" if name else str(own)
    if own is not None:
        return f"{name} {own}".strip()
    describe, text, got = _EXPECTED.get(kind), details["msg"], brief(details["input"])
    if describe is None and not text.startswith("Input should be "):
        return f"{name}: {text}, got {got}"
    expected = describe(context) if describe else text.removeprefix("Input should be ")
    return f"{name or 'it'} must be {expected}, got {got}"


def _name(location: tuple[int | str, ...], names: Sequence[str]) -> str:
    """The key as in TOML, section.key, with the number of an item in brackets."""
    if location and isinstance(location[0], int) and location[0] < len(names):
        location = (names[location[0]], *location[1:])
    text = ""
    for part in location:
        if isinstance(part, int):
            text += f"[{part}]"
        elif part != "[key]":  # pydantic's mark for a key rather than its value
            text += "." + (part if re.fullmatch(r"[\w-]{1,60}", part) else brief(part))
    return text.removeprefix(".")
