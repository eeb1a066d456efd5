"""The head's blocks and the sampler's step, by products with packed weights.

A product includes the norm before it and the gate or the sum after it. It takes the moments that
the product before it left, so that its norm needs no pass over the stream; and the step of the
sampler is one op with the projection that begins the next evaluation.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F

from bitdance.models.diffusion_head import EPS, HeadNetwork
from bitdance.sampling.head_products import Branch, Modulation, Step, branches
from bitdance.sampling.weights import PackedLinear
from bitdance_kernels import (
    adaln_linear,
    adaln_linear_swiglu,
    denoise_step_linear,
    linear,
    linear_gated_residual,
    patch_attention,
)

__all__ = ["PackedBranch", "PackedProducts", "widths"]


def widths(network: HeadNetwork) -> tuple[int, ...]:
    """Channels and features of all products with packed weights."""
    layers = [layer for branch in branches(network) for layer in (branch.fc1, branch.fc2)]
    layers += [network.input_proj, network.final_layer.linear]
    return tuple(size for layer in layers for size in layer.weight.shape)


class PackedBranch:
    """The layers of a branch, packed.

    Args:
        branch: the branch, whose layers' sizes are multiples of 16.
        dtype: dtype of the products.
    """

    def __init__(self, branch: Branch, dtype: torch.dtype) -> None:
        self.activation = branch.activation
        layout = "swiglu" if branch.activation == "swiglu" else "rows"
        self.norm = branch.affine
        self.fc1 = PackedLinear([branch.fc1], dtype, layout)
        self.fc2 = PackedLinear([branch.fc2], dtype)

    def load(self) -> None:
        """Pack the current weights of the layers."""
        self.fc1.load()
        self.fc2.load()


class _Ahead(NamedTuple):
    """What a step has computed for the evaluation that follows it."""

    state: torch.Tensor
    stream: torch.Tensor
    moments: torch.Tensor


class PackedProducts:
    """An evaluation as products that include norms and gates; see ``HeadProducts``.

    Args:
        network: the head's network, whose ``widths`` are multiples of 16.
        shape: (R, P), or (R,) for states without the second dimension.
        dtype: dtype of the products and of the stream.
    """

    def __init__(self, network: HeadNetwork, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        config = network.config
        self._shape, self._num_heads = shape, config.num_heads
        self._squash = config.architecture == "t2i"
        self._branches = [PackedBranch(branch, dtype) for branch in branches(network)]
        self._input = PackedLinear([network.input_proj], dtype)
        self._final = PackedLinear([network.final_layer.linear], dtype)
        rows = torch.Size(shape).numel()
        self._state = self._input.weight.new_empty(rows, config.ch_target)
        self._ahead: _Ahead | None = None
        self._x0: torch.Tensor | None = None

    def load(self) -> None:
        """See ``HeadProducts``."""
        for branch in self._branches:
            branch.load()
        self._input.load()
        self._final.load()

    def predict(self, x: torch.Tensor, modulation: Modulation) -> torch.Tensor:
        """See ``HeadProducts``."""
        self._x0 = self._evaluate(x, modulation)
        return self.prediction()

    def advance(
        self, x: torch.Tensor, modulation: Modulation, step: Step, *, last: bool
    ) -> torch.Tensor:
        """See ``HeadProducts``."""
        self._x0 = self._evaluate(x, modulation)
        state, stream, moments = denoise_step_linear(
            x, self._x0, step.table, step.index, self._input.weight, self._input.bias,
            cfg=step.cfg, noise=step.noise, keys=step.keys, squash=self._squash,
        )  # fmt: skip
        if not last:
            rows = len(self._state)
            self._ahead = _Ahead(
                state, stream.view(rows, stream.shape[-1]), moments.view(rows, *moments.shape[-2:])
            )
        return state

    def prediction(self) -> torch.Tensor:
        """See ``HeadProducts``."""
        assert self._x0 is not None
        return 2 * torch.sigmoid(self._x0) - 1 if self._squash else self._x0

    def _evaluate(self, x: torch.Tensor, modulation: Modulation) -> torch.Tensor:
        """Clean bits of `x` before they are squashed."""
        stream, moments = self._begin(x)
        for i, branch in enumerate(self._branches):
            h = self._first_half(branch, stream, moments, *modulation.norms[i])
            fc2 = branch.fc2
            stream, moments = linear_gated_residual(
                h, fc2.weight, fc2.bias, stream, modulation.gates[i], return_moments=True
            )
        scale, shift = modulation.norms[len(self._branches)]
        final = self._final
        x0 = adaln_linear(stream, scale, shift, final.weight, final.bias, moments=moments, eps=EPS)
        return x0.view(*self._shape, x0.shape[-1])

    def _begin(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Projection of the state, and its moments where a step has left them."""
        ahead, self._ahead = self._ahead, None
        if ahead is not None and ahead.state is x:
            return ahead.stream, ahead.moments
        # Both halves of a guided batch share the state.
        halves = self._shape[0] // max(1, len(x))
        self._state.view(halves, *x.shape).copy_(x)
        return linear(self._state, self._input.weight, self._input.bias), None

    def _first_half(
        self,
        branch: PackedBranch,
        x: torch.Tensor,
        moments: torch.Tensor | None,
        scale: torch.Tensor,
        shift: torch.Tensor,
    ) -> torch.Tensor:
        """Input of the second product of a branch."""
        fc1 = branch.fc1
        op = adaln_linear_swiglu if branch.activation == "swiglu" else adaln_linear
        h = op(x, scale, shift, fc1.weight, fc1.bias, *branch.norm, moments=moments, eps=EPS)
        if branch.activation == "silu":
            return F.silu(h)
        if branch.activation == "attention":
            return patch_attention(h.unflatten(0, self._shape), self._num_heads).flatten(0, 1)
        return h
