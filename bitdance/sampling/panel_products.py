"""The transformer of a model on the CPU, with its weights in panels."""

from __future__ import annotations

import copy
from typing import TypeVar, cast

import torch
from torch import nn

from bitdance.models.kv_cache import KVCache
from bitdance.models.transformer import Transformer, TransformerBlock
from bitdance.sampling.changes import Changes
from bitdance.sampling.weights import PackedLinear, takes_panels
from bitdance_kernels import Ranges, linear, linear_gated_residual, linear_swiglu

__all__ = ["PanelTransformer", "panel_transformer"]

MAX_BYTES = 2**30
"""Size of weights up to which a second copy of them, in panels, is kept."""

MIN_ROWS = 4
"""Tokens of a step from which it is: with fewer, reading weights takes as long in either form."""

Network = TypeVar("Network", bound=nn.Module)


class PanelTransformer:
    """The blocks with panels in place of their matrices; all else is theirs.

    Args:
        layers: the transformer.
    """

    def __init__(self, layers: Transformer) -> None:
        self._changes = Changes(layers)
        # Made in inference mode, memory could not be written outside of it.
        with torch.inference_mode(False), torch.no_grad():
            self._layers = _with_panels(layers)
        self._packed = [m.packed for m in self._layers.modules() if isinstance(m, _PanelLinear)]

    def load(self) -> None:
        """Pack the parameters as they are now, if they have changed."""
        if self._changes.found():
            for packed in self._packed:
                packed.load()
            self._changes.remember()

    def decode(
        self, x: torch.Tensor, freqs: torch.Tensor, cache: KVCache, ranges: Ranges | None = None
    ) -> torch.Tensor:
        """See ``Transformer.decode``."""
        return self._layers.decode(x, freqs, cache, ranges)


class _PanelLinear(nn.Module):
    """A layer whose weight is in panels."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.packed = PackedLinear([layer], layer.weight.dtype, "panels")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., in_features] to [..., out_features]."""
        return linear(x, self.packed.weight, self.packed.bias)

    def swiglu(self, x: torch.Tensor) -> torch.Tensor:
        """The gated product [..., out_features / 2]."""
        return linear_swiglu(x, self.packed.weight, self.packed.bias)

    def added(self, x: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        """The product, added to `residual`."""
        return linear_gated_residual(x, self.packed.weight, self.packed.bias, residual)


class _PanelBlock(TransformerBlock):
    """A block whose gate and sums are parts of its products."""

    def decode(
        self,
        x: torch.Tensor,
        freqs: torch.Tensor,
        cache: tuple[torch.Tensor, torch.Tensor],
        lengths: torch.Tensor,
        mask: Ranges | torch.Tensor,
    ) -> torch.Tensor:
        """See ``TransformerBlock.decode``."""
        w1, w2 = self.feed_forward.w1, self.feed_forward.w2
        wo = self.attention.wo
        assert isinstance(w1, _PanelLinear)
        assert isinstance(w2, _PanelLinear)
        assert isinstance(wo, _PanelLinear)
        attended = self.attention.attend(self.attention_norm(x), freqs, cache, lengths, mask)
        x = wo.added(attended, x)
        return w2.added(w1.swiglu(self.ffn_norm(x)), x)


def _with_panels(network: Network) -> Network:
    """A copy of a network that shares all but its linear layers; rounded ones it shares."""
    shared: nn.Module = copy.copy(network)
    if isinstance(network, TransformerBlock):
        attention, feed_forward = network.attention, network.feed_forward
        if all(isinstance(x, nn.Linear) for x in (attention.wo, feed_forward.w1, feed_forward.w2)):
            shared.__class__ = _PanelBlock
    shared._modules = {
        name: _PanelLinear(child) if isinstance(child, nn.Linear) else child and _with_panels(child)
        for name, child in network._modules.items()
    }
    return cast(Network, shared)


def panel_transformer(
    layers: Transformer, rows: int, dtype: torch.dtype
) -> PanelTransformer | None:
    """The transformer with panels where the op ``linear`` takes them and they pay, else None.

    Args:
        layers: the transformer.
        rows: tokens of a step.
        dtype: dtype of the products; under autocast parameters are in another one, and stay so.
    """
    linears = [layer for layer in layers.modules() if isinstance(layer, nn.Linear)]
    parameters = list(layers.parameters())
    size = sum(layer.weight.nbytes for layer in linears)
    if (
        not linears
        or rows < MIN_ROWS
        or size > MAX_BYTES
        or any(parameter.dtype != dtype for parameter in parameters)
    ):
        return None
    return PanelTransformer(layers) if all(takes_panels([x], dtype) for x in linears) else None
