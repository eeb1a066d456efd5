"""Calls of ops as PyTorch's transforms and checks take them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.autograd.forward_ad as fwAD
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from bitdance_kernels._dispatch.op import REGISTRY
from bitdance_kernels.testing import Call, Case

__all__ = ["dual_level", "function_of", "like", "own", "recorded"]

Tensors = tuple[torch.Tensor, ...]


def own(call: Call, dtype: torch.dtype | None = None) -> Call:
    """The call on copies of its tensors, floating-point ones in `dtype` where that is given."""

    def copy(tensor: torch.Tensor) -> torch.Tensor:
        tensor = tensor.detach()
        return tensor.to(dtype or tensor.dtype, copy=True) if tensor.is_floating_point() else (
            tensor.clone()
        )  # fmt: skip

    return call.map(copy)


def recorded(
    case: Case, call: Call, *, requires_grad: bool = False
) -> list[tuple[Any, tuple[Any, ...]]]:
    """The operators ``torch.ops.bitdance`` that a call runs, with copies of their arguments.

    Args:
        case: the op's case.
        call: the arguments.
        requires_grad: let the arguments in which an operator has a gradient require one.
    """
    found: list[tuple[Any, tuple[Any, ...]]] = []

    class Record(TorchDispatchMode):
        def __torch_dispatch__(
            self,
            func: Any,
            types: Sequence[type],
            args: tuple[Any, ...] = (),
            kwargs: Mapping[str, Any] | None = None,
        ) -> Any:
            if func.namespace == "bitdance":
                copies = pytree.tree_map_only(torch.Tensor, lambda t: t.detach().clone(), args)
                found.append((func, copies))
            return func(*args, **(kwargs or {}))

    with Record(), torch.no_grad():
        case.op(*call.args, **call.kwargs)
    for func, args in found if requires_grad else ():
        op = REGISTRY[func._schema.name.split("::")[1]]
        for i in set(op._tensors) - set(op._constants) if op.differentiable else ():
            if args[i] is not None and args[i].is_floating_point():
                args[i].requires_grad_()
    return found


def function_of(case: Case, call: Call, **always: Any) -> tuple[Callable[..., Tensors], Tensors]:
    """The op as a function of the floating-point tensors among its arguments, and these.

    Results are the floating-point ones. `always` are options of every call.
    """
    leaves, spec = pytree.tree_flatten((call.args, dict(call.kwargs)))
    ours = {id(t) for t in case.leaves(call)}
    at = [i for i, leaf in enumerate(leaves) if id(leaf) in ours]

    def function(*tensors: torch.Tensor, **options: Any) -> Tensors:
        given = list(leaves)
        for i, tensor in zip(at, tensors, strict=True):
            given[i] = tensor
        args, kwargs = pytree.tree_unflatten(given, spec)
        out = case.op(*args, **kwargs, **options, **always)
        return tuple(t for t in pytree.tree_leaves(out) if t.is_floating_point())

    return function, tuple(leaves[i] for i in at)


def like(tensors: Tensors) -> Tensors:
    """Normals of the same shapes and dtypes."""
    return tuple(torch.randn_like(t) for t in tensors)


def dual_level(
    function: Callable[..., Tensors], primals: Tensors, tangents: Tensors
) -> tuple[Tensors, Tensors]:
    """Results and their tangents, 0 where there is none, as ``torch.func.jvp`` gives them."""
    with fwAD.dual_level():
        duals = [fwAD.make_dual(p, t) for p, t in zip(primals, tangents, strict=True)]
        outs = [fwAD.unpack_dual(out) for out in function(*duals)]
        return tuple(out.primal.clone() for out in outs), tuple(
            torch.zeros_like(out.primal) if out.tangent is None else out.tangent.clone()
            for out in outs
        )
