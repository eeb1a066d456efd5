"""patch_attention in C++: csrc/cpu/patch_attention."""

from __future__ import annotations

import torch

from bitdance_kernels._shared import native
from bitdance_kernels.denoise._shared import rows_cpu

_MAX_HEAD_DIM = 128

fills_results = True


def _unsupported(function: str, num_heads: int, *tensors: torch.Tensor) -> str | None:
    head_dim = tensors[-1].shape[2] // (3 * num_heads)
    if head_dim > _MAX_HEAD_DIM:
        return f"it handles heads of at most {_MAX_HEAD_DIM} channels, got {head_dim}"
    return rows_cpu.unsupported(function, *tensors)


def unsupported(qkv: torch.Tensor, num_heads: int) -> str | None:
    return _unsupported("patch_attention", num_heads, qkv)


def run(qkv: torch.Tensor, num_heads: int) -> torch.Tensor:
    rows, patch, width = qkv.shape
    out = qkv.new_empty(rows, patch, width // 3)
    native.cpu.patch_attention(
        *rows_cpu.spaced(qkv),
        out,
        rows,
        patch,
        num_heads,
        width // (3 * num_heads),
        torch.get_num_threads(),
    )
    return out


def unsupported_backward(grad: torch.Tensor, qkv: torch.Tensor, num_heads: int) -> str | None:
    return _unsupported("patch_attention_backward", num_heads, grad, qkv)


def run_backward(grad: torch.Tensor, qkv: torch.Tensor, num_heads: int) -> torch.Tensor:
    rows, patch, width = qkv.shape
    grad_qkv = qkv.new_empty(qkv.shape)
    native.cpu.patch_attention_backward(
        *rows_cpu.spaced(grad, qkv),
        grad_qkv,
        rows,
        patch,
        num_heads,
        width // (3 * num_heads),
        torch.get_num_threads(),
    )
    return grad_qkv
