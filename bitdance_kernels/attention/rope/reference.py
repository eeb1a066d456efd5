"""rope in plain PyTorch."""

from __future__ import annotations

import torch

from bitdance_kernels.attention._shared.rotation import rotate, working_dtype


def run(x: torch.Tensor, freqs: torch.Tensor, interleaved: bool) -> torch.Tensor:
    wide = working_dtype(x, freqs)
    # One row of the table for all heads of a token.
    rotated = rotate(x.to(wide), freqs.to(wide)[:, None], interleaved)
    return rotated.to(x.dtype).contiguous()


def run_backward(grad: torch.Tensor, freqs: torch.Tensor, interleaved: bool) -> torch.Tensor:
    # A rotation is orthogonal: its transpose rotates by the negative angle.
    cos, sin = freqs.unbind(-1)
    return run(grad, torch.stack((cos, -sin), dim=-1), interleaved)
