"""linear_fp8 in plain PyTorch."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from bitdance_kernels._shared import quantized


def run(
    x: torch.Tensor,
    weight: torch.Tensor,
    weight_scale: torch.Tensor,
    bias: torch.Tensor | None,
    quantize_x: bool,
) -> torch.Tensor:
    if quantize_x:
        values, scale = quantized.split_rows(x)
        x = (values.float() * scale[..., None]).to(x.dtype)
    return F.linear(x, quantized.dequantize_rows(weight, weight_scale, x.dtype), bias).contiguous()
