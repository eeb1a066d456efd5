"""Group-wise binary quantizer (lookup-free quantization) on feature maps, and packed latents.

The kernels have channels last; here, as in all of the autoencoder, channels are dimension 1.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

from bitdance_kernels import lfq_entropy, lfq_quantize, pack_signs, unpack_signs

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = [
    "BinaryQuantizer",
    "QuantizerLosses",
    "QuantizerOutput",
    "pack_latents",
    "unpack_latents",
]

_BYTE = 8


class QuantizerLosses(NamedTuple):
    """Scalars of the quantizer's objective, in nats where they are entropies.

    They are float32, of features in half precision and under autocast too; float64 of float64.
    """

    per_sample_entropy: torch.Tensor
    """E[H(q)]: how undecided the code of a position is."""
    codebook_entropy: torch.Tensor
    """H(E[q]): how evenly the codebook is used; E averages over the groups unless `per_group`."""
    entropy: torch.Tensor
    """sample_weight * per_sample_entropy - codebook_weight * codebook_entropy."""
    commitment: torch.Tensor
    """Mean squared distance of the features to their latents."""


class QuantizerOutput(NamedTuple):
    """What the quantizer returns."""

    latents: torch.Tensor
    """[B, C, ...], +1 or -1 in the features' dtype, with the straight-through gradient."""
    packed: torch.Tensor
    """uint8 [B, ..., ceil(C / 8)], the same latents as bits."""
    losses: QuantizerLosses
    """Zeros where they were not asked for."""


