"""patch_attention in plain PyTorch, with the whole score matrix: P is at most 64."""

from __future__ import annotations

import torch

from bitdance_kernels._shared.dtypes import accumulate_dtype


def run(qkv: torch.Tensor, num_heads: int) -> torch.Tensor:
    q, k, v = _heads(qkv, num_heads)
    out = _probabilities(q, k) @ v  # [R, H, P, D]
    return _tokens(out).to(qkv.dtype)


def run_backward(grad: torch.Tensor, qkv: torch.Tensor, num_heads: int) -> torch.Tensor:
    q, k, v = _heads(qkv, num_heads)
    p = _probabilities(q, k)
    rows, patch, width = grad.shape
    grad_out = grad.to(q.dtype).reshape(rows, patch, num_heads, width // num_heads).transpose(1, 2)
    grad_v = p.mT @ grad_out
    grad_p = grad_out @ v.mT
    # Softmax: subtract from each row's gradient its mean under p.
    grad_scores = p * (grad_p - (grad_p * p).sum(-1, keepdim=True)) * q.shape[-1] ** -0.5
    thirds = [_tokens(grad_x) for grad_x in (grad_scores @ k, grad_scores.mT @ q, grad_v)]
    return torch.cat(thirds, dim=-1).to(qkv.dtype)


def _heads(qkv: torch.Tensor, num_heads: int) -> tuple[torch.Tensor, ...]:
    """Queries, keys and values, each [R, H, P, D], in the dtype of the computation."""
    rows, patch, width = qkv.shape
    wide = qkv.to(accumulate_dtype(qkv))
    parts = wide.reshape(rows, patch, 3, num_heads, width // (3 * num_heads))
    return parts.permute(2, 0, 3, 1, 4).unbind(0)


def _probabilities(q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
    return torch.softmax(q @ k.mT * q.shape[-1] ** -0.5, dim=-1)


def _tokens(heads: torch.Tensor) -> torch.Tensor:
    """[R, H, P, D] to [R, P, H D]."""
    return heads.transpose(1, 2).flatten(2)
