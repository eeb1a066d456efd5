"""Integers from whatever a caller has that is exactly one, and values as errors show them."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch

__all__ = ["as_number", "exact_int", "finite_number", "is_one", "listed", "shown"]


def exact_int(
    function: str, name: str, value: object, least: int | None = None, most: int | None = None
) -> int:
    """The integer that `value` exactly is.

    Integers of Python, NumPy and PyTorch (also arrays and tensors without dimensions) and floating
    point numbers without a fraction are taken; booleans, strings and everything else are not.

    Args:
        function: who asks, for the error.
        name: the argument, for the error.
        value: what the caller gave.
        least: smallest value allowed.
        most: largest value allowed.

    Raises:
        TypeError: the value is no number.
        ValueError: it has a fraction, is infinite or NaN, or is out of range.
    """
    number = as_number(value)
    fits = False
    if isinstance(number, int):
        fits = (least is None or number >= least) and (most is None or number <= most)
    if not fits:
        kind = TypeError if number is None else ValueError
        wanted = f"an integer{_range(least, most)}"
        raise kind(f"{function}: {name} must be {wanted}, got {shown(value)}")
    assert isinstance(number, int)
    return number


def finite_number(function: str, name: str, value: object) -> float:
    """`value` as a float, where it is a finite real number: of Python, NumPy or one element.

    Raises:
        TypeError: it is no number.
        ValueError: it is NaN or infinite.
    """
    if isinstance(value, torch.Tensor | np.ndarray | np.generic) and value.ndim == 0:
        value = value.item()
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise TypeError(f"{function}: {name} must be a number, got {shown(value)}")
    try:
        number = float(value)
    except OverflowError:  # an integer beyond every float
        number = math.inf
    if not math.isfinite(number):
        raise ValueError(f"{function}: {name} must be finite, got {shown(value)}")
    return number


def is_one(value: object) -> bool:
    """Whether an argument is a single number or text, and no sequence of them."""
    single = isinstance(value, str | bytes) or not isinstance(value, Iterable)
    return single or getattr(value, "ndim", 1) == 0  # an array of one number


def listed(function: str, name: str, values: object) -> list[Any]:
    """`values` as a list: what one array, tensor or other sequence holds.

    Raises:
        TypeError: it is no sequence, or an array of more than one dimension.
    """
    if isinstance(values, torch.Tensor | np.ndarray) and values.ndim == 1:
        return values.tolist()
    if isinstance(values, Iterable) and not isinstance(
        values, str | bytes | torch.Tensor | np.ndarray
    ):
        return list(values)
    raise TypeError(f"{function}: {name} must be a sequence, got {shown(values)}")


def shown(value: object) -> str:
    """``repr`` of a value for an error message: one line of at most 100 characters."""
    try:
        text = " ".join(repr(value).split())
    except Exception:  # an integer of thousands of digits, or an object's own fault
        text = f"a value of type {type(value).__name__}"
    return text if len(text) <= 100 else f"{text[:97]}..."


def as_number(value: Any) -> int | float | None:
    """The number as an int where it is one, as a float where it has a fraction; None for others."""
    if hasattr(value, "ndim") and hasattr(value, "dtype"):
        real = not value.dtype.is_complex if torch.is_tensor(value) else value.dtype.kind in "iuf"
        if value.ndim != 0 or not real:
            return None
        try:
            value = value.item()
        except (RuntimeError, NotImplementedError):  # a tensor without values: fake, or meta
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


def _range(least: int | None, most: int | None) -> str:
    if most is None:
        return "" if least is None else f" of at least {_power(least)}"
    return (
        f" of at most {_power(most)}"
        if least is None
        else f" from {_power(least)} to {_power(most)}"
    )


def _power(value: int) -> str:
    """2^64 - 1 and its like as such."""
    bits = (value + 1).bit_length() - 1
    return f"2^{bits} - 1" if bits > 16 and value + 1 == 1 << bits else str(value)
