"""denoise_patch in CUDA C++: csrc/cuda/denoise_patch."""

from __future__ import annotations

from typing import Any

import torch

from bitdance_kernels._shared import native

_BITS = 32
_MAX_PATCH = 16  # tokens, with attention
MAX_POLLS = 1 << 20
"""Looks for a word of another block before a launch gives up, at less than a microsecond each."""


def unsupported(
    x: torch.Tensor,
    modulation: torch.Tensor,
    table: torch.Tensor,
    in_weight: torch.Tensor,
    in_bias: torch.Tensor,
    norm_weight: torch.Tensor,
    norm_bias: torch.Tensor,
    weight1: torch.Tensor,
    bias1: torch.Tensor,
    weight2: torch.Tensor,
    bias2: torch.Tensor,
    out_weight: torch.Tensor,
    out_bias: torch.Tensor,
    *others: Any,
) -> str | None:
    reason = native.cuda_unsupported("denoise_patch", x) or native.sm90_unsupported(x.device)
    if reason is not None:
        return reason
    if x.dtype != torch.float32:
        return f"it takes a float32 state, got {x.dtype}"
    if in_weight.dtype not in (torch.float16, torch.bfloat16):
        return f"it takes float16 and bfloat16 weights, got {in_weight.dtype}"
    if x.shape[-1] != _BITS:
        return f"it takes states of {_BITS} channels, got {x.shape[-1]}"
    qkv_weight, out_projection, num_heads = others[2], others[4], others[6]
    weights = [in_weight, out_weight, *(w[0] for w in (weight1, weight2))]
    if num_heads > 0:
        weights += [qkv_weight[0], out_projection[0]]
    if any(weight.dim() != 4 for weight in weights):
        return "it needs weights packed by pack_weight"
    width, hidden = in_bias.shape[0], bias1.shape[1] // 2
    rows = modulation.shape[1]
    index = native.stream(x.device)[0]
    max_rows = native.cuda.denoise_patch_max_rows(width, hidden, num_heads, index)
    if max_rows == 0:
        heads = f" and {num_heads} heads" if num_heads else ""
        return f"it has no kernel for {width} and {hidden} channels{heads} on a card of this size"
    if num_heads > 0 and x.shape[1] > _MAX_PATCH:
        return f"it takes patches of at most {_MAX_PATCH} tokens with attention, got {x.shape[1]}"
    if rows > max_rows:
        return f"it takes at most {max_rows} rows for {width} channels, got {rows}"
    return None


def run(
    x: torch.Tensor,
    modulation: torch.Tensor,
    table: torch.Tensor,
    in_weight: torch.Tensor,
    in_bias: torch.Tensor,
    norm_weight: torch.Tensor,
    norm_bias: torch.Tensor,
    weight1: torch.Tensor,
    bias1: torch.Tensor,
    weight2: torch.Tensor,
    bias2: torch.Tensor,
    out_weight: torch.Tensor,
    out_bias: torch.Tensor,
    attention_norm_weight: torch.Tensor | None,
    attention_norm_bias: torch.Tensor | None,
    attention_qkv_weight: torch.Tensor | None,
    attention_qkv_bias: torch.Tensor | None,
    attention_out_weight: torch.Tensor | None,
    attention_out_bias: torch.Tensor | None,
    num_heads: int,
    cfg: torch.Tensor | None,
    noise: torch.Tensor | None,
    keys: torch.Tensor | None,
    squash: bool,
    eps: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    evaluations, rows, modulated = modulation.shape
    width, (layers, features) = in_bias.shape[0], bias1.shape
    y = x.new_empty(x.shape)
    status = x.new_empty(1, dtype=torch.int32)
    # The workspace of the header, in values of 16 bits.
    ring = (10, 3 * width) if num_heads else (8, max(width, features // 2))
    words = modulation.new_empty(ring[0], rows, ring[1])
    given = (
        x, modulation, table, in_weight, in_bias, norm_weight, norm_bias, weight1, bias1, weight2,
        bias2, out_weight, out_bias, attention_norm_weight, attention_norm_bias,
        attention_qkv_weight, attention_qkv_bias, attention_out_weight, attention_out_bias,
        None if cfg is None else cfg.to(torch.float32), noise, keys,
    )  # fmt: skip
    native.cuda.denoise_patch(
        *[None if t is None else _aligned(t) for t in given],
        y,
        status,
        words,
        rows,
        x.shape[1:-1].numel(),
        width,
        features // 2,
        num_heads,
        layers,
        (modulated // width - 2) // (6 if num_heads else 3),
        evaluations,
        eps,
        squash,
        MAX_POLLS,
        native.DTYPE_CODES[in_weight.dtype],
        *native.stream(x.device),
    )
    return y, status


def _aligned(x: torch.Tensor) -> torch.Tensor:
    """`x`, copied unless it is contiguous and begins at a multiple of 16 bytes."""
    if x.is_contiguous() and x.data_ptr() % 16 == 0:
        return x
    return x.clone(memory_format=torch.contiguous_format)
