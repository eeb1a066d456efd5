"""Weights that are stored in float8 with scales, as ComfyUI's packages have them.

A weight times its scale is the layer's. The scale is a number, or one for each row; it is the
tensor of the weight's name with another ending.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from bitdance.io.files import CheckpointError

__all__ = ["rescale", "split_scales"]

_ENDINGS = (".weight_scale", ".scale_weight", ".weight.scale", ".weight_scales")
# What such files also have: scales of a layer's inputs, and marks that name the format.
_IGNORED = (".input_scale", ".scale_input", ".comfy_quant")
_MARK = "scaled_fp8"

Tensors = dict[str, torch.Tensor]


def split_scales(tensors: Mapping[str, torch.Tensor], source: str) -> tuple[Tensors, Tensors]:
    """The weights of a file, and the scales of some of them.

    Args:
        tensors: tensors by name, perhaps on the meta device.
        source: their origin, for errors.

    Returns:
        The weights without scales and marks, and scales by the names of their weights.

    Raises:
        CheckpointError: a scale has no weight, or is not a number or one for each row.
    """
    weights: Tensors = {}
    scales: Tensors = {}
    for name, tensor in tensors.items():
        if name.endswith(_IGNORED) or name.rpartition(".")[2] == _MARK:
            continue
        ending = next((end for end in _ENDINGS if name.endswith(end)), None)
        if ending is None:
            weights[name] = tensor
            continue
        weight = f"{name.removesuffix(ending)}.weight"
        if weight not in tensors:
            raise CheckpointError(f"{source} has {name}, but not {weight}")
        if weight in scales:
            raise CheckpointError(f"{source} has two scales of {weight}")
        scales[weight] = _checked(name, tensor, tensors[weight], source)
    return weights, scales


def _checked(name: str, scale: torch.Tensor, weight: torch.Tensor, source: str) -> torch.Tensor:
    rows = weight.shape[0] if weight.dim() else 1
    shape = list(scale.shape)
    if not scale.is_floating_point() or (scale.numel() != 1 and shape not in ([rows], [rows, 1])):
        raise CheckpointError(
            f"{source}: {name} must be a number, or {rows} of them, got {scale.dtype} {shape}"
        )
    if not scale.is_meta and not bool(scale.float().isfinite().all()):
        raise CheckpointError(f"{source}: {name} must be finite")
    return scale


def rescale(weight: torch.Tensor, scale: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor:
    """A new tensor of `dtype`: the weight, times its scale if it has one.

    Args:
        weight: [rows, ...].
        scale: one element, or one for each row, as ``split_scales`` returns it.
        dtype: dtype of the result; the product is rounded once.
    """
    if scale is None:
        return weight.to(dtype, copy=True)
    per_row = scale.reshape(-1, *[1] * (weight.dim() - 1)).to(torch.float32)
    return weight.to(torch.float32).mul_(per_row).to(dtype)
