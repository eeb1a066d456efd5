"""Numbers and lists of a caller's arguments, and values in error messages."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch

__all__ = [
    "as_list",
    "as_number",
    "brief",
    "exact_int",
    "finite_number",
    "is_single",
    "parse_dtype",
]


def exact_int(
    function: str, name: str, value: object, minimum: int | None = None, maximum: int | None = None
) -> int:
    """The integer that `value` exactly equals.

    Accepted are integers of Python, NumPy and PyTorch, including arrays and tensors without
    dimensions, and floating-point numbers without a fraction; booleans and strings are not.

    Args:
        function: name of the caller, for the error.
        name: name of the argument, for the error.
        value: the argument.
        minimum: smallest value allowed.
        maximum: largest value allowed.

    Raises:
        TypeError: the value is not a number.
        ValueError: it has a fraction, is infinite or NaN, or is out of range.
    """
    number = as_number(value)
    if (
        isinstance(number, int)
        and (minimum is None or number >= minimum)
        and (maximum is None or number <= maximum)
    ):
        return number
    kind = TypeError if number is None else ValueError
    expected = f"an integer{_format_range(minimum, maximum)}"
    raise kind(f"{function}: {name} must be {expected}, got {brief(value)}")


def finite_number(function: str, name: str, value: object) -> float:
    """`value` as a float, where it is a finite real number of Python, NumPy or one element.

    Raises:
        TypeError: it is not a number.
        ValueError: it is NaN or infinite.
    """
    if isinstance(value, torch.Tensor | np.ndarray | np.generic) and value.ndim == 0:
        value = value.item()
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise TypeError(f"{function}: {name} must be a number, got {brief(value)}")
    try:
        number = float(value)
    except OverflowError:  # an integer that no float can hold
        number = math.inf
    if not math.isfinite(number):
        raise ValueError(f"{function}: {name} must be finite, got {brief(value)}")
    return number


def is_single(value: object) -> bool:
    """Whether an argument is a single number or string rather than a sequence."""
    single = isinstance(value, str | bytes) or not isinstance(value, Iterable)
    return single or getattr(value, "ndim", 1) == 0  # an array of one number


def as_list(function: str, name: str, values: object) -> list[Any]:
    """The items of an array, tensor or other sequence.

    Raises:
        TypeError: it is not a sequence, or an array of more than one dimension.
    """
    if isinstance(values, torch.Tensor | np.ndarray) and values.ndim == 1:
        return values.tolist()
    if isinstance(values, Iterable) and not isinstance(
        values, str | bytes | torch.Tensor | np.ndarray
    ):
        return list(values)
    raise TypeError(f"{function}: {name} must be a sequence, got {brief(values)}")


def brief(value: object) -> str:
    """``repr`` of a value for an error message: one line of at most 100 characters."""
    try:
        text = " ".join(repr(value).split())
    except Exception:  # an integer of thousands of digits, or a broken __repr__
        text = f"a value of type {type(value).__name__}"
    return text if len(text) <= 100 else f"{text[:97]}..."


def as_number(value: Any) -> int | float | None:
    """The number as an int if it is integral, otherwise as a float; None if it is not a number."""
    if hasattr(value, "ndim") and hasattr(value, "dtype"):
        real = not value.dtype.is_complex if torch.is_tensor(value) else value.dtype.kind in "iuf"
        if value.ndim != 0 or not real:
            return None
        try:
            value = value.item()
        except (RuntimeError, NotImplementedError):  # a fake or meta tensor has no value
            return None
    if isinstance(value, bool):
        return None
    try:
        return operator.index(value)
    except TypeError:
        pass
    if not isinstance(value, float) and not hasattr(value, "is_integer"):
        return None
    return int(value) if value.is_integer() else float(value)


def _format_range(minimum: int | None, maximum: int | None) -> str:
    if maximum is None:
        return "" if minimum is None else f" of at least {_format_power(minimum)}"
    if minimum is None:
        return f" of at most {_format_power(maximum)}"
    return f" from {_format_power(minimum)} to {_format_power(maximum)}"


def _format_power(value: int) -> str:
    """The number, as 2^n - 1 where it is one with n above 16."""
    bits = (value + 1).bit_length() - 1
    return f"2^{bits} - 1" if bits > 16 and value + 1 == 1 << bits else str(value)


_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def parse_dtype(
    function: str, dtype: torch.dtype | str | None, torch_dtype: torch.dtype | str | None = None
) -> torch.dtype:
    """Dtype of parameters, given as a ``torch.dtype`` or its name; float32 by default.

    Args:
        function: the function asked, for errors.
        dtype: dtype or name.
        torch_dtype: the older name of the argument in diffusers.

    Raises:
        TypeError: it is no dtype.
        ValueError: it is no floating point dtype, or the two differ.
    """
    parsed = []
    for name, value in (("dtype", dtype), ("torch_dtype", torch_dtype)):
        if value is None:
            continue
        found = (
            getattr(torch, value.removeprefix("torch."), None) if isinstance(value, str) else value
        )
        kinds = "float32, bfloat16, float16 or float64"
        if isinstance(value, str) and not isinstance(found, torch.dtype):
            raise ValueError(f"{function}: {name} must be {kinds}, got {brief(value)}")
        if not isinstance(found, torch.dtype):
            raise TypeError(f"{function}: {name} must be {kinds}, got {brief(value)}")
        if found not in _DTYPES:
            raise ValueError(f"{function}: {name} must be {kinds}, got {found}")
        parsed.append(found)
    if len(set(parsed)) > 1:
        raise ValueError(
            f"{function}: dtype and torch_dtype must be the same, got {parsed[0]} and {parsed[1]}"
        )
    return parsed[0] if parsed else torch.float32
