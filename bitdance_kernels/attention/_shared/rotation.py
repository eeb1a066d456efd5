"""Rotary position embedding (Su et al. 2021, RoFormer, equation 34), shared by the rotating ops."""

from __future__ import annotations

import torch


def rotate(x: torch.Tensor, freqs: torch.Tensor, interleaved: bool) -> torch.Tensor:
    """Rotate the pairs (a, b) of `x` [..., D] by (cos, sin) = `freqs` [..., D / 2, 2].

    a' = a cos - b sin, b' = a sin + b cos. Pair i is (x[2 i], x[2 i + 1]) if interleaved, else
    (x[i], x[i + D / 2]).
    """
    cos, sin = freqs.unbind(-1)
    a, b = (x[..., 0::2], x[..., 1::2]) if interleaved else x.chunk(2, dim=-1)
    turned = (a * cos - b * sin, a * sin + b * cos)
    return torch.stack(turned, dim=-1).flatten(-2) if interleaved else torch.cat(turned, dim=-1)


def working_dtype(*tensors: torch.Tensor | None) -> torch.dtype:
    """Dtype to compute in: float64 if one of the `tensors` is, else float32."""
    wide = any(tensor is not None and tensor.dtype == torch.float64 for tensor in tensors)
    return torch.float64 if wide else torch.float32
