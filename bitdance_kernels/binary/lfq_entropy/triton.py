"""lfq_entropy in Triton: three launches forward, one backward.

The first goes through the tokens, a tile at a time with half-code tables in registers, and writes
partial sums of P and of the bits' entropies. The second adds up P and writes partial sums of its
terms; the third adds those up and writes both entropies and the derivative of the codebook's.
"""

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
# Codes of a program of the second and of the third launch, and sums that it adds up at a time.
_MEAN_CODES, _SLOPE_CODES, _PIECES = 16, 256, 64


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
def _bit_entropies(x_ptr, token, inside, x_stride, channel, scale, BITS: tl.constexpr):
    """float64 [tokens]: the sum of the entropies of the BITS channels from `channel` on."""
    bit = tl.arange(0, 16)
    real = inside[:, None] & (bit < BITS)[None, :]
    at = token[:, None] * x_stride + (channel + bit)[None, :]
    logit = _log_odds(tl.load(x_ptr + at, mask=real, other=0.0), scale)
    power, _, _ = _odds(logit)
    # log(1 + e) = 2 atanh(e / (2 + e)) by its series, which is exact for tiny e.
    z = power / (2.0 + power)
    q = z * z
    series = 1.0 / 15.0
    for i in tl.static_range(7):
        series = series * q + 1.0 / (13.0 - 2.0 * i)
    entropy = 2.0 * z * series + tl.abs(logit) * (power / (1.0 + power))
    return tl.sum(tl.where(real, entropy, 0.0), axis=1).to(tl.float64)


@triton.jit
def _lfq_entropy_distribution_kernel(
    x_ptr, sums_ptr, entropies_ptr, tokens, x_stride, groups, scale, trips,
    PER_GROUP: tl.constexpr, LOW_BITS: tl.constexpr, HIGH_BITS: tl.constexpr, LOW: tl.constexpr,
    HIGH: tl.constexpr, TOKENS: tl.constexpr,
):  # fmt: skip
    """Sums [pieces, groups or 1, 2^HIGH_BITS, 2^LOW_BITS], summed over `trips` tiles of tokens.

    The programs of the first tile of codes sum the bits' entropies too, [pieces, groups or 1].
    """
    BITS: tl.constexpr = LOW_BITS + HIGH_BITS
    LOW_CODES: tl.constexpr = 1 << LOW_BITS
    HIGH_CODES: tl.constexpr = 1 << HIGH_BITS
    tiles = tl.cdiv(LOW_CODES, LOW)
    low_codes = tl.program_id(0) % tiles * LOW + tl.arange(0, LOW)
    high_codes = tl.program_id(0) // tiles * HIGH + tl.arange(0, HIGH)
    table = tl.program_id(1).to(tl.int64)
    piece = tl.program_id(2).to(tl.int64)
    if tl.program_id(0) == 0:
        entropies = tl.zeros([TOKENS], tl.float64)
        for trip in range(trips):
            token = (piece * trips + trip) * TOKENS + tl.arange(0, TOKENS)
            for i in range(1 if PER_GROUP else groups):
                entropies += _bit_entropies(
                    x_ptr, token, token < tokens, x_stride, (table + i) * BITS, scale, BITS
                )
        at = piece * tl.num_programs(1) + table
        tl.store(entropies_ptr + at, tl.sum(entropies, axis=0))
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
def _add_up(at, stride, count, codes, real, PIECES: tl.constexpr, CODES: tl.constexpr):
    """float64 [CODES]: the sum of `count` rows, `stride` apart."""
    total = tl.zeros([CODES], tl.float64)
    for first in range(0, count, PIECES):
        row = first + tl.arange(0, PIECES)
        inside = (row < count)[:, None] & real[None, :]
        part = tl.load(at + (row.to(tl.int64)[:, None] * stride + codes[None, :]), inside, 0.0)
        total += tl.sum(part.to(tl.float64), axis=0)
    return total


@triton.jit
def _log_and_share(p, EPS: tl.constexpr):
    """log(P + eps) and P / (P + eps) in float64, to which a number that is no constant is not."""
    wide = p + EPS
    return tl.log(wide), p / wide


