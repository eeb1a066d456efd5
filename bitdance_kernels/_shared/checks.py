"""Argument checks shared by all ops, with one message format.

``<op>: <argument> must be <what was expected>, got <what came>``. A wrong dtype is a TypeError,
anything else a ValueError. No check reads a tensor's values: that would wait for the GPU.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch

FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def fail(op: str, argument: str, expected: str, got: object) -> ValueError:
    """The error for an invalid value; the caller raises it."""
    return ValueError(f"{op}: {argument} must be {expected}, got {got}")


def dtype(op: str, argument: str, tensor: torch.Tensor, allowed: Collection[torch.dtype]) -> None:
    """Raise TypeError unless `tensor` has one of the `allowed` dtypes."""
    if tensor.dtype not in allowed:
        names = " or ".join(str(d).removeprefix("torch.") for d in allowed)
        got = str(tensor.dtype).removeprefix("torch.")
        raise TypeError(f"{op}: {argument} must be {names}, got {got}")


def rank(
    op: str, argument: str, tensor: torch.Tensor, min_dims: int, max_dims: int | None = None
) -> None:
    """Raise ValueError unless `tensor` has `min_dims` to `max_dims` dimensions (None: no limit)."""
    dims = tensor.dim()
    if dims < min_dims or (max_dims is not None and dims > max_dims):
        if max_dims is None:
            expected = f"of at least {min_dims} dimension{'s' if min_dims > 1 else ''}"
        elif max_dims == min_dims:
            expected = f"of {min_dims} dimension{'s' if min_dims != 1 else ''}"
        else:
            expected = f"of {min_dims} to {max_dims} dimensions"
        raise fail(op, argument, expected, f"shape {list(tensor.shape)}")


def shape(
    op: str, argument: str, tensor: torch.Tensor, expected: Sequence[int], letters: str = ""
) -> None:
    """Raise ValueError unless `tensor` has exactly the `expected` shape.

    `letters` names the dimensions for the message, for example "[B, P, C]".
    """
    if tensor.shape != expected and list(tensor.shape) != list(expected):
        wanted = f"{letters} = {list(expected)}" if letters else f"{list(expected)}"
        raise fail(op, argument, f"of shape {wanted}", f"{list(tensor.shape)}")


def broadcast(
    op: str, argument: str, tensor: torch.Tensor, expected: Sequence[int], letters: str
) -> None:
    """Raise ValueError unless `tensor` has the `expected` shape, to which ``KernelOp`` expands it.

    The message says that a shape that broadcasts to it would do too.
    """
    if list(tensor.shape) != list(expected):
        wanted = f"of shape {letters} = {list(expected)}, or one that broadcasts to it"
        raise fail(op, argument, wanted, f"{list(tensor.shape)}")


def same_device(op: str, first: str, tensor: torch.Tensor, **others: torch.Tensor | None) -> None:
    """Raise ValueError unless all `others` that are not None are on the device of `tensor`."""
    for argument, other in others.items():
        if other is not None and other.device != tensor.device:
            raise fail(op, argument, f"on {tensor.device} like {first}", other.device)


def channels(op: str, argument: str, tensor: torch.Tensor) -> None:
    """Raise ValueError unless the last dimension is a positive multiple of 8."""
    rank(op, argument, tensor, 1)
    count = tensor.shape[-1]
    if count % 8 != 0 or count == 0:
        raise fail(
            op, argument, "[..., C] with C a positive multiple of 8", f"shape {list(tensor.shape)}"
        )
