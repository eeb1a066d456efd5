"""Memory of the panels that products on a CPU read, beside the weights that they are made of."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from bitdance.models.diffusion_head import HeadNetwork
from bitdance.models.transformer import Transformer
from bitdance.sampling.head_products import branches
from bitdance.sampling.panel_products import MAX_BYTES, MIN_ROWS
from bitdance_kernels import CpuGraph

__all__ = ["panel_bytes"]


def panel_bytes(
    network: HeadNetwork, layers: Transformer | None, rows: int, dtype: torch.dtype
) -> int:
    """Bytes of the panels of a head, and of the transformer of a class-conditional model.

    There are none where the C++ kernels are not built. Projections that are joined are not among
    them: those are copies on every device.

    Args:
        network: the head's network, perhaps on the meta device.
        layers: the transformer, or None for a language model, which has no panels.
        rows: tokens of an AR step.
        dtype: dtype of the products.
    """
    if dtype != torch.float32 or CpuGraph.unavailable() is not None:
        return 0
    products = [layer for branch in branches(network) for layer in (branch.fc1, branch.fc2)]
    alone = [*products, network.cond_embed, network.input_proj, network.final_layer.linear]
    size = sum(_bytes([layer]) for layer in alone if _fits(layer))
    if layers is None or rows < MIN_ROWS:
        return size
    linears = [layer for layer in layers.modules() if isinstance(layer, nn.Linear)]
    of_trunk = _bytes(linears)
    return size + of_trunk * (of_trunk <= MAX_BYTES and all(map(_fits, linears)))


def _fits(layer: nn.Module) -> bool:
    return isinstance(layer, nn.Linear) and layer.out_features % 16 == 0


def _bytes(layers: Sequence[nn.Module]) -> int:
    return sum(layer.weight.nbytes for layer in layers if isinstance(layer, nn.Linear))
