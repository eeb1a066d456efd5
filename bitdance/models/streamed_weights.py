"""Weights that go from files into a model one at a time, so that there is no second copy of it.

Files are memory-mapped. A weight is cast, rounded where that is asked for, and moved to its device
before the next one is read, so that beside the model only one of them is in memory.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from bitdance.io import weights
from bitdance.io.scaled_weights import rescale
from bitdance.models.quantization import linear_layers, quantized_from_file

__all__ = ["stream_weights"]


@torch.no_grad()
def stream_weights(
    module: nn.Module,
    tensors: weights.Tensors,
    source: str,
    *,
    scales: Mapping[str, torch.Tensor] | None = None,
    device: torch.device | str = "cpu",
    quantization: str | None = None,
    blocks: Sequence[nn.Module] = (),
) -> None:
    """Load `tensors` into a module on the meta device, cast to the dtypes that it has there.

    All is checked before anything is loaded.

    Args:
        module: the model, on the meta device.
        tensors: its complete state, which is emptied.
        source: their origin, for errors.
        scales: factors of some of the tensors, by name, of ``split_scales``.
        device: device of the loaded weights.
        quantization: what the linear layers of `blocks` are rounded to, one of ``QUANTIZATIONS``
            that ``check_blocks`` has accepted; None for none.
        blocks: parts of `module`.

    Raises:
        CheckpointError: the tensors do not fit; the module is unchanged.
        ValueError: a weight that int8 is to hold is not finite in the dtype of the module.
    """
    weights.check_weights(module, tensors, source)
    scales = scales or {}
    rounded = {id(layer) for _, _, layer in linear_layers(blocks)} if quantization else set()
    for name in list(module.state_dict()):
        place, _, leaf = name.rpartition(".")
        owner, stored, scale = module.get_submodule(place), tensors.pop(name), scales.get(name)
        if leaf == "weight" and id(owner) in rounded:
            assert isinstance(owner, nn.Linear)
            assert quantization is not None
            layer = quantized_from_file(owner, stored, scale, quantization)
            for key, buffer in layer.named_buffers():
                setattr(layer, key, buffer.to(device))
            parent, _, attribute = place.rpartition(".")
            setattr(module.get_submodule(parent), attribute, layer)
            continue
        # Copied, since tensors of a memory-mapped file may be unaligned: matrix products would be
        # slower, and rounded differently from those of the same weights in another file.
        held = getattr(owner, leaf)
        value = rescale(stored, scale, held.dtype).to(device)
        if isinstance(held, nn.Parameter):
            value = nn.Parameter(value, requires_grad=held.requires_grad)
        setattr(owner, leaf, value)