@triton.jit
def _lfq_entropy_mean_kernel(
    sums_ptr, p_ptr, terms_ptr, pieces, parts, codes,
    EPS: tl.constexpr, PIECES: tl.constexpr, CODES: tl.constexpr,
):  # fmt: skip
    """P of CODES codes, and over these the sums of P, P log(P + eps) and P^2 / (P + eps)."""
    block = tl.program_id(0).to(tl.int64)
    table = tl.program_id(1).to(tl.int64)
    code = block * CODES + tl.arange(0, CODES)
    real = code < codes
    stride = tl.num_programs(1).to(tl.int64) * codes
    total = _add_up(sums_ptr + table * codes, stride, pieces, code, real, PIECES, CODES)
    p = total / parts
    tl.store(p_ptr + (table * codes + code), p, mask=real)
    log, share = _log_and_share(p, EPS)
    at = (table * tl.num_programs(0) + block) * 3
    tl.store(terms_ptr + at, tl.sum(tl.where(real, p, 0.0), axis=0))
    tl.store(terms_ptr + (at + 1), tl.sum(tl.where(real, p * log, 0.0), axis=0))
    tl.store(terms_ptr + (at + 2), tl.sum(tl.where(real, p * share, 0.0), axis=0))


@triton.jit
def _lfq_entropy_slope_kernel(
    p_ptr, terms_ptr, entropies_ptr, slope_ptr, codebook_ptr, per_sample_ptr, blocks, pieces,
    samples, codes,
    EPS: tl.constexpr, PIECES: tl.constexpr, CODES: tl.constexpr,
):  # fmt: skip
    """The derivative of the codebook's entropy in P, for CODES codes, and both entropies."""
    block = tl.program_id(0)
    table = tl.program_id(1).to(tl.int64)
    term = tl.arange(0, 4)
    sums = _add_up(terms_ptr + table * blocks * 3, 3, blocks, term, term < 3, PIECES, 4)
    total = tl.sum(tl.where(term == 0, sums, 0.0), axis=0)
    logs = tl.sum(tl.where(term == 1, sums, 0.0), axis=0)
    constant = tl.sum(tl.where(term > 0, sums, 0.0), axis=0)
    if block == 0:
        codebook = constant * (total - 1.0) - logs
        tl.store(codebook_ptr + table, codebook.to(tl.float32).to(codebook_ptr.dtype.element_ty))
        if table == 0:
            one = tl.arange(0, 1)
            entropy = tl.sum(_add_up(entropies_ptr, 1, pieces, one, one < 1, PIECES, 1), axis=0)
            per_sample = (entropy / samples).to(tl.float32)
            tl.store(per_sample_ptr, per_sample.to(per_sample_ptr.dtype.element_ty))
    code = block.to(tl.int64) * CODES + tl.arange(0, CODES)
    real = code < codes
    log, share = _log_and_share(tl.load(p_ptr + (table * codes + code), real, 0.0), EPS)
    tl.store(slope_ptr + (table * codes + code), (constant - log - share).to(tl.float32), mask=real)


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
    x_ptr, grad_sample_ptr, grad_codebook_ptr, slope_ptr, grad_x_ptr, tokens, x_stride, channels,
    codebook_stride, samples, parts, scale,
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
        slope_ptr += group * (HIGH_CODES * LOW_CODES)
        grad_codebook_ptr += group * codebook_stride
    low_codes = tl.arange(0, LOW)
    low = _half_codes(x_ptr, token, inside, x_stride, channel, scale, low_codes, LOW_BITS)
    weighted_low = tl.zeros([TOKENS, LOW], tl.float32)
    high_ones = tl.zeros([TOKENS, 16], tl.float32)
    high_total = tl.zeros([TOKENS], tl.float32)
    weight = tl.load(grad_codebook_ptr).to(tl.float32) / parts
    for first in range(0, HIGH_CODES, HIGH):
        high_codes = first + tl.arange(0, HIGH)
        high = _half_codes(
            x_ptr, token, inside, x_stride, channel + LOW_BITS, scale, high_codes, HIGH_BITS
        )
        at = high_codes.to(tl.int64)[:, None] * LOW_CODES + low_codes[None, :]
        real = (high_codes < HIGH_CODES)[:, None] & (low_codes < LOW_CODES)[None, :]
        grad_p = tl.load(slope_ptr + at, mask=real, other=0.0).to(tl.float32) * weight
        weighted_low = tl.dot(high, grad_p, weighted_low, input_precision="ieee")
        u = high * tl.dot(low, tl.trans(grad_p), input_precision="ieee")
        high_ones = tl.dot(u, _bits_of(high_codes), high_ones, input_precision="ieee")
        high_total += tl.sum(u, axis=1)
    u = low * weighted_low
    low_ones = tl.dot(u, _bits_of(low_codes), input_precision="ieee")
    share = tl.load(grad_sample_ptr).to(tl.float32) / samples
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
    x: torch.Tensor, group_bits: int, temperature: float, eps: float, per_group: bool
) -> tuple[torch.Tensor, ...]:
    rows, tokens, stride = as_rows(x)
    groups = x.shape[-1] // group_bits
    tables = groups if per_group else 1
    low_bits, high_bits = (group_bits + 1) // 2, group_bits // 2
    low, high = (min(max(2**bits, _MIN_CODES), _MAX_CODES) for bits in (low_bits, high_bits))
    tiles = triton.cdiv(2**low_bits, low) * triton.cdiv(2**high_bits, high)
    token_blocks = triton.cdiv(tokens, _TOKENS)
    trips = max(triton.cdiv(token_blocks, max(_PROGRAMS // (tiles * tables), 1)), 1)
    pieces = max(triton.cdiv(token_blocks, trips), 1)
    codes = 2**group_bits
    blocks = triton.cdiv(codes, _MEAN_CODES)
    samples, parts = tokens * groups, tokens * groups // tables

    sums = x.new_empty((pieces, tables, codes), dtype=torch.float32)
    entropies = x.new_empty(pieces * tables, dtype=torch.float64)
    terms = x.new_empty((tables, blocks, 3), dtype=torch.float64)
    p = x.new_empty((tables, 2**high_bits, 2**low_bits), dtype=torch.float64)
    slope = torch.empty_like(p, dtype=torch.float32)
    per_sample, codebook = x.new_empty(()), x.new_empty((groups,) if per_group else ())
    with triton_support.on_device(x):
        _lfq_entropy_distribution_kernel[(tiles, tables, pieces)](
            rows, sums, entropies, tokens, stride, groups, odds_scale(temperature, torch.float32),
            trips, PER_GROUP=per_group, LOW_BITS=low_bits, HIGH_BITS=high_bits, LOW=low, HIGH=high,
            TOKENS=_TOKENS,
        )  # fmt: skip
        _lfq_entropy_mean_kernel[(blocks, tables)](
            sums, p, terms, pieces, parts, codes, EPS=eps, PIECES=_PIECES, CODES=_MEAN_CODES
        )
        _lfq_entropy_slope_kernel[(triton.cdiv(codes, _SLOPE_CODES), tables)](
            p, terms, entropies, slope, codebook, per_sample, blocks, pieces * tables, samples,
            codes, EPS=eps, PIECES=_PIECES, CODES=_SLOPE_CODES,
        )  # fmt: skip
    return per_sample, codebook, p, slope


def unsupported_backward(
    grad_sample: torch.Tensor,
    grad_codebook: torch.Tensor,
    slope: torch.Tensor,
    x: torch.Tensor,
    *_: object,
) -> str | None:
    return triton_support.unsupported(x, grad_sample, grad_codebook, slope)


def run_backward(
    grad_sample: torch.Tensor,
    grad_codebook: torch.Tensor,
    slope: torch.Tensor,
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
    samples, low_bits = tokens * groups, (group_bits + 1) // 2
    with triton_support.on_device(x):
        _lfq_entropy_backward_kernel[(triton.cdiv(tokens, _TOKENS), groups)](
            rows, grad_sample, grad_codebook, slope.contiguous(), grad_x, tokens, stride,
            x.shape[-1], grad_codebook.stride(0) if per_group else 0, samples,
            samples // len(slope), odds_scale(temperature, torch.float32), PER_GROUP=per_group,
            LOW_BITS=low_bits, HIGH_BITS=group_bits // 2, LOW=max(2**low_bits, _MIN_CODES),
            TOKENS=_TOKENS,
        )  # fmt: skip
    return grad_x
