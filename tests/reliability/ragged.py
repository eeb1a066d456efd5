"""Calls of every op that C++ runs, of random ragged shapes, drawn from a seed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from random import Random
from typing import Any

import torch

import bitdance_kernels as bk
from bitdance_kernels.testing import specials, strided

__all__ = ["DRAWS", "Draw", "Ragged"]

F32, F16, BF16 = torch.float32, torch.float16, torch.bfloat16
FLOATS = (F32, F16, BF16)


@dataclass(frozen=True)
class Ragged:
    """A call.

    Attributes:
        function: takes `args`, `kwargs` and a keyword ``backend``.
        args: positional arguments.
        kwargs: keyword arguments.
        written: positions of tensors in `args` that the call writes.
        leaves: positions of tensors in `args` that may have a gradient; empty for none.
    """

    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    written: tuple[int, ...] = ()
    leaves: tuple[int, ...] = ()


class Draw:
    """Random shapes, dtypes, tensors and layouts.

    Args:
        random: draws all of them.

    Attributes:
        random: the same.
        dtype: floating dtype of the call.
    """

    def __init__(self, random: Random) -> None:
        self.random = random
        self._generator = torch.Generator(device="cpu").manual_seed(random.getrandbits(62))
        self.dtype: torch.dtype = random.choice(FLOATS)

    def size(self, largest: int, smallest: int = 1) -> int:
        """A number from `smallest` to `largest`, often a small one."""
        if self.chance(0.5):
            largest = min(largest, smallest + 8)
        return self.random.randint(smallest, largest)

    def chance(self, probability: float) -> bool:
        """True with this probability."""
        return self.random.random() < probability

    def rows(self, most: int = 70) -> tuple[int, ...]:
        """Up to three leading dimensions; none at times, and at times without elements."""
        if self.chance(0.03):
            return (0, 3)
        kind = self.random.randrange(4)
        if kind == 0:
            return ()
        if kind == 1:
            return (self.size(most),)
        return tuple(self.size(6) for _ in range(kind))

    def normal(self, *shape: int, dtype: torch.dtype | None = None) -> torch.Tensor:
        """Normal numbers with a few special values, in rows that are strided at times."""
        dtype = dtype or self.dtype
        drawn = torch.randn(shape, generator=self._generator, dtype=F32, device="cpu").to(dtype)
        if drawn.numel() > 0 and self.chance(0.1):
            flat = drawn.view(-1)
            flat[self.random.randrange(len(flat))] = self.random.choice(specials(dtype))
        return self.layout(drawn)

    def bytes(self, *shape: int) -> torch.Tensor:
        """Random bytes, in rows that are strided at times."""
        drawn = torch.randint(
            256, shape, generator=self._generator, dtype=torch.uint8, device="cpu"
        )
        return self.layout(drawn)

    def integers(self, low: int, high: int, *shape: int, dtype: torch.dtype) -> torch.Tensor:
        """Integers from `low` to `high`."""
        return torch.randint(
            low, high + 1, shape, generator=self._generator, dtype=dtype, device="cpu"
        )

    def layout(self, tensor: torch.Tensor) -> torch.Tensor:
        """The same values, one time in four in rows with gaps between them."""
        return strided(tensor) if tensor.dim() > 1 and self.chance(0.25) else tensor

    def maybe(self, make: Callable[[], torch.Tensor]) -> torch.Tensor | None:
        """What `make` makes, or None."""
        return make() if self.chance(0.6) else None

    def row_like(self, *shape: int, dtype: torch.dtype | None = None) -> torch.Tensor:
        """A tensor for each row of `shape`, which may be the same for all tokens of a batch."""
        drawn = self.normal(*shape, dtype=dtype)
        return drawn[..., :1, :].expand(shape) if len(shape) > 2 and self.chance(0.3) else drawn

    def panels(self, features: int, channels: int) -> torch.Tensor:
        """A weight in panels of float32; features must be a multiple of 16."""
        weight = torch.randn(features, channels, generator=self._generator, dtype=F32, device="cpu")
        return bk.pack_weight(weight / channels**0.5, "panels")


def _pack_signs(draw: Draw) -> Ragged:
    shape = (*draw.rows(), 8 * draw.size(40))
    if draw.chance(0.3):
        values = draw.bytes(*shape) & 1
        return Ragged(bk.pack_signs, (values.bool() if draw.chance(0.5) else values,))
    return Ragged(bk.pack_signs, (draw.normal(*shape),))


def _unpack_signs(draw: Draw) -> Ragged:
    return Ragged(bk.unpack_signs, (draw.bytes(*draw.rows(), draw.size(40)), draw.dtype))


def _flip(draw: Draw) -> dict[str, Any]:
    return {"seed": draw.random.getrandbits(64), "offset": draw.random.getrandbits(32)}


def _flip_bits(draw: Draw) -> Ragged:
    packed = draw.bytes(*draw.rows(), draw.size(50))
    return Ragged(bk.flip_bits, (packed, draw.random.random()), _flip(draw))


def _flip_signs(draw: Draw) -> Ragged:
    x = draw.normal(*draw.rows(), 8 * draw.size(40))
    return Ragged(bk.flip_signs, (x, draw.random.random()), _flip(draw))


def _bit_counts(draw: Draw) -> Ragged:
    return Ragged(bk.bit_counts, (draw.bytes(*draw.rows(300), draw.size(70)),))


def _codes(draw: Draw) -> tuple[torch.Tensor, Any]:
    width = draw.size(40)
    a, b = draw.bytes(draw.size(40), width), draw.bytes(draw.size(150), width)
    return a, bk.CodeIndex(b) if draw.chance(0.3) else b


def _hamming_distance(draw: Draw) -> Ragged:
    return Ragged(bk.hamming_distance, _codes(draw))


def _nearest_codes(draw: Draw) -> Ragged:
    a, b = _codes(draw)
    return Ragged(bk.nearest_codes, (a, b, draw.size(min(len(b), 128))))


def _lfq_entropy(draw: Draw) -> Ragged:
    bits = draw.size(10)
    x = 0.02 * draw.normal(*draw.rows(40), bits * draw.size(5))
    return Ragged(bk.lfq_entropy, (x, bits), {"per_group": draw.chance(0.3)}, leaves=(0,))


def _lfq_quantize(draw: Draw) -> Ragged:
    return Ragged(bk.lfq_quantize, (draw.normal(*draw.rows(), 8 * draw.size(30)),), leaves=(0,))


def _lfq_quantize_commitment(draw: Draw) -> Ragged:
    x = draw.normal(*draw.rows(), 8 * draw.size(30), dtype=F32)
    return Ragged(bk.lfq_quantize_commitment, (x,), leaves=(0,))


def _adaln_norm(draw: Draw) -> Ragged:
    shape = (*draw.rows(), draw.size(300))
    x, scale, shift = draw.normal(*shape), draw.row_like(*shape), draw.row_like(*shape)
    vectors = [draw.maybe(lambda: draw.normal(shape[-1], dtype=F32)) for _ in range(2)]
    return Ragged(bk.adaln_norm, (x, scale, shift, *vectors), leaves=(0, 1, 2, 3, 4))


def _gated_residual(draw: Draw) -> Ragged:
    shape = (*draw.rows(), draw.size(300))
    args = draw.normal(*shape), draw.normal(*shape), draw.row_like(*shape)
    return Ragged(bk.gated_residual, args, leaves=(0, 1, 2))


def _gated_residual_adaln(draw: Draw) -> Ragged:
    shape = (*draw.rows(), draw.size(300))
    args = (draw.normal(*shape), draw.normal(*shape), *(draw.row_like(*shape) for _ in range(3)))
    vectors = [draw.maybe(lambda: draw.normal(shape[-1], dtype=F32)) for _ in range(2)]
    return Ragged(bk.gated_residual_adaln, (*args, *vectors), leaves=tuple(range(7)))


def _swiglu(draw: Draw) -> Ragged:
    return Ragged(bk.swiglu, (3 * draw.normal(*draw.rows(), 2 * draw.size(200)),), leaves=(0,))


def _rms_norm(draw: Draw) -> Ragged:
    shape = (*draw.rows(), draw.size(400))
    return Ragged(bk.rms_norm, (draw.normal(*shape), draw.maybe(lambda: draw.normal(shape[-1]))))


def _linear(draw: Draw) -> Ragged:
    channels, int8 = draw.size(130), draw.chance(0.3)
    if int8 or draw.chance(0.5):
        features = 16 * draw.size(14)
        weight = draw.panels(features, channels)
        if int8:
            matrix = bk.unpack_weight(weight, "panels")
            values, scales = bk.quantize_rows(matrix, torch.int8)
            weight = bk.pack_weight(values, "panels", scales=scales)
    else:
        features = draw.size(230)
        weight = draw.normal(features, channels, dtype=F32)
    dtype = draw.dtype if int8 else F32
    x = draw.normal(*draw.rows(), channels, dtype=dtype)
    bias = draw.maybe(lambda: draw.normal(features, dtype=dtype))
    if draw.chance(0.7) or x.dim() == 1:
        return Ragged(bk.linear, (x, weight, bias))

    def into(x: Any, weight: Any, bias: Any, out: Any, backend: str) -> Any:
        return bk.linear(x, weight, bias, out=out, backend=backend)

    out = torch.full((*x.shape[:-1], features), 7, dtype=x.dtype, device="cpu")
    return Ragged(into, (x, weight, bias, draw.layout(out) if x.dim() == 2 else out), written=(3,))


def _product(draw: Draw, halves: int = 1) -> tuple[Any, ...]:
    """Rows, a weight in panels, and a bias or None."""
    channels, features = draw.size(130), 16 * halves * draw.size(8)
    x = draw.normal(*draw.rows(), channels, dtype=F32)
    weight = draw.panels(features, channels)
    return x, weight, draw.maybe(lambda: draw.normal(features, dtype=F32))


def _linear_swiglu(draw: Draw) -> Ragged:
    return Ragged(bk.linear_swiglu, _product(draw, 2))


def _linear_gated_residual(draw: Draw) -> Ragged:
    x, weight, bias = _product(draw)
    shape = (*x.shape[:-1], 16 * len(weight))
    gate = draw.maybe(lambda: draw.row_like(*shape, dtype=F32))
    args = x, weight, bias, draw.normal(*shape, dtype=F32), gate
    returned = {"return_moments": True} if draw.chance(0.3) else {}
    return Ragged(bk.linear_gated_residual, args, returned)


def _adaln_product(op: Callable[..., Any], halves: int) -> Callable[[Draw], Ragged]:
    def make(draw: Draw) -> Ragged:
        x, weight, bias = _product(draw, halves)
        scale, shift = (draw.row_like(*x.shape, dtype=F32) for _ in range(2))
        vectors = [draw.maybe(lambda: draw.normal(x.shape[-1], dtype=F32)) for _ in range(2)]
        return Ragged(op, (x, scale, shift, weight, bias, *vectors))

    return make


def _rms_product(op: Callable[..., Any], halves: int) -> Callable[[Draw], Ragged]:
    def make(draw: Draw) -> Ragged:
        x, weight, bias = _product(draw, halves)
        norm = draw.maybe(lambda: draw.normal(x.shape[-1], dtype=F32))
        return Ragged(op, (x, weight, bias, norm))

    return make


def _patch_attention(draw: Draw) -> Ragged:
    heads = draw.size(4)
    qkv = draw.normal(draw.size(6, 0), draw.size(64), 3 * heads * draw.size(40))
    return Ragged(bk.patch_attention, (qkv, heads), leaves=(0,))


def _denoise_step(draw: Draw) -> Ragged:
    shape, steps = (draw.size(5, 0), *draw.rows(), draw.size(80)), draw.size(10)
    guided = draw.chance(0.5)
    x0 = draw.normal((1 + guided) * shape[0], *shape[1:])
    table = bk.denoise_schedule(steps)[0]
    # At times outside of the table, which must be found before anything is read.
    at = draw.integers(-1, steps + 2, dtype=draw.random.choice((torch.int32, torch.int64)))
    options: dict[str, Any] = {"cfg": torch.tensor([2.5], dtype=F32) if guided else None}
    if draw.chance(0.5):
        options["noise"] = draw.normal(*shape, dtype=F32)
    else:
        options["keys"] = bk.noise_keys(draw.random.getrandbits(64), range(shape[0]))
    args = draw.normal(*shape, dtype=F32), x0, table, at
    return Ragged(bk.denoise_step, args, options)


def _finalize_bits(draw: Draw) -> Ragged:
    guided = draw.chance(0.5)
    x0 = draw.normal((1 + guided) * draw.size(6, 0), *draw.rows(), 8 * draw.size(30))
    cfg = torch.tensor(3.0, dtype=F32, device="cpu") if guided else None
    return Ragged(bk.finalize_bits, (x0,), {"cfg": cfg})


def _angles(draw: Draw, tokens: int, width: int, dtype: torch.dtype = F32) -> torch.Tensor:
    return draw.normal(tokens, width // 2, 2, dtype=dtype)


def _rope(draw: Draw) -> Ragged:
    T, D = draw.size(20, 0), 2 * draw.size(70)
    x = draw.normal(draw.size(3), T, draw.size(5), D)
    freqs = _angles(draw, T, D, draw.random.choice(FLOATS))
    return Ragged(bk.rope, (x, freqs), {"interleaved": draw.chance(0.5)}, leaves=(0,))


def _rope_append(draw: Draw) -> Ragged:
    B, P, D = draw.size(4), draw.size(6, 0), 2 * draw.size(40)
    room = draw.size(20, max(P, 1))
    Hkv = draw.size(3)
    H = Hkv * draw.size(3)
    qkv = draw.normal(B, P, (H + 2 * Hkv) * D, dtype=F32)
    k, v = (draw.normal(B, room, Hkv, D, dtype=F32) for _ in range(2))
    # Rows of the cache, or of the table, that are not there must be refused before a read.
    position = draw.integers(-1 if draw.chance(0.1) else 0, room - P, B, dtype=torch.int32)
    if draw.chance(0.1):
        position += room
    freqs = _angles(draw, room if draw.chance(0.7) else draw.size(room, max(P, 1)), D)
    options: dict[str, Any] = {"num_heads": H, "num_kv_heads": Hkv}
    options["interleaved"] = draw.chance(0.5)
    if draw.chance(0.5):
        options |= {"q_norm": draw.normal(D, dtype=F32), "k_norm": draw.normal(D, dtype=F32)}
    return Ragged(bk.rope_append, (qkv, k, v, position, freqs), options, written=(1, 2))


def _block_causal_attention(draw: Draw) -> Ragged:
    B, T, keys, D = draw.size(3), draw.size(40, 0), draw.size(70), draw.size(128)
    Hkv = draw.size(2)
    H = Hkv * draw.size(3)
    q = draw.normal(B, T, H, D)
    k, v = draw.normal(B, keys, Hkv, D), draw.normal(B, keys, Hkv, D)
    shape = (B, T) if draw.chance(0.5) else (T,)
    # Nobody has looked at the values: they may lie outside of the keys and decrease.
    low, high = (-3, keys + 40) if draw.chance(0.2) else (0, keys)
    start, end = (draw.integers(low, high, *shape, dtype=torch.int32) for _ in range(2))
    if low == 0:
        start, end = start.sort(-1).values, end.sort(-1).values
    ranges = bk.Ranges(start, end, validate=False)
    return Ragged(bk.block_causal_attention, (q, k, v, ranges), leaves=(0, 1, 2))


def _block_decode_attention(draw: Draw) -> Ragged:
    B, P, room, D = draw.size(4), draw.size(20, 0), draw.size(90), draw.size(128)
    Hkv = draw.size(2)
    q = draw.normal(B, P, Hkv * draw.size(5), D)
    k, v = draw.normal(B, room, Hkv, D), draw.normal(B, room, Hkv, D)
    lengths = draw.integers(-2, room + 3, B, dtype=torch.int32)
    return Ragged(bk.block_decode_attention, (q, k, v, lengths))


def _conv3x3(draw: Draw) -> Ragged:
    factor, channels = draw.random.choice((1, 1, 2)), draw.size(40)
    features = 16 * factor**2 * draw.size(4)
    height, width = draw.size(9), draw.size(12)
    x = draw.normal(draw.size(3, 0), height, width, channels, dtype=F32).permute(0, 3, 1, 2)
    weight = draw.panels(features, 9 * channels)
    bias = draw.maybe(lambda: draw.normal(features, dtype=F32))
    residual = None
    if factor == 1 and draw.chance(0.5):
        residual = draw.normal(len(x), features, height, width, dtype=F32)
    return Ragged(bk.conv3x3, (x, weight, bias, residual), {"upscale_factor": factor})


def _group_norm_silu(draw: Draw) -> Ragged:
    groups = draw.size(8)
    channels, B = groups * draw.size(6), draw.size(3, 0)
    x = draw.normal(B, channels, draw.size(20), draw.size(20))
    if draw.chance(0.5):
        x = x.contiguous(memory_format=torch.channels_last)
    vectors = [draw.maybe(lambda: draw.normal(channels, dtype=F32)) for _ in range(2)]
    options: dict[str, Any] = {"silu": draw.chance(0.7)}
    if draw.chance(0.5):
        options |= {"scale": draw.normal(B, channels), "shift": draw.normal(B, channels)}
    return Ragged(bk.group_norm_silu, (x, groups, *vectors), options, leaves=(0, 2, 3))


def _noise(draw: Draw) -> Ragged:
    def run(keys: torch.Tensor, step: Any, elements: int, backend: str) -> torch.Tensor:
        with bk.use_backend(backend):
            return bk.noise(keys, step, elements, backend="auto")

    keys = bk.noise_keys(draw.random.getrandbits(64), range(draw.size(6, 0)))
    step = draw.integers(0, 9, 1, dtype=torch.int64) if draw.chance(0.5) else 3
    return Ragged(run, (keys, step, draw.size(300, 0)))


def _fingerprints(draw: Draw) -> Ragged:
    def run(*tensors: torch.Tensor, backend: str) -> torch.Tensor:
        return bk.fingerprints(tensors)

    return Ragged(run, tuple(draw.normal(draw.size(90, 0), draw.size(9)) for _ in range(3)))


def _pack_panels(draw: Draw) -> Ragged:
    def run(weight: torch.Tensor, out: torch.Tensor, backend: str) -> torch.Tensor:
        return bk.pack_weight(weight, "panels", out=out)

    panels, channels = draw.size(5, 0), draw.size(70)
    out = torch.full((panels, channels, 16), 7, dtype=F32, device="cpu")
    return Ragged(run, (draw.normal(16 * panels, channels, dtype=F32), out), written=(1,))


def _arrays(draw: Draw) -> Ragged:
    """The functions on NumPy's arrays, there and back."""
    from bitdance_kernels.binary import numpy as front

    def run(x: torch.Tensor, threads: int, backend: str) -> torch.Tensor:
        packed = front.pack_signs(x.numpy(), threads=threads)
        return torch.from_numpy(front.unpack_signs(packed, x.numpy().dtype, threads=threads))

    x = draw.normal(*draw.rows(), 8 * draw.size(40), dtype=draw.random.choice((F32, F16)))
    return Ragged(run, (x, draw.size(3)))


