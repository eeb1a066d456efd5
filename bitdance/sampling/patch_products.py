"""All evaluations of a head for a patch, and the sampler's steps between them, as one op."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from bitdance.models.diffusion_head import EPS, HeadNetwork
from bitdance.sampling.head_products import Branch, branches
from bitdance.sampling.packed_products import PackedBranch, PackedProducts
from bitdance.sampling.weights import PackedLinear
from bitdance_kernels import check_denoise_status, denoise_patch

__all__ = ["PatchProducts"]


class PatchProducts(PackedProducts):
    """``PackedProducts`` that can also run all evaluations at once.

    The weights of all layers are one stack; the layers' own are views of it.

    Args:
        network: network of a head of SwiGLU branches, with attention before each or without, whose
            ``widths`` are multiples of 16.
        shape: (R, P), or (R,) for states without the second dimension.
        dtype: dtype of the products and of the stream.
    """

    def __init__(self, network: HeadNetwork, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        super().__init__(network, shape, dtype)
        pairs = list(zip(branches(network), self._branches, strict=True))
        kinds = {kind: [p for p in pairs if p[0].activation == kind] for kind in _KINDS}
        self._layers = {kind: _Layers(of, dtype) for kind, of in kinds.items() if of}
        self._status = torch.zeros(1, dtype=torch.int32, device=self._input.weight.device)

    def load(self) -> None:
        """See ``HeadProducts``."""
        super().load()
        for layers in self._layers.values():
            layers.load()
        self._status.zero_()

    def advance_all(
        self,
        x: torch.Tensor,
        modulation: torch.Tensor,
        table: torch.Tensor,
        cfg: torch.Tensor | None,
        noise: Sequence[torch.Tensor] | None,
        keys: torch.Tensor | None,
    ) -> torch.Tensor:
        """The state after all evaluations; see ``Head.advance_all``.

        Args:
            x: as there.
            modulation: modulations of all evaluations, [S + 1, M, ...].
            table: as there.
            cfg: as there.
            noise: as there.
            keys: as there.
        """
        # The last step is deterministic.
        drawn = None if noise is None else torch.stack([*noise, torch.zeros_like(x)])
        attention = self._layers.get("attention")
        assert self._input.bias is not None
        assert self._final.bias is not None
        state, status = denoise_patch(
            x, modulation, table, self._input.weight, self._input.bias,
            *self._layers["swiglu"].arguments, self._final.weight, self._final.bias,
            attention=None if attention is None else attention.arguments,
            num_heads=0 if attention is None else self._num_heads, cfg=cfg, noise=drawn,
            keys=None if noise is not None else keys, squash=self._squash, eps=EPS,
        )  # fmt: skip
        torch.maximum(self._status, status, out=self._status)
        return state

    def check(self) -> None:
        """Raise RuntimeError if a call since ``load`` ended before its time; waits for them."""
        check_denoise_status(self._status)


_KINDS = ("attention", "swiglu")


class _Layers:
    """Branches of one kind, as ``denoise_patch`` takes them.

    Args:
        pairs: the branches and their packed layers.
        dtype: dtype of the products.

    Attributes:
        arguments: weight and bias of the norms, of the first and of the second products, stacked.
    """

    def __init__(self, pairs: Sequence[tuple[Branch, PackedBranch]], dtype: torch.dtype) -> None:
        of_layers, parts = [branch for branch, _ in pairs], [part for _, part in pairs]
        self._parameters = [
            [branch.norm.weight.detach() for branch in of_layers],
            [branch.norm.bias.detach() for branch in of_layers],
            [branch.fc1.bias.detach() for branch in of_layers],
            [branch.fc2.bias.detach() for branch in of_layers],
        ]
        self._vectors = [
            vectors[0].new_empty(len(vectors), len(vectors[0]), dtype=dtype)
            for vectors in self._parameters
        ]
        norm_weight, norm_bias, bias1, bias2 = self._vectors
        weight1, weight2 = _stack([b.fc1 for b in parts]), _stack([b.fc2 for b in parts])
        self.arguments = (norm_weight, norm_bias, weight1, bias1, weight2, bias2)

    def load(self) -> None:
        """Copy what is no packed weight."""
        for stack, of_layers in zip(self._vectors, self._parameters, strict=True):
            for row, vector in zip(stack, of_layers, strict=True):
                row.copy_(vector)


def _stack(layers: Sequence[PackedLinear]) -> torch.Tensor:
    """Memory of the packed weights of all layers, which becomes theirs."""
    stack = torch.stack([layer.weight for layer in layers])
    for weight, layer in zip(stack, layers, strict=True):
        layer.weight = weight
    return stack
