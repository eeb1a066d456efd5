"""lfq_entropy in Triton: half-code tables in registers, a tile of tokens at a time."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from bitdance_kernels._shared import triton_support
from bitdance_kernels._shared.rows import as_rows
from bitdance_kernels.binary.lfq_entropy.reference import odds_scale

_TOKENS = 32
# Codes of one half in a tile of the distribution; a product needs at least 16.
_MIN_CODES, _MAX_CODES = 16, 64
_PROGRAMS = 512
_VALUES = 1024  # per program of the bits' entropy


@triton.jit
def _log_odds(x, scale):
    """Clamp logits where a bit is decided, since infinity times 0 is NaN."""
    logit = x.to(tl.float32) * scale
    logit = tl.where(logit > 200.0, 200.0, logit)
    return tl.where(logit < -200.0, -200.0, logit)


@triton.jit
def _odds(logit):
    """exp(-|l|), and the probabilities of 1 and of 0."""
    power = tl.exp(-tl.abs(logit))
    likely = 1.0 / (1.0 + power)
    unlikely = power * likely
    return power, tl.where(logit > 0, likely, unlikely), tl.where(logit > 0, unlikely, likely)


@triton.jit
def _half_codes(
    x_ptr, token, inside, x_stride, channel, scale, codes, BITS: tl.constexpr
):  # fmt: skip
    """[tokens, codes]: probability of codes `codes` of the BITS channels from `channel` on."""
    real = inside[:, None] & (codes < (1 << BITS))[None, :]
    p = tl.where(real, 1.0, 0.0)
    for bit in tl.static_range(BITS):
        x = tl.load(x_ptr + (token * x_stride + (channel + bit)), mask=inside, other=0.0)
        _, one, zero = _odds(x.to(tl.float32) * scale)
        p *= tl.where(((codes >> bit) & 1)[None, :] == 1, one[:, None], zero[:, None])
    return p


@triton.jit
def _lfq_entropy_distribution_kernel(
    x_ptr, sums_ptr, tokens, x_stride, groups, scale, trips,
    PER_GROUP: tl.constexpr, LOW_BITS: tl.constexpr, HIGH_BITS: tl.constexpr, LOW: tl.constexpr,
    HIGH: tl.constexpr, TOKENS: tl.constexpr,
):  # fmt: skip
    """Sums [pieces, groups or 1, 2^HIGH_BITS, 2^LOW_BITS], summed over `trips` tiles of tokens."""
    BITS: tl.constexpr = LOW_BITS + HIGH_BITS
    LOW_CODES: tl.constexpr = 1 << LOW_BITS
    HIGH_CODES: tl.constexpr = 1 << HIGH_BITS
    tiles = tl.cdiv(LOW_CODES, LOW)
    low_codes = tl.program_id(0) % tiles * LOW + tl.arange(0, LOW)
    high_codes = tl.program_id(0) // tiles * HIGH + tl.arange(0, HIGH)
    table = tl.program_id(1).to(tl.int64)
    piece = tl.program_id(2).to(tl.int64)
    sums = tl.zeros([HIGH, LOW], tl.float32)
    for trip in range(trips):
        token = (piece * trips + trip) * TOKENS + tl.arange(0, TOKENS)
        inside = token < tokens
        for i in range(1 if PER_GROUP else groups):
            channel = (table + i) * BITS
            low = _half_codes(x_ptr, token, inside, x_stride, channel, scale, low_codes, LOW_BITS)
            high = _half_codes(
                x_ptr, token, inside, x_stride, channel + LOW_BITS, scale, high_codes, HIGH_BITS
            )
            sums = tl.dot(tl.trans(high), low, sums, input_precision="ieee")
    start = (piece * tl.num_programs(1) + table) * (HIGH_CODES * LOW_CODES)
    at = start + (high_codes.to(tl.int64)[:, None] * LOW_CODES + low_codes[None, :])
    real = (high_codes < HIGH_CODES)[:, None] & (low_codes < LOW_CODES)[None, :]
    tl.store(sums_ptr + at, sums, mask=real)


@triton.jit
def _lfq_entropy_bits_kernel(
    x_ptr, sums_ptr, values, row_values, x_stride, scale, VALUES: tl.constexpr
):
    """The sum of the entropies of VALUES bits."""
    program = tl.program_id(0).to(tl.int64)
    value = program * VALUES + tl.arange(0, VALUES)
    at = value // row_values * x_stride + value % row_values
    inside = value < values
    logit = _log_odds(tl.load(x_ptr + at, mask=inside, other=0.0), scale)
    power, _, _ = _odds(logit)
    # log(1 + e) = 2 atanh(e / (2 + e)) by its series, which is exact for tiny e.
    z = power / (2.0 + power)
    q = z * z
    series = 1.0 / 15.0
    for i in tl.static_range(7):
        series = series * q + 1.0 / (13.0 - 2.0 * i)
    entropy = 2.0 * z * series + tl.abs(logit) * (power / (1.0 + power))
    tl.store(sums_ptr + program, tl.sum(tl.where(inside, entropy, 0.0), axis=0))


@triton.jit
def _store_half(
    x_ptr, grad_x_ptr, token, inside, x_stride, channels, channel, scale, share, ones, total,
    BITS: tl.constexpr,
):  # fmt: skip
    """grad_logit = sum of u over the codes with the bit - P(1) sum of u, for BITS channels."""
    bit = tl.arange(0, 16)
    real = inside[:, None] & (bit < BITS)[None, :]
    at = token[:, None] * x_stride + (channel + bit)[None, :]
    logit = _log_odds(tl.load(x_ptr + at, mask=real, other=0.0), scale)
    _, one, zero = _odds(logit)
    both = one * zero
    # A decided bit has no gradient unless it is NaN; the scale would magnify rounding errors.
    grad_logit = ones - one * total[:, None] - share * logit * both
    grad_x = grad_logit * tl.where(both == 0.0, 0.0, scale)
    at = token[:, None] * channels + (channel + bit)[None, :]
    tl.store(grad_x_ptr + at, grad_x.to(grad_x_ptr.dtype.element_ty), mask=real)


@triton.jit
def _bits_of(codes):
    """float32 [codes, 16]: the bits of each code."""
    return ((codes[:, None] >> tl.arange(0, 16)[None, :]) & 1).to(tl.float32)


@triton.jit
def _lfq_entropy_backward_kernel(
    x_ptr, grad_p_ptr, share_ptr, grad_x_ptr, tokens, x_stride, channels, scale,
    PER_GROUP: tl.constexpr, LOW_BITS: tl.constexpr, HIGH_BITS: tl.constexpr, LOW: tl.constexpr,
    TOKENS: tl.constexpr,
):  # fmt: skip
    """With u(c) = p(c) grad_p(c): two products with grad_p give u's sums over either half."""
    BITS: tl.constexpr = LOW_BITS + HIGH_BITS
    LOW_CODES: tl.constexpr = 1 << LOW_BITS
    HIGH_CODES: tl.constexpr = 1 << HIGH_BITS
    HIGH: tl.constexpr = 16
    group = tl.program_id(1).to(tl.int64)
    channel = group * BITS
    token = tl.program_id(0).to(tl.int64) * TOKENS + tl.arange(0, TOKENS)
    inside = token < tokens
    if PER_GROUP:
        grad_p_ptr += group * (HIGH_CODES * LOW_CODES)
    low_codes = tl.arange(0, LOW)
    low = _half_codes(x_ptr, token, inside, x_stride, channel, scale, low_codes, LOW_BITS)
    weighted_low = tl.zeros([TOKENS, LOW], tl.float32)
    high_ones = tl.zeros([TOKENS, 16], tl.float32)
    high_total = tl.zeros([TOKENS], tl.float32)
    for first in range(0, HIGH_CODES, HIGH):
        high_codes = first + tl.arange(0, HIGH)
        high = _half_codes(
            x_ptr, token, inside, x_stride, channel + LOW_BITS, scale, high_codes, HIGH_BITS
        )
        at = high_codes.to(tl.int64)[:, None] * LOW_CODES + low_codes[None, :]
        real = (high_codes < HIGH_CODES)[:, None] & (low_codes < LOW_CODES)[None, :]
        grad_p = tl.load(grad_p_ptr + at, mask=real, other=0.0)
        weighted_low = tl.dot(high, grad_p, weighted_low, input_precision="ieee")
        u = high * tl.dot(low, tl.trans(grad_p), input_precision="ieee")
        high_ones = tl.dot(u, _bits_of(high_codes), high_ones, input_precision="ieee")
        high_total += tl.sum(u, axis=1)
    u = low * weighted_low
    low_ones = tl.dot(u, _bits_of(low_codes), input_precision="ieee")
    share = tl.load(share_ptr)
    _store_half(
        x_ptr, grad_x_ptr, token, inside, x_stride, channels, channel, scale, share, low_ones,
        tl.sum(u, axis=1), LOW_BITS,
    )  # fmt: skip
    _store_half(
        x_ptr, grad_x_ptr, token, inside, x_stride, channels, channel + LOW_BITS, scale, share,
        high_ones, high_total, HIGH_BITS,
    )  # fmt: skip


