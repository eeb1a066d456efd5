"""lfq_entropy in C++: csrc/cpu/lfq_entropy*.cpp, with the 2^d codes' part in PyTorch."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from bitdance_kernels import _native
from bitdance_kernels._rows import as_rows
from bitdance_kernels.binary.lfq_entropy import reference

# kEntropyPad of csrc/cpu/lfq_entropy.h: half codes are padded to this many.
_PAD = 16
# Products of code probabilities a thread must have to be worth starting: about 50 us.
_GRAIN = 2**20


def unsupported(
    x: torch.Tensor, group_bits: int, temperature: float, eps: float, per_group: bool
) -> str | None:
    return _native.cpu_unsupported("lfq_entropy", x) or _native.dtype_unsupported(x.dtype)


def run(
    x: torch.Tensor, group_bits: int, temperature: float, eps: float, per_group: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    per_sample, p = _forward(_Codes(x, group_bits, temperature, per_group))
    codebook = reference.entropy(p, eps)
    return per_sample.to(x.dtype), (codebook if per_group else codebook[0]).to(x.dtype)


def unsupported_backward(
    grad_sample: torch.Tensor, grad_codebook: torch.Tensor, x: torch.Tensor, *settings: object
) -> str | None:
    return _native.cpu_unsupported(
        "lfq_entropy_backward", grad_sample, grad_codebook, x
    ) or _native.dtype_unsupported(x.dtype)


def run_backward(
    grad_sample: torch.Tensor,
    grad_codebook: torch.Tensor,
    x: torch.Tensor,
    group_bits: int,
    temperature: float,
    eps: float,
    per_group: bool,
) -> torch.Tensor:
    codes = _Codes(x, group_bits, temperature, per_group)
    of_x = torch.empty(x.shape, dtype=torch.float32)
    if codes.tokens == 0:
        return of_x.to(x.dtype)
    _, p = _forward(codes)
    of_p = reference.of_entropy(p, eps, grad_codebook.double(), codes.tokens, codes.groups).float()
    of_p = F.pad(of_p, (0, codes.low - of_p.shape[2], 0, codes.high - of_p.shape[1])).contiguous()
    transposed = of_p.mT.contiguous()
    share = grad_sample.item() / (codes.tokens * codes.groups)
    _native.cpu.lfq_entropy_backward(
        *codes.arguments, of_p.data_ptr(), transposed.data_ptr(), share, of_x.data_ptr(),
        codes.slices,
    )  # fmt: skip
    return of_x.to(x.dtype)


class _Codes:
    """What both C functions are told about the codes."""

    def __init__(
        self, x: torch.Tensor, group_bits: int, temperature: float, per_group: bool
    ) -> None:
        self.groups = x.shape[-1] // group_bits
        self.rows, self.tokens, stride = as_rows(x.float())  # kept: the arguments hold its address
        self.low_bits, self.high_bits = (group_bits + 1) // 2, group_bits // 2
        self.low, self.high = max(2**self.low_bits, _PAD), max(2**self.high_bits, _PAD)
        self.tables = self.groups if per_group else 1
        self.arguments = (
            self.rows.data_ptr(), stride, self.tokens, self.groups, group_bits, 4 / temperature,
            int(per_group),
        )  # fmt: skip
        work = self.tokens * self.groups * self.low * self.high
        self.slices = max(1, min(torch.get_num_threads(), work // _GRAIN))


def _forward(codes: _Codes) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean entropy of a code, and the distribution [G or 1, high codes, low codes], in float64."""
    sums = torch.zeros(codes.slices, codes.tables, codes.high, codes.low)
    entropy = torch.zeros(codes.slices, dtype=torch.float64)
    _native.cpu.lfq_entropy(*codes.arguments, sums.data_ptr(), entropy.data_ptr(), codes.slices)
    p = sums.double().sum(0)[:, : 2**codes.high_bits, : 2**codes.low_bits]
    parts = codes.tokens * codes.groups
    return entropy.sum() / parts, p / (parts // codes.tables)