class BinaryQuantizer(nn.Module):
    """Quantize every channel to its sign: q = +1 if x > 0, else -1, so both zeros give -1.

    The C channels are cut into `num_codebooks` contiguous groups; the code of a group is one of the
    2^d corners of a hypercube, and its index has the group's first channel as the lowest bit. The
    entropies are those of softmax(2 <x, corner> / temperature) over the corners (equation 2 of the
    BitDance paper). The commitment is the mean over all elements. (The official code, in training,
    takes it over a few rows of the batch only, because a local variable overwrites its mask
    argument.) One group works like any other number.

    Args:
        dim: C, bits of a code.
        num_codebooks: groups, a divisor of `dim`.
        sample_weight: weight of the per-sample entropy, which the objective lowers.
        codebook_weight: weight of the codebook entropy, which the objective raises.
        temperature: temperature of the softmax.
        per_group: take the codebook entropy of every group by itself, and their mean. The official
            one is of the groups' mean distribution, which stays even when a channel of one group is
            constant, so that such a channel costs nothing.
        process_group: take the codebook entropy over the features of all its processes, as a
            statistic of the whole batch; see ``lfq_entropy``. The other losses stay those of a
            process, whose average is that of the batch. It may be set later, as an attribute;
            deep copies share it, pickles are without.

    Raises:
        TypeError: `process_group` is none.
        ValueError: `num_codebooks` does not divide `dim`.
    """

    def __init__(
        self,
        dim: int,
        num_codebooks: int = 1,
        *,
        sample_weight: float = 1.0,
        codebook_weight: float = 1.0,
        temperature: float = 0.01,
        per_group: bool = False,
        process_group: dist.ProcessGroup | None = None,
    ) -> None:
        super().__init__()
        if num_codebooks < 1 or dim % num_codebooks != 0:
            expected = f"a divisor of dim = {dim}"
            raise ValueError(
                f"BinaryQuantizer: num_codebooks must be {expected}, got {num_codebooks}"
            )
        self.dim = dim
        self.num_codebooks = num_codebooks
        self.code_bits = dim // num_codebooks
        self.sample_weight = sample_weight
        self.codebook_weight = codebook_weight
        self.temperature = temperature
        self.per_group = per_group
        if process_group is not None and not isinstance(process_group, dist.ProcessGroup):
            got = type(process_group).__name__
            raise TypeError(f"BinaryQuantizer: process_group must be a ProcessGroup, got {got}")
        self.process_group = process_group

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "process_group": None}  # which belongs to this process

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        result = type(self).__new__(type(self))
        memo[id(self)] = result
        result.__setstate__(copy.deepcopy(self.__getstate__(), memo))
        result.process_group = self.process_group
        return result

    def extra_repr(self) -> str:
        """Show the sizes in ``print(model)``."""
        return f"dim={self.dim}, num_codebooks={self.num_codebooks}"

    def forward(self, features: torch.Tensor, *, with_losses: bool = False) -> QuantizerOutput:
        """Quantize a feature map.

        Args:
            features: [B, C, ...], floating point.
            with_losses: also compute the losses.

        Returns:
            Codes, packed latents, and the losses (zeros unless asked for).

        Raises:
            ValueError: `features` does not have C channels.
        """
        if features.dim() < 2 or features.shape[1] != self.dim:
            expected = f"[B, {self.dim}, ...]"
            raise ValueError(
                f"BinaryQuantizer: features must be {expected}, got {list(features.shape)}"
            )
        x = features.movedim(1, -1)
        quantized, packed = lfq_quantize(_pad_to_byte(x))
        quantized = quantized[..., : self.dim]
        dtype = torch.promote_types(x.dtype, torch.float32)
        losses = self._losses(x.to(dtype), quantized) if with_losses else _no_losses(x, dtype)
        return QuantizerOutput(quantized.movedim(-1, 1), packed, losses)

    def _losses(self, x: torch.Tensor, quantized: torch.Tensor) -> QuantizerLosses:
        per_sample, codebook = lfq_entropy(
            x,
            self.code_bits,
            temperature=self.temperature,
            per_group=self.per_group,
            process_group=self.process_group,
        )
        codebook = codebook.mean()
        return QuantizerLosses(
            per_sample_entropy=per_sample,
            codebook_entropy=codebook,
            entropy=self.sample_weight * per_sample - self.codebook_weight * codebook,
            commitment=F.mse_loss(x, quantized.detach().to(x.dtype)),
        )

    def to_indices(self, packed: torch.Tensor) -> torch.Tensor:
        """Code index of every group.

        Args:
            packed: uint8 [B, ..., ceil(C / 8)].

        Returns:
            int64 [num_codebooks, positions]; positions count batch first, then space in raster
            order.
        """
        if self.code_bits == _BYTE:  # a byte is the index
            return packed.flatten(0, -2).T.long()
        bits = unpack_signs(packed)[..., : self.dim].flatten(0, -2) > 0
        groups = bits.unflatten(-1, (self.num_codebooks, self.code_bits))
        place = torch.arange(self.code_bits, dtype=torch.int64, device=packed.device)
        return (groups.long() << place).sum(-1).T

    def from_indices(
        self, indices: torch.Tensor, dtype: torch.dtype = torch.float32
    ) -> torch.Tensor:
        """Codes of given indices, the inverse of `to_indices` but for the positions' arrangement.

        Args:
            indices: int64 [num_codebooks, positions].
            dtype: dtype of the result.

        Returns:
            [positions, C], +1 or -1.
        """
        place = torch.arange(self.code_bits, dtype=torch.int64, device=indices.device)
        bits = (indices.T.unsqueeze(-1) >> place) & 1
        return (2 * bits - 1).flatten(-2).to(dtype)


def pack_latents(latents: torch.Tensor) -> torch.Tensor:
    """Pack a map of latents into bits; channels that fill up the last byte are 0.

    Args:
        latents: [B, C, ...], floating point; bit = 1 exactly where the value is > 0.

    Returns:
        uint8 [B, ..., ceil(C / 8)].
    """
    return pack_signs(_pad_to_byte(latents.detach().movedim(1, -1)))


def unpack_latents(
    packed: torch.Tensor, channels: int, dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    """Unpack bits into a map of latents, the inverse of `pack_latents`.

    Args:
        packed: uint8 [B, ..., ceil(C / 8)].
        channels: C.
        dtype: dtype of the result.

    Returns:
        [B, C, ...], +1 or -1.
    """
    return unpack_signs(packed, dtype)[..., :channels].movedim(-1, 1)


def _no_losses(x: torch.Tensor, dtype: torch.dtype) -> QuantizerLosses:
    zero = torch.zeros((), dtype=dtype, device=x.device)
    return QuantizerLosses(zero, zero, zero, zero)


def _pad_to_byte(x: torch.Tensor) -> torch.Tensor:
    missing = -x.shape[-1] % _BYTE
    return F.pad(x, (0, missing)) if missing else x
