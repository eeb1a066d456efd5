"""Decode steps of a transformer by products with packed weights.

A layer is five launches, in a class-conditional model and in a language model. Weights are kept
twice: as parameters, which first tokens and prompts use, and packed.
"""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Generic, TypeVar, cast

import torch
from torch import nn

from bitdance.models.kv_cache import KVCache
from bitdance.models.quantization import Float8Linear, Int8Linear, quantization_of
from bitdance.models.qwen3 import Qwen3Block, Qwen3Model
from bitdance.models.tracing import is_traced
from bitdance.models.transformer import Transformer, TransformerBlock
from bitdance.sampling.config import choose_plan
from bitdance.sampling.weights import PackedLinear
from bitdance_kernels import (
    block_decode_attention,
    linear_gated_residual,
    overlapping_launches,
    rms_norm_linear_swiglu,
    rms_norm_qkv,
)

__all__ = ["PackedQwen3", "PackedTransformer", "packed_qwen3", "packed_transformer"]

Block = TypeVar("Block", bound=nn.Module)
Memory = tuple[torch.Tensor, torch.Tensor]


class _PackedTrunk(ABC, Generic[Block]):
    """Blocks with packed weights, which decode new tokens.

    Args:
        blocks: the blocks, in order.
    """

    def __init__(self, blocks: Iterable[Block]) -> None:
        self._blocks = list(blocks)
        # Made in inference mode, memory could not be written outside of it.
        with torch.inference_mode(False), torch.no_grad():
            self._packed = [self._pack(block) for block in self._blocks]

    def load(self) -> None:
        """Pack the parameters as they are now."""
        for packed in self._packed:
            for layer in packed:
                layer.load()

    def decode(self, x: torch.Tensor, freqs: torch.Tensor, cache: KVCache) -> torch.Tensor:
        """New tokens [B, P, C] through all blocks; the cache then holds them."""
        lengths = cache.lengths + x.shape[1]
        moments: torch.Tensor | None = None
        with overlapping_launches():
            for block, packed, memory in zip(self._blocks, self._packed, cache.layers, strict=True):
                _, out, first, second = packed
                q = self._queries(block, packed[0], x, moments, memory, cache.lengths, freqs)
                h = block_decode_attention(q, *memory, lengths).flatten(2)
                x, moments = linear_gated_residual(h, out.weight, out.bias, x, return_moments=True)
                weight, eps = self._feed_forward_norm(block)
                h = rms_norm_linear_swiglu(
                    x, first.weight, first.bias, weight, moments=moments, eps=eps
                )
                x, moments = linear_gated_residual(
                    h, second.weight, second.bias, x, return_moments=True
                )
        cache.advance(x.shape[1])
        return x

    @abstractmethod
    def _pack(self, block: Block) -> tuple[PackedLinear, PackedLinear, PackedLinear, PackedLinear]:
        """The projections of a block to q, k and v, of attention, and of the SwiGLU network."""

    @abstractmethod
    def _queries(
        self,
        block: Block,
        qkv: PackedLinear,
        x: torch.Tensor,
        moments: torch.Tensor | None,
        memory: Memory,
        lengths: torch.Tensor,
        freqs: torch.Tensor,
    ) -> torch.Tensor:
        """Rotated queries [B, P, H, D] of the normalized `x`; keys and values go to `memory`."""

    @abstractmethod
    def _feed_forward_norm(self, block: Block) -> tuple[torch.Tensor, float]:
        """Weight and epsilon of the norm before the SwiGLU network."""


