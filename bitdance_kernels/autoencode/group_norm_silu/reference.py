"""group_norm_silu in plain PyTorch; the formulas are in op.py."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from bitdance_kernels._shared.dtypes import accumulate_dtype


def run(
    x: torch.Tensor,
    num_groups: int,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    scale: torch.Tensor | None,
    shift: torch.Tensor | None,
    silu: bool,
    eps: float,
) -> torch.Tensor:
    y = functional(x, num_groups, weight, bias, scale, shift, silu, eps)
    return y.contiguous(memory_format=memory_format(x))


def functional(
    x: torch.Tensor,
    num_groups: int,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    scale: torch.Tensor | None,
    shift: torch.Tensor | None,
    silu: bool,
    eps: float,
) -> torch.Tensor:
    """The formula, in any memory format, since vmap does not know formats."""
    dtype = accumulate_dtype(x)
    weight, bias, scale, shift = (_to(t, dtype) for t in (weight, bias, scale, shift))
    # For channels-last maps PyTorch computes E[x^2] - E[x]^2, which loses digits.
    z = F.group_norm(x.to(dtype).contiguous(), num_groups, weight, bias, eps)
    if scale is not None and shift is not None:
        z = torch.addcmul(_per_image(shift), z, _per_image(scale))
    y = F.silu(z) if silu else z
    return y.to(x.dtype)


def run_backward(grad: torch.Tensor, x: torch.Tensor, *rest: Any) -> tuple[torch.Tensor, ...]:
    grad_x, *others = functional_backward(grad, x, *rest)
    return grad_x.contiguous(memory_format=memory_format(x)), *others


def functional_backward(
    grad: torch.Tensor,
    x: torch.Tensor,
    num_groups: int,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    scale: torch.Tensor | None,
    shift: torch.Tensor | None,
    silu: bool,
    eps: float,
) -> tuple[torch.Tensor, ...]:
    dtype = accumulate_dtype(x)
    batch, channels = x.shape[:2]
    w = torch.ones(channels, dtype=dtype, device=x.device) if weight is None else weight.to(dtype)
    b = torch.zeros_like(w) if bias is None else bias.to(dtype)

    size = x.shape[1:].numel() // num_groups
    groups = x.to(dtype).reshape(batch, num_groups, size)
    centred = groups - groups.mean(2, keepdim=True)
    rstd = (centred.square().mean(2, keepdim=True) + eps).rsqrt()
    unit = (centred * rstd).reshape(x.shape)  # (x - mean) / sqrt(var + eps)
    n = unit * _per_channel(w) + _per_channel(b)

    grad_z = grad.to(dtype)
    if silu:
        z = n
        if scale is not None and shift is not None:
            z = n * _per_image(scale.to(dtype)) + _per_image(shift.to(dtype))
        sigmoid = torch.sigmoid(z)
        grad_z = grad_z * sigmoid * (1 + z * (1 - sigmoid))
    grad_shift = grad_z.sum((2, 3))
    grad_scale = (grad_z * n).sum((2, 3))
    grad_n = grad_z if scale is None else grad_z * _per_image(scale.to(dtype))
    grad_bias = grad_n.sum((0, 2, 3))
    grad_weight = (grad_n * unit).sum((0, 2, 3))

    # The statistics depend on x too: remove the components of the gradient along 1 and `unit`.
    grad_unit = (grad_n * _per_channel(w)).reshape(groups.shape)
    unit = unit.reshape(groups.shape)
    along_one = grad_unit.mean(2, keepdim=True)
    along_unit = (grad_unit * unit).mean(2, keepdim=True)
    grad_x = (rstd * (grad_unit - along_one - unit * along_unit)).reshape(x.shape).to(x.dtype)

    # The gradient of None is an empty tensor: the schema has no optional results.
    given = ((grad_weight, weight), (grad_bias, bias), (grad_scale, scale), (grad_shift, shift))
    others = (x.new_empty(0) if tensor is None else grad.to(tensor.dtype) for grad, tensor in given)
    return grad_x, *others


def memory_format(x: torch.Tensor) -> torch.memory_format:
    """Channels-last if the channels of a position are adjacent in `x`, else contiguous."""
    last = x.shape[1] > 1 and x.stride(1) == 1 and not x.is_contiguous()
    return torch.channels_last if last else torch.contiguous_format


def _to(tensor: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor | None:
    return None if tensor is None else tensor.to(dtype)


def _per_image(tensor: torch.Tensor) -> torch.Tensor:
    return tensor[:, :, None, None]


def _per_channel(tensor: torch.Tensor) -> torch.Tensor:
    return tensor[None, :, None, None]