DRAWS: dict[str, Callable[[Draw], Ragged]] = {
    "adaln_linear": _adaln_product(bk.adaln_linear, 1),
    "adaln_linear_swiglu": _adaln_product(bk.adaln_linear_swiglu, 2),
    "adaln_norm": _adaln_norm,
    "bit_counts": _bit_counts,
    "block_causal_attention": _block_causal_attention,
    "block_decode_attention": _block_decode_attention,
    "conv3x3": _conv3x3,
    "denoise_step": _denoise_step,
    "finalize_bits": _finalize_bits,
    "fingerprints": _fingerprints,
    "flip_bits": _flip_bits,
    "flip_signs": _flip_signs,
    "gated_residual": _gated_residual,
    "gated_residual_adaln": _gated_residual_adaln,
    "group_norm_silu": _group_norm_silu,
    "hamming_distance": _hamming_distance,
    "lfq_entropy": _lfq_entropy,
    "lfq_quantize": _lfq_quantize,
    "lfq_quantize_commitment": _lfq_quantize_commitment,
    "linear": _linear,
    "linear_gated_residual": _linear_gated_residual,
    "linear_swiglu": _linear_swiglu,
    "nearest_codes": _nearest_codes,
    "noise": _noise,
    "numpy": _arrays,
    "pack_signs": _pack_signs,
    "pack_weight": _pack_panels,
    "patch_attention": _patch_attention,
    "rms_norm": _rms_norm,
    "rms_norm_linear": _rms_product(bk.rms_norm_linear, 1),
    "rms_norm_linear_swiglu": _rms_product(bk.rms_norm_linear_swiglu, 2),
    "rope": _rope,
    "rope_append": _rope_append,
    "swiglu": _swiglu,
    "unpack_signs": _unpack_signs,
}
"""By the name of an op or function, what draws a call of it."""
