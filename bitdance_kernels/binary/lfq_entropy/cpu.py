"""lfq_entropy in C++: csrc/cpu/lfq_entropy."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from bitdance_kernels._shared import native
from bitdance_kernels._shared.rows import as_rows
from bitdance_kernels.binary.lfq_entropy.reference import codebook_results, odds_scale

# kEntropyPad of csrc/cpu/lfq_entropy: half codes are padded to this many.
_PAD = 16
# Products of code probabilities that are worth a thread: about 50 us.
_GRAIN = 2**20
# Tokens of a slice, whose probabilities are summed up in float32, and sums of all slices; the sum
# over slices is in float64. Neither depends on the number of threads.
_SLICE_TOKENS = 512
_MAX_SUMS = 2**23


def unsupported(x: torch.Tensor, *_: object) -> str | None:
    return native.cpu_unsupported("lfq_entropy", x) or native.dtype_unsupported(x.dtype)


def run(
    x: torch.Tensor, group_bits: int, temperature: float, eps: float, per_group: bool
) -> tuple[torch.Tensor, ...]:
    codes = _Codes(x, group_bits, temperature, per_group)
    table = codes.tables * codes.high * codes.low
    slices = max(1, min(-(-codes.tokens // _SLICE_TOKENS), _MAX_SUMS // table))
    sums = x.new_zeros(slices, codes.tables, codes.high, codes.low, dtype=torch.float32)
    entropy = x.new_zeros(slices, dtype=torch.float64)
    native.cpu.lfq_entropy(*codes.arguments, sums, entropy, slices, codes.threads)
    p = sums.sum(0, dtype=torch.float64)[
        :, : 2 ** (group_bits // 2), : 2 ** ((group_bits + 1) // 2)
    ]
    parts, total = codes.tokens * codes.groups, entropy.sum()
    if total.isnan():  # the kernel's exponentials drop NaN
        groups = x.reshape(codes.tokens, codes.groups, group_bits).isnan().any(2).any(0)
        lost = groups if per_group else groups.any()[None]
        p = p.masked_fill(lost[:, None, None], float("nan"))
    per_sample, p = (total / parts).to(x.dtype), p / (parts // codes.tables)
    return per_sample, *codebook_results(x, p, eps, per_group)


def unsupported_backward(
    grad_sample: torch.Tensor,
    grad_codebook: torch.Tensor,
    slope: torch.Tensor,
    x: torch.Tensor,
    *_: object,
) -> str | None:
    return native.cpu_unsupported(
        "lfq_entropy_backward", grad_sample, grad_codebook, slope, x
    ) or native.dtype_unsupported(x.dtype)


def run_backward(
    grad_sample: torch.Tensor,
    grad_codebook: torch.Tensor,
    slope: torch.Tensor,
    x: torch.Tensor,
    group_bits: int,
    temperature: float,
    per_group: bool,
) -> torch.Tensor:
    codes = _Codes(x, group_bits, temperature, per_group)
    grad_x = x.new_empty(x.shape, dtype=torch.float32)
    if codes.tokens == 0:
        return grad_x.to(x.dtype)
    weight = grad_codebook.float().reshape(-1, 1, 1)
    grad_p = slope.float() * (weight / (codes.tokens * codes.groups // codes.tables))
    grad_p = F.pad(
        grad_p, (0, codes.low - grad_p.shape[2], 0, codes.high - grad_p.shape[1])
    ).contiguous()
    transposed = grad_p.mT.contiguous()
    share = grad_sample.item() / (codes.tokens * codes.groups)
    native.cpu.lfq_entropy_backward(
        *codes.arguments, grad_p, transposed, share, grad_x, codes.threads
    )
    return grad_x.to(x.dtype)


class _Codes:
    """Arguments of both C functions that describe the codes."""

    def __init__(
        self, x: torch.Tensor, group_bits: int, temperature: float, per_group: bool
    ) -> None:
        self.groups = x.shape[-1] // group_bits
        rows, self.tokens, stride = as_rows(x.float())
        self.low = max(2 ** ((group_bits + 1) // 2), _PAD)
        self.high = max(2 ** (group_bits // 2), _PAD)
        self.tables = self.groups if per_group else 1
        self.arguments = (
            rows,
            stride,
            self.tokens,
            self.groups,
            group_bits,
            odds_scale(temperature, torch.float32),
            int(per_group),
        )
        work = self.tokens * self.groups * self.low * self.high
        self.threads = max(1, min(torch.get_num_threads(), work // _GRAIN))
