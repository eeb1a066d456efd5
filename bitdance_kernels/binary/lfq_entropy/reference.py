"""lfq_entropy in plain PyTorch, by the identity that op.py states."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F

from bitdance_kernels._shared.dtypes import accumulate_dtype

# Tokens whose half-code probabilities are stored at a time: 2 x 8 MB per group of 16 bits.
_CHUNK = 8192
# Log-odds from which the other bit has probability 0 even in float64.
_DECIDED = 1000.0


def run(
    x: torch.Tensor, group_bits: int, temperature: float, eps: float, per_group: bool
) -> tuple[torch.Tensor, ...]:
    logits = _logits(x, group_bits, temperature)
    # A bit of logit l has softplus(-|l|) + |l| sigmoid(-|l|): no overflow, no cancellation.
    size = logits.abs()
    bit_entropy = F.softplus(-size) + size * torch.sigmoid(-size)
    per_sample = bit_entropy.sum(2).mean()
    p = _distribution(logits, per_group).double()
    return per_sample.to(x.dtype), *codebook_results(x, p, eps, per_group)


def codebook_results(
    x: torch.Tensor, p: torch.Tensor, eps: float, per_group: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The op's results after the first: codebook, P and the derivative of codebook in P."""
    codebook, slope = codebook_entropy(p, eps)
    codebook = codebook.to(x.dtype)
    slope = slope.detach().to(accumulate_dtype(x))  # for run_backward, which has its derivative
    return codebook if per_group else codebook[0], p, slope


def codebook_entropy(p: torch.Tensor, eps: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Entropy [G] of the distributions [G, high codes, low codes], and its derivative."""
    # The constant changes no value, since P sums to 1. It removes a constant from the gradient of P
    # that would only add rounding errors to the gradient of x.
    log = torch.log(p + eps)
    share = p / (p + eps)
    constant = (p * (log + share)).sum((1, 2), keepdim=True).detach()
    entropy = -(p * (log - constant)).sum((1, 2)) - constant.flatten()
    return entropy, constant - log - share


def run_backward(
    grad_sample: torch.Tensor,
    grad_codebook: torch.Tensor,
    slope: torch.Tensor,
    x: torch.Tensor,
    group_bits: int,
    temperature: float,
    per_group: bool,
) -> torch.Tensor:
    logits = _logits(x, group_bits, temperature)
    tokens, groups, _ = logits.shape
    s = torch.sigmoid(logits)
    share = grad_sample.to(logits.dtype) / max(tokens * groups, 1)
    grad_logits = -logits * s * torch.sigmoid(-logits) * share
    weight = grad_codebook.to(logits.dtype).reshape(-1, 1, 1)
    grad_p = slope.to(logits.dtype) * weight / max(tokens * groups // len(slope), 1)
    chunks = [
        _through_distribution(part, grad_p.expand(groups, -1, -1)) for part in logits.split(_CHUNK)
    ]
    if chunks:
        grad_logits = grad_logits + torch.cat(chunks)
    # A decided bit has no gradient unless it is NaN; the scale would magnify rounding errors.
    grad_logits = grad_logits * (s * torch.sigmoid(-logits) != 0)
    return (grad_logits * odds_scale(temperature, logits.dtype)).reshape(x.shape).to(x.dtype)


def odds_scale(temperature: float, dtype: torch.dtype) -> float:
    """Factor from x to the log-odds of bit = +1; finite, since infinity times 0 is NaN."""
    return min(4 / temperature, torch.finfo(dtype).max)


def _logits(x: torch.Tensor, group_bits: int, temperature: float) -> torch.Tensor:
    """[N, G, d]: log-odds of bit = +1, 4 x / temperature, clamped where the bit is decided."""
    groups = x.shape[-1] // group_bits
    tokens = x.shape[:-1].numel()
    wide = x.to(accumulate_dtype(x)).reshape(tokens, groups, group_bits)
    return (wide * odds_scale(temperature, wide.dtype)).clamp(-_DECIDED, _DECIDED)


def _half_codes(logits: torch.Tensor) -> torch.Tensor:
    """[N, G, h] to [N, G, 2^h]: probability of every code of h bits, bit i with weight 2^i."""
    p = logits.new_ones((*logits.shape[:-1], 1))
    for logit in logits.unbind(-1):
        logit = logit.unsqueeze(-1)
        p = torch.cat([p * torch.sigmoid(-logit), p * torch.sigmoid(logit)], dim=-1)
    return p


def _halves(logits: torch.Tensor) -> Iterator[torch.Tensor]:
    """Logits of the low bits and of the high bits of a code."""
    low = (logits.shape[-1] + 1) // 2
    yield logits[..., :low]
    yield logits[..., low:]


def _distribution(logits: torch.Tensor, per_group: bool) -> torch.Tensor:
    """Mean code distribution [G or 1, high codes, low codes]: one product of the halves."""
    tokens, groups, bits = logits.shape
    low_bits = (bits + 1) // 2
    total = logits.new_zeros(groups, 2 ** (bits - low_bits), 2**low_bits)
    for part in logits.split(_CHUNK):
        low, high = (_half_codes(half).transpose(0, 1) for half in _halves(part))
        total = total + high.mT @ low
    mean = total / tokens if tokens else total * float("nan")
    return mean if per_group else mean.mean(0, keepdim=True)


def _through_distribution(logits: torch.Tensor, grad_p: torch.Tensor) -> torch.Tensor:
    """[N, G, d]: sum over codes c of grad_p[c] dp(c)/dlogit_i = E[grad_p bit_i] - s_i E[grad_p]."""
    low, high = (_half_codes(half).transpose(0, 1) for half in _halves(logits))  # [G, N, codes]
    weighted_low = low * (
        high @ grad_p
    )  # [G, N, low codes]: p(c) grad_p(c), summed over the high bits
    weighted_high = high * (low @ grad_p.mT)
    mean = weighted_low.sum(-1, keepdim=True)
    ones = [part @ _bit_table(part) for part in (weighted_low, weighted_high)]
    s = torch.sigmoid(logits).transpose(0, 1)
    return (torch.cat(ones, dim=-1) - s * mean).transpose(0, 1)


def _bit_table(part: torch.Tensor) -> torch.Tensor:
    """[codes, h]: bit i of every code."""
    codes = part.shape[-1]
    index = torch.arange(codes, dtype=torch.int64, device=part.device)
    shifts = torch.arange(codes.bit_length() - 1, dtype=torch.int64, device=part.device)
    return ((index[:, None] >> shifts) & 1).to(part.dtype)
