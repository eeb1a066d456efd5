"""Gradients, tangents and transforms of torch.func, as far as ops support them.

Under forward-mode AD and transforms a differentiable op runs its reference, whose operators PyTorch
transforms further. Other ops support vmap only and refuse to be differentiated.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.autograd import forward_ad

_functorch = torch._C._functorch


def key_set(*names: str) -> torch._C.DispatchKeySet:
    """The set of dispatch keys with these names."""
    keys = (torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, name)) for name in names)
    return functools.reduce(operator.or_, keys)


def active() -> bool:
    """Whether a transform of torch.func is active."""
    return torch._C._are_functorch_transforms_active()


def in_forward_mode() -> bool:
    """Whether tensors may carry a tangent."""
    return forward_ad._current_level >= 0


def has_tangent(tensor: torch.Tensor) -> bool:
    """Whether `tensor` carries a tangent; no transform of torch.func may have wrapped it."""
    if not torch._C._is_fwd_grad_enabled() or not tensor.is_floating_point():
        return False
    return forward_ad.unpack_dual(tensor).tangent is not None


def requires_grad(tensor: torch.Tensor) -> bool:
    """Whether autograd or a transform needs a gradient with respect to `tensor`."""
    return torch.is_grad_enabled() and any(level.requires_grad for level in _levels(tensor))


def _levels(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    yield tensor
    while _functorch.is_functorch_wrapped_tensor(tensor):
        tensor = _functorch.get_unwrapped(tensor)
        yield tensor


def refuse_gradient(op: str, argument: str, *, is_backward: bool = False) -> RuntimeError:
    """The error for an `argument` that requires grad; the caller raises it."""
    hint = "call it under torch.no_grad() or pass a detached tensor"
    if is_backward:
        hint = 'second derivatives need torch.func, or backend="reference" in the forward call'
    return RuntimeError(f"{op}: has no gradient, but {argument} requires grad; {hint}")


def refuse_tangent(op: str, argument: str, *, differentiable: bool = False) -> RuntimeError:
    """The error for an `argument` that carries a tangent; the caller raises it.

    The public function of a `differentiable` op takes tangents, unless the call is compiled.
    """
    hint = f"call bitdance_kernels.{op} without torch.compile" if differentiable else ""
    return RuntimeError(
        f"{op}: has no forward-mode derivative{' here' if hint else ''}, but {argument} carries a "
        f"tangent; {hint or 'pass a detached tensor'}"
    )


def check_no_derivative(op: str, names: Sequence[str], tensors: Sequence[Any]) -> None:
    """Raise RuntimeError if a transform differentiates with respect to one of `tensors`."""
    for name, tensor in zip(names, tensors, strict=True):
        if tensor is None or not tensor.is_floating_point():
            continue
        if requires_grad(tensor):
            raise refuse_gradient(op, name)
        if in_forward_mode():
            _NoTangent.apply(tensor, op, name)


class _NoTangent(torch.autograd.Function):
    """Raises an error if the tensor carries a tangent at any level; computes nothing."""

    generate_vmap_rule = True

    @staticmethod
    def forward(tensor: torch.Tensor, op: str, name: str) -> torch.Tensor:
        return tensor.new_empty(tensor.shape)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        _, *ctx.call = inputs

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> torch.Tensor:
        raise refuse_tangent(*ctx.call)
