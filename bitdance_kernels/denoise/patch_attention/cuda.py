"""patch_attention in CUDA C++: csrc/cuda/patch_attention."""

from __future__ import annotations

import torch

from bitdance_kernels._shared import native
from bitdance_kernels._shared.rows import as_rows

_MAX_HEAD_DIM = 128


def unsupported(qkv: torch.Tensor, num_heads: int) -> str | None:
    if qkv.dtype != torch.float32:
        return f"it handles float32 alone, got {qkv.dtype}"
    head_dim = qkv.shape[2] // (3 * num_heads)
    if head_dim > _MAX_HEAD_DIM or head_dim % 4 != 0:
        return f"it takes heads of 4 to {_MAX_HEAD_DIM} channels in fours, got {head_dim}"
    return native.cuda_unsupported("patch_attention", qkv)


def run(qkv: torch.Tensor, num_heads: int) -> torch.Tensor:
    rows, patch, width = qkv.shape
    out = qkv.new_empty(rows, patch, width // 3)
    qkv, _, stride = as_rows(native.aligned_rows(qkv))
    native.cuda.patch_attention(
        qkv,
        stride,
        out,
        rows,
        patch,
        num_heads,
        width // (3 * num_heads),
        *native.stream(qkv.device),
    )
    return out