def unsupported(x: torch.Tensor, *_: object) -> str | None:
    return triton_support.unsupported(x)


def run(
    x: torch.Tensor, group_bits: int, temperature: float, per_group: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    p = _distribution(x, group_bits, temperature, per_group)
    rows, tokens, stride = as_rows(x)
    values = x.numel()
    programs = triton.cdiv(values, _VALUES)
    sums = torch.empty(programs, dtype=torch.float32, device=x.device)
    if values:
        with triton_support.on_device(x):
            _lfq_entropy_bits_kernel[(programs,)](
                rows,
                sums,
                values,
                x.shape[-1],
                stride,
                odds_scale(temperature, torch.float32),
                VALUES=_VALUES,
            )
    per_sample = sums.sum(dtype=torch.float64) / (tokens * (x.shape[-1] // group_bits))
    return per_sample.to(x.dtype), p


def unsupported_backward(
    grad_sample: torch.Tensor, grad_p: torch.Tensor, x: torch.Tensor, *settings: object
) -> str | None:
    return triton_support.unsupported(x)  # grad_p is float64


def run_backward(
    grad_sample: torch.Tensor,
    grad_p: torch.Tensor,
    x: torch.Tensor,
    group_bits: int,
    temperature: float,
    per_group: bool,
) -> torch.Tensor:
    grad_x = x.new_empty(x.shape)
    if x.numel() == 0:
        return grad_x
    rows, tokens, stride = as_rows(x)
    groups = x.shape[-1] // group_bits
    grad_p = (grad_p / (tokens * groups // len(grad_p))).float()
    share = grad_sample.float() / (tokens * groups)
    low_bits = (group_bits + 1) // 2
    with triton_support.on_device(x):
        _lfq_entropy_backward_kernel[(triton.cdiv(tokens, _TOKENS), groups)](
            rows, grad_p.contiguous(), share, grad_x, tokens, stride, x.shape[-1],
            odds_scale(temperature, torch.float32), PER_GROUP=per_group, LOW_BITS=low_bits,
            HIGH_BITS=group_bits // 2, LOW=max(2**low_bits, _MIN_CODES), TOKENS=_TOKENS,
        )  # fmt: skip
    return grad_x


def _distribution(
    x: torch.Tensor, group_bits: int, temperature: float, per_group: bool
) -> torch.Tensor:
    """float64 [G or 1, high codes, low codes]."""
    rows, tokens, stride = as_rows(x)
    groups = x.shape[-1] // group_bits
    tables = groups if per_group else 1
    low_bits, high_bits = (group_bits + 1) // 2, group_bits // 2
    low, high = (min(max(2**bits, _MIN_CODES), _MAX_CODES) for bits in (low_bits, high_bits))
    tiles = triton.cdiv(2**low_bits, low) * triton.cdiv(2**high_bits, high)
    blocks = triton.cdiv(tokens, _TOKENS)
    trips = max(triton.cdiv(blocks, max(_PROGRAMS // (tiles * tables), 1)), 1)
    pieces = max(triton.cdiv(blocks, trips), 1)
    shape = (pieces, tables, 2**high_bits, 2**low_bits)
    sums = torch.empty(shape, dtype=torch.float32, device=x.device)
    with triton_support.on_device(x):
        _lfq_entropy_distribution_kernel[(tiles, tables, pieces)](
            rows, sums, tokens, stride, groups, odds_scale(temperature, torch.float32), trips,
            PER_GROUP=per_group, LOW_BITS=low_bits, HIGH_BITS=high_bits, LOW=low, HIGH=high,
            TOKENS=_TOKENS,
        )  # fmt: skip
    return sums.sum(0, dtype=torch.float64) / (tokens * groups // tables)