class PackedTransformer(_PackedTrunk[TransformerBlock]):
    """The transformer of a class-conditional model, in five launches a layer."""

    def _pack(
        self, block: TransformerBlock
    ) -> tuple[PackedLinear, PackedLinear, PackedLinear, PackedLinear]:
        attention, mlp = block.attention, block.feed_forward
        dtype = block.attention_norm.weight.dtype
        return (
            PackedLinear([attention.wqkv], dtype, "rope"),
            PackedLinear([attention.wo], dtype),
            PackedLinear([mlp.w1], dtype, "swiglu"),
            PackedLinear([mlp.w2], dtype),
        )

    def _queries(
        self,
        block: TransformerBlock,
        qkv: PackedLinear,
        x: torch.Tensor,
        moments: torch.Tensor | None,
        memory: Memory,
        lengths: torch.Tensor,
        freqs: torch.Tensor,
    ) -> torch.Tensor:
        norm, eps = block.attention_norm.weight, _eps(block.attention_norm)
        return rms_norm_qkv(
            x, qkv.weight, norm, *memory, lengths, freqs,
            num_heads=block.attention.num_heads, bias=qkv.bias, moments=moments, eps=eps,
        )  # fmt: skip

    def _feed_forward_norm(self, block: TransformerBlock) -> tuple[torch.Tensor, float]:
        return block.ffn_norm.weight, _eps(block.ffn_norm)


class PackedQwen3(_PackedTrunk[Qwen3Block]):
    """The language model of a text-to-image model, in five launches a layer."""

    def _pack(
        self, block: Qwen3Block
    ) -> tuple[PackedLinear, PackedLinear, PackedLinear, PackedLinear]:
        attention, mlp = block.self_attn, block.mlp
        dtype = block.input_layernorm.weight.dtype
        return (
            PackedLinear(
                [attention.q_proj, attention.k_proj, attention.v_proj],
                dtype,
                "rope_half",
                attention.config.head_dim,
            ),
            PackedLinear([attention.o_proj], dtype),
            PackedLinear([mlp.gate_proj, mlp.up_proj], dtype, "swiglu"),
            PackedLinear([mlp.down_proj], dtype),
        )

    def _queries(
        self,
        block: Qwen3Block,
        qkv: PackedLinear,
        x: torch.Tensor,
        moments: torch.Tensor | None,
        memory: Memory,
        lengths: torch.Tensor,
        freqs: torch.Tensor,
    ) -> torch.Tensor:
        attention, norm = block.self_attn, block.input_layernorm.weight
        config = attention.config
        return rms_norm_qkv(
            x, qkv.weight, norm, *memory, lengths, freqs,
            num_heads=config.num_attention_heads, num_kv_heads=config.num_key_value_heads,
            interleaved=False, q_norm=attention.q_norm.weight, k_norm=attention.k_norm.weight,
            bias=qkv.bias, moments=moments, eps=block.eps,
        )  # fmt: skip

    def _feed_forward_norm(self, block: Qwen3Block) -> tuple[torch.Tensor, float]:
        return block.post_attention_layernorm.weight, block.eps


def packed_transformer(
    layers: Transformer, rows: int, dtype: torch.dtype
) -> PackedTransformer | None:
    """The transformer with packed weights where that is its plan, else None.

    Args:
        layers: the transformer.
        rows: tokens of a step.
        dtype: dtype of the products; under autocast parameters are in another one, and stay so.
    """
    return PackedTransformer(layers) if _is_packed("trunk", layers, rows, dtype) else None


def packed_qwen3(trunk: Qwen3Model, rows: int, dtype: torch.dtype) -> PackedQwen3 | None:
    """As ``packed_transformer``, for a language model."""
    blocks, head_dim = cast(Iterable[Qwen3Block], trunk.layers), trunk.config.head_dim
    packed = _is_packed("t2i_trunk", trunk.layers, rows, dtype, head_dim)
    return PackedQwen3(blocks) if packed else None


def _is_packed(
    part: str, blocks: nn.ModuleList, rows: int, dtype: torch.dtype, *widths: int
) -> bool:
    kinds = (nn.Linear, Float8Linear, Int8Linear)
    layers = [layer for layer in blocks.modules() if isinstance(layer, kinds)]
    sizes = ((layer.in_features, layer.out_features) for layer in layers)
    widths = tuple({*widths, *itertools.chain.from_iterable(sizes)})
    device, quantization = layers[0].weight.device, quantization_of(blocks)
    plan = choose_plan(part, rows, widths, dtype, device, quantization=quantization)
    alike = all(parameter.dtype == dtype for parameter in blocks.parameters())
    return plan == "packed" and alike and not is_traced()


def _eps(norm: nn.RMSNorm) -> float:
    assert norm.eps is not None
    return norm.eps
