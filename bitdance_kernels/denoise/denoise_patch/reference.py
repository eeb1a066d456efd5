"""denoise_patch in plain PyTorch: the loop over the evaluations."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from bitdance_kernels._shared import packed_weight
from bitdance_kernels._shared.dtypes import accumulate_dtype
from bitdance_kernels.denoise._shared import activations, affine_step, modulated_norm


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
    width, layers = in_bias.shape[0], bias1.shape[0]
    in_matrix, out_matrix = map(packed_weight.matrix, (in_weight, out_weight))
    attention = (
        attention_norm_weight, attention_norm_bias, attention_qkv_weight, attention_qkv_bias,
        attention_out_weight, attention_out_bias,
    )  # fmt: skip
    each = 3 if num_heads == 0 else 6
    projections = min((modulation.shape[-1] // width - 2) // each, layers)
    state = x
    for i in range(modulation.shape[0]):
        chunks = modulation[i].split(width, dim=-1)
        tokens = F.linear(state.to(in_matrix.dtype).flatten(0, -2), in_matrix, in_bias)
        h = tokens if cfg is None else torch.cat([tokens, tokens])
        for layer in range(layers):
            first = each * (layer * projections // layers)
            if num_heads > 0:
                of_layer = (part[layer] for part in attention if part is not None)
                norm, norm_shift, qkv, qkv_bias, out, attended_bias = of_layer
                scale, shift, gate = chunks[first : first + 3]
                n = modulated_norm.forward(h, scale, shift, norm, norm_shift, eps)
                n = F.linear(n, packed_weight.matrix(qkv), qkv_bias)
                n = _attend(n.unflatten(0, (-1, x.shape[1])), num_heads).flatten(0, 1)
                h = _gated(h, gate, F.linear(n, packed_weight.matrix(out), attended_bias))
                first += 3
            scale, shift, gate = chunks[first : first + 3]
            n = modulated_norm.forward(h, scale, shift, norm_weight[layer], norm_bias[layer], eps)
            u = F.linear(n, packed_weight.matrix(weight1[layer], "swiglu"), bias1[layer])
            u = activations.swiglu_gate(u)
            u = F.linear(u, packed_weight.matrix(weight2[layer]), bias2[layer])
            h = _gated(h, gate, u)
        n = modulated_norm.forward(h, chunks[-2], chunks[-1], None, None, eps)
        x0 = F.linear(n, out_matrix, out_bias)
        if squash:
            x0 = (2 * torch.sigmoid(x0.to(accumulate_dtype(x0))) - 1).to(x0.dtype)
        step = torch.full((1,), i, dtype=torch.int64, device=x.device)
        rows = x.shape[0] if cfg is None else 2 * x.shape[0]
        x0 = x0.view(rows, *x.shape[1:])
        drawn = None if noise is None else noise[i]
        state = affine_step.forward(state, x0, table, step, cfg, drawn, keys)
    if modulation.shape[0] == 0:
        state = x.clone(memory_format=torch.contiguous_format)
    return state, torch.zeros(1, dtype=torch.int32, device=x.device)


def _gated(h: torch.Tensor, gate: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """H + gate y, rounded once."""
    dtype = accumulate_dtype(h)
    return torch.addcmul(h.to(dtype), gate.to(dtype), y.to(dtype)).to(h.dtype)


def _attend(qkv: torch.Tensor, num_heads: int) -> torch.Tensor:
    """Full attention among the tokens of a patch: [R, P, 3 C] to [R, P, C]."""
    rows, patch, width = qkv.shape
    wide = qkv.to(accumulate_dtype(qkv))
    parts = wide.reshape(rows, patch, 3, num_heads, width // (3 * num_heads))
    q, k, v = parts.permute(2, 0, 3, 1, 4).unbind(0)
    out = torch.softmax(q @ k.mT * q.shape[-1] ** -0.5, dim=-1) @ v
    return out.transpose(1, 2).flatten(2).to(qkv.dtype)
