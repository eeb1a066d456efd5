"""Random calls of every op that has a backend for cards, by seed.

The sizes of a call depend on its op and seed, its values also on a repeat: calls of one seed differ
in nothing but their values. All are made on the CPU, so a seed means the same on every device.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

import bitdance_kernels as kernels
from bitdance_kernels._shared import moments
from bitdance_kernels.testing import Call, specials
from tests.cases.denoise_patch import head_call
from tests.cases.rope import table

CPU = torch.device("cpu")
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
HALVES = DTYPES[1:]
# Sides of the borders of tiles, of warps and of vectors.
_COUNTS = (1, 2, 3, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 48, 63, 64, 65, 96, 127, 128, 129, 200, 257)
LARGEST = _COUNTS[-1]
FEW = 9
"""As the largest count: what an interpreter can do in a second."""


class Draw:
    """Sizes and values of one call.

    Attributes:
        dtype: the main one of the call.
        sizes: source of sizes and choices.
        values: source of values.
        largest: bound of every count.
    """

    def __init__(self, op: str, seed: int, repeat: int = 0, largest: int = LARGEST) -> None:
        self.largest = largest
        self.sizes = random.Random(f"{op} {seed}")
        source = zlib.crc32(f"{op} {seed} {repeat}".encode())
        self.values = torch.Generator(device=CPU).manual_seed(source)
        self.dtype = self.pick(*DTYPES)

    def pick(self, *choices: Any) -> Any:
        """One of `choices`."""
        return self.sizes.choice(choices)

    def count(self, most: int, least: int = 1) -> int:
        """A number near a border."""
        most = max(min(most, self.largest), least)
        return int(self.pick(*(n for n in _COUNTS if least <= n <= most)))

    def rows(self, most: int = 257) -> tuple[int, ...]:
        """Leading sizes of rows, of one dimension or two."""
        if self.pick(True, False):
            return (self.count(most),)
        first = self.count(min(most, 5))
        return first, self.count(max(most // first, 1))

    def randn(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        """Normal values, of the main dtype unless another is given."""
        drawn = torch.randn(shape, generator=self.values, dtype=torch.float32, device=CPU)
        return drawn.to(dtype or self.dtype)

    def bytes(self, *shape: int) -> Tensor:
        """Packed codes."""
        return torch.randint(256, shape, generator=self.values, dtype=torch.uint8, device=CPU)

    def uniform(self, *shape: int) -> Tensor:
        """Values in [0, 1)."""
        return torch.rand(shape, generator=self.values, dtype=torch.float32, device=CPU)

    def special(self, *shape: int) -> Tensor:
        """Normal values, and every fifth one a zero, a NaN, an infinity or an extreme."""
        x = self.randn(*shape)
        fifth = x.view(-1)[::5]
        odd = torch.tensor(specials(x.dtype), dtype=x.dtype, device=CPU)
        fifth.copy_(odd.repeat(-(-len(fifth) // len(odd)) or 1)[: len(fifth)])
        return x

    def layer(self, features: int, channels: int) -> tuple[Tensor, Tensor]:
        """Weight [features, channels] and bias of a linear layer."""
        weight = (self.randn(features, channels, dtype=torch.float32) / channels**0.5).to(
            self.dtype
        )
        return weight, self.randn(features)

    def packed(self, weight: Tensor, layout: str = "rows", head_dim: int | None = None) -> Tensor:
        """`weight` for tensor cores, in its dtype or in float8."""
        if self.pick(True, True, False):
            return kernels.pack_weight(weight, layout, head_dim=head_dim)
        values, scales = kernels.quantize_rows(weight)
        return kernels.pack_weight(values, layout, head_dim=head_dim, scales=scales)

    def product(self) -> tuple[tuple[int, ...], int, int]:
        """Rows, channels and features of a product of few rows, in half precision."""
        self.dtype = self.pick(*HALVES)
        return self.rows(128), 16 * self.count(33), 16 * self.count(17, 2)

    def maybe(self, value: Any) -> Any:
        """`value` or None."""
        return self.pick(value, None)


Arguments = tuple[tuple[Any, ...], dict[str, Any]]


def _pack_signs(draw: Draw) -> Arguments:
    shape = *draw.rows(), 8 * draw.count(33)
    if draw.pick(True, True, False):
        return (draw.special(*shape),), {}
    return (draw.bytes(*shape) * (draw.bytes(*shape) > 99),), {}


def _unpack_signs(draw: Draw) -> Arguments:
    return (draw.bytes(*draw.rows(), draw.count(33)), draw.dtype), {}


def _flip_bits(draw: Draw) -> Arguments:
    seeds = {"seed": draw.sizes.getrandbits(62), "offset": draw.sizes.getrandbits(32)}
    return (draw.bytes(*draw.rows(), draw.count(33)), draw.pick(0.0, 0.1, 0.3, 1.0)), seeds


def _flip_signs(draw: Draw) -> Arguments:
    x = draw.randn(*draw.rows(), 8 * draw.count(17))
    return (x, draw.pick(0.1, 0.3, 1.0)), {"seed": draw.sizes.getrandbits(62)}


def _hamming_distance(draw: Draw) -> Arguments:
    width = draw.count(65)
    return (draw.bytes(draw.count(129), width), draw.bytes(draw.count(257), width)), {}


def _nearest_codes(draw: Draw) -> Arguments:
    width, codes = draw.count(33), draw.count(257)
    a, b = draw.bytes(draw.count(65), width), draw.bytes(codes, width)
    return (a, b, draw.count(min(codes, 33))), {}


def _bit_counts(draw: Draw) -> Arguments:
    return (draw.bytes(*draw.rows(), draw.count(33)),), {}


def _packed_linear(draw: Draw) -> Arguments:
    width, features = draw.count(9), draw.count(65, 8)
    weight, bias = draw.layer(features, 8 * width)
    return (draw.bytes(*draw.rows(129), width), weight, draw.maybe(bias)), {}


def _lfq_quantize(draw: Draw) -> Arguments:
    return (draw.special(*draw.rows(), 8 * draw.count(17)),), {}


def _commitment(draw: Draw) -> Arguments:
    return (draw.randn(*draw.rows(), 8 * draw.count(17)),), {}


def _lfq_entropy(draw: Draw) -> Arguments:
    bits, groups = draw.count(9), draw.count(3)
    x = 0.02 * draw.randn(*draw.rows(129), bits * groups, dtype=torch.float32)
    return (x.to(draw.dtype), bits), {"per_group": draw.pick(True, False)}


def _swiglu(draw: Draw) -> Arguments:
    return (3 * draw.randn(*draw.rows(), 2 * draw.count(257)),), {}


def _streams(draw: Draw, count: int) -> list[Tensor]:
    shape = *draw.rows(), draw.pick(draw.count(257), 8 * draw.count(129))
    return [draw.randn(*shape) for _ in range(count)]


def _adaln_norm(draw: Draw) -> Arguments:
    rows = _streams(draw, 3)
    vectors = [draw.randn(rows[0].shape[-1], dtype=torch.float32) for _ in range(2)]
    return (*rows, *draw.pick(vectors, vectors[:1], [])), {}


def _gated_residual(draw: Draw) -> Arguments:
    return tuple(_streams(draw, 3)), {}


def _gated_residual_adaln(draw: Draw) -> Arguments:
    return tuple(_streams(draw, 5)), {}


def _linear(draw: Draw) -> Arguments:
    rows, channels, features = draw.product()
    weight, bias = draw.layer(features, channels)
    return (draw.randn(*rows, channels), draw.packed(weight), draw.maybe(bias)), {}


def _linear_swiglu(draw: Draw) -> Arguments:
    rows, channels, features = draw.product()
    weight, bias = draw.layer(features, channels)
    return (draw.randn(*rows, channels), draw.packed(weight, "swiglu"), draw.maybe(bias)), {}


def _linear_gated_residual(draw: Draw) -> Arguments:
    rows, channels, features = draw.product()
    weight, bias = draw.layer(features, channels)
    residual, gate = draw.randn(*rows, features), draw.randn(*rows, features)
    args = draw.randn(*rows, channels), draw.packed(weight), draw.maybe(bias), residual
    return (*args, draw.maybe(gate)), {"return_moments": draw.pick(True, False)}


def _linear_fp8(draw: Draw) -> Arguments:
    channels, features = 16 * draw.count(17), 16 * draw.count(9)
    weight, bias = draw.layer(features, channels)
    args = draw.randn(*draw.rows(65), channels), *kernels.quantize_rows(weight.float()), bias
    return args, {"quantize_x": draw.pick(True, False)}


def _adaln_linear(draw: Draw, layout: str = "rows") -> Arguments:
    rows, channels, features = draw.product()
    weight, bias = draw.layer(features, channels)
    x, scale, shift = (draw.randn(*rows, channels) for _ in range(3))
    norm = draw.pick((), (draw.randn(channels), draw.randn(channels)))
    given = {"moments": moments.of(x)} if draw.pick(True, False) else {}
    return (x, scale, shift, draw.packed(weight, layout), draw.maybe(bias), *norm), given


def _rms_norm_linear(draw: Draw, layout: str = "rows") -> Arguments:
    rows, channels, features = draw.product()
    weight, bias = draw.layer(features, channels)
    x = draw.randn(*rows, channels)
    given = {"moments": moments.of(x)} if draw.pick(True, False) else {}
    norm = draw.maybe(draw.randn(channels, dtype=draw.pick(draw.dtype, torch.float32)))
    return (x, draw.packed(weight, layout), draw.maybe(bias), norm), given


def _heads(draw: Draw) -> tuple[int, int]:
    """Heads of queries, and of keys and values."""
    few = draw.count(3)
    return few * draw.pick(1, 2, 3), few


def _cache(draw: Draw, rows: int, capacity: int, heads: int, dim: int) -> list[Tensor]:
    """Caches of keys and values; nobody has filled them."""
    nothing = torch.full((rows, capacity, heads, dim), torch.nan, dtype=draw.dtype, device=CPU)
    return [nothing, nothing.clone()]


def _positions(draw: Draw, rows: int, last: int) -> Tensor:
    drawn = torch.randint(last + 1, (rows,), generator=draw.values, dtype=torch.int32, device=CPU)
    return drawn


def _rms_norm_qkv(draw: Draw) -> Arguments:
    draw.dtype = draw.pick(*HALVES)
    (H, Hkv), D = _heads(draw), 16 * draw.count(8)
    rows, new, capacity, channels = draw.count(3), draw.count(17), 21 + draw.count(33), 16 * 7
    weight, _ = draw.layer((H + 2 * Hkv) * D, channels)
    interleaved = draw.pick(True, False)
    layout, head_dim = ("rope", None) if interleaved else ("rope_half", D)
    caches = _cache(draw, rows, capacity, Hkv, D)
    freqs = table(capacity, D, CPU, generator=draw.values)
    position = _positions(draw, rows, capacity - new)
    named = {"num_heads": H, "num_kv_heads": Hkv, "interleaved": interleaved}
    if not interleaved:
        named |= {"q_norm": draw.randn(D), "k_norm": draw.randn(D, dtype=torch.float32)}
    x, packed = draw.randn(rows, new, channels), draw.packed(weight, layout, head_dim)
    return (x, packed, draw.randn(channels), *caches, position, freqs), named


def _rope_append(draw: Draw) -> Arguments:
    (H, Hkv), D = _heads(draw), 8 * draw.count(16)
    rows, new, capacity = draw.count(3), draw.count(33), 33 + draw.count(65)
    qkv = draw.randn(rows, new, (H + 2 * Hkv) * D)
    caches = _cache(draw, rows, capacity, Hkv, D)
    freqs = table(capacity, D, CPU, generator=draw.values)
    named: dict[str, Any] = {"num_heads": H, "num_kv_heads": Hkv}
    named["interleaved"] = draw.pick(True, False)
    if draw.pick(True, False):
        named |= {"q_norm": draw.randn(D), "k_norm": draw.randn(D)}
    return (qkv, *caches, _positions(draw, rows, capacity - new), freqs), named


def _rope(draw: Draw) -> Arguments:
    shape = draw.count(3), draw.count(33), draw.count(9), 2 * draw.count(64)
    freqs = table(shape[1], shape[3], CPU, generator=draw.values)
    return (draw.randn(*shape), freqs), {"interleaved": draw.pick(True, False)}


def _patch_attention(draw: Draw) -> Arguments:
    heads, dim = draw.count(3), 4 * draw.count(17)
    return (draw.randn(draw.count(33), draw.count(64), 3 * heads * dim), heads), {}


def _block_causal_attention(draw: Draw) -> Arguments:
    (H, Hkv), D = _heads(draw), draw.pick(8 * draw.count(16), draw.count(65))
    rows = draw.count(2)
    made = kernels.block_causal_ranges(draw.count(17), draw.count(9), draw.count(17), device=CPU)
    tokens = len(made.start)
    keys = (draw.randn(rows, tokens, Hkv, D) for _ in range(2))
    return (draw.randn(rows, tokens, H, D), *keys, made), {}


def _block_decode_attention(draw: Draw) -> Arguments:
    (H, Hkv), D = _heads(draw), 8 * draw.count(16)
    rows, new, capacity = draw.count(3), draw.count(17), draw.count(257) + draw.count(129)
    lengths = _positions(draw, rows, capacity)
    caches = [draw.randn(rows, capacity, Hkv, D) for _ in range(2)]
    for row, length in enumerate(lengths.tolist()):
        for cache in caches:
            cache[row, length:] = torch.nan
    return (draw.randn(rows, new, H, D), *caches, lengths), {}


def _steps(draw: Draw, rows: int, steps: int) -> tuple[Tensor, Tensor, Tensor]:
    """A table of steps, the number of one, and the keys of the noise of `rows` samples."""
    coefficients = kernels.denoise_schedule(steps)[0]
    at = torch.tensor(draw.sizes.randrange(steps + 1), dtype=torch.int64, device=CPU)
    keys = kernels.noise_keys(draw.sizes.getrandbits(40), range(rows), ar_step=3, device=CPU)
    return coefficients, at, keys


def _stacked(draw: Draw, shape: tuple[int, ...], dtype: torch.dtype) -> tuple[Tensor, Any]:
    """A prediction for `shape`, and the guidance for which it has conditions and none."""
    cfg = draw.maybe(torch.tensor([4.5], dtype=torch.float32, device=CPU))
    return draw.randn(*((1 if cfg is None else 2) * shape[0], *shape[1:]), dtype=dtype), cfg


def _denoise_step(draw: Draw) -> Arguments:
    shape = *draw.rows(65), draw.count(65)
    coefficients, at, keys = _steps(draw, shape[0], 10)
    x0, cfg = _stacked(draw, shape, draw.dtype)
    noise = draw.randn(*shape, dtype=torch.float32)
    named = draw.pick({"keys": keys}, {"noise": noise})
    return (draw.randn(*shape, dtype=torch.float32), x0, coefficients, at), {"cfg": cfg, **named}


def _finalize_bits(draw: Draw) -> Arguments:
    cfg = draw.maybe(torch.tensor(4.5, dtype=torch.float32, device=CPU))
    first, *others = draw.rows()
    shape = (first if cfg is None else 2 * first, *others, 8 * draw.count(17))
    return (draw.special(*shape),), {"cfg": cfg}


def _denoise_step_linear(draw: Draw) -> Arguments:
    draw.dtype = draw.pick(*HALVES)
    shape, width = (draw.count(3), draw.count(17), draw.pick(16, 32)), 16 * draw.count(17)
    coefficients, at, keys = _steps(draw, shape[0], 10)
    x0, cfg = _stacked(draw, shape, draw.dtype)
    weight, bias = draw.layer(width, shape[-1])
    named = {"cfg": cfg, "keys": keys, "squash": draw.pick(True, False)}
    args = draw.randn(*shape, dtype=torch.float32), x0, coefficients, at
    return (*args, kernels.pack_weight(weight), draw.maybe(bias)), named


def _denoise_patch(draw: Draw) -> Arguments:
    draw.dtype = draw.pick(*HALVES)
    widths = draw.pick((768, 1152), (128, 256))
    call = head_call(
        "", draw.values, draw.dtype, draw.pick((3, 32), (2, 4, 32), (1, 32)), widths,
        layers=draw.pick(1, 2), steps=draw.pick(1, 3), cfg=draw.maybe(3.0),
        keys=draw.pick(True, False), squash=draw.pick(True, False),
    )  # fmt: skip
    return call.args, dict(call.kwargs)


def _group_norm_silu(draw: Draw) -> Arguments:
    groups = draw.count(9)
    channels = groups * draw.pick(4, 8, 12)
    x = draw.randn(draw.count(3), channels, draw.count(17, 5), draw.count(17, 7))
    if draw.pick(True, True, False):
        x = x.contiguous(memory_format=torch.channels_last)
    vectors = [draw.randn(channels, dtype=torch.float32) for _ in range(2)]
    named = {"silu": draw.pick(True, False)}
    return (x, groups, *draw.pick(vectors, ())), named


DRAWS: Mapping[str, Callable[[Draw], Arguments]] = {
    "adaln_linear": _adaln_linear,
    "adaln_linear_swiglu": lambda draw: _adaln_linear(draw, "swiglu"),
    "adaln_norm": _adaln_norm,
    "bit_counts": _bit_counts,
    "block_causal_attention": _block_causal_attention,
    "block_decode_attention": _block_decode_attention,
    "denoise_patch": _denoise_patch,
    "denoise_step": _denoise_step,
    "denoise_step_linear": _denoise_step_linear,
    "finalize_bits": _finalize_bits,
    "flip_bits": _flip_bits,
    "flip_signs": _flip_signs,
    "gated_residual": _gated_residual,
    "gated_residual_adaln": _gated_residual_adaln,
    "group_norm_silu": _group_norm_silu,
    "hamming_distance": _hamming_distance,
    "lfq_entropy": _lfq_entropy,
    "lfq_quantize": _lfq_quantize,
    "lfq_quantize_commitment": _commitment,
    "linear": _linear,
    "linear_fp8": _linear_fp8,
    "linear_gated_residual": _linear_gated_residual,
    "linear_swiglu": _linear_swiglu,
    "nearest_codes": _nearest_codes,
    "pack_signs": _pack_signs,
    "packed_linear": _packed_linear,
    "patch_attention": _patch_attention,
    "rms_norm_linear": _rms_norm_linear,
    "rms_norm_linear_swiglu": lambda draw: _rms_norm_linear(draw, "swiglu"),
    "rms_norm_qkv": _rms_norm_qkv,
    "rope": _rope,
    "rope_append": _rope_append,
    "swiglu": _swiglu,
    "unpack_signs": _unpack_signs,
}
"""By op; every op with a backend in Triton or CUDA C++ has its row."""


def call_of(op: str, seed: int, repeat: int = 0, largest: int = LARGEST) -> Call:
    """The call of an op by its seed, on the CPU; repeats have other values, or equal ones."""
    args, kwargs = DRAWS[op](Draw(op, seed, repeat, largest))
    return Call(f"seed {seed}", args, kwargs)
