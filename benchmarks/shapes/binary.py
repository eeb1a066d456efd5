"""Shapes of the ops on packed bits: latents of a batch, and sizes that show the bandwidth."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import peers
from benchmarks.shapes import Make, Timing, timing
from bitdance_kernels import CodeIndex, pack_signs, unpack_signs
from tests.cases.lfq_entropy import all_codes

F32, BF16 = torch.float32, torch.bfloat16
CPU: dict[str, Any] = {"devices": ("cpu",)}
CUDA: dict[str, Any] = {"devices": ("cuda",)}


def _pack(name: str, shape: tuple[int, ...], dtype: torch.dtype, **more: Any) -> Timing:
    values = math.prod(shape)
    moved = values * dtype.itemsize + values // 8
    return timing(name, lambda make: [make.randn(*shape, dtype=dtype)], moved, **more)


def _unpack(name: str, shape: tuple[int, ...], dtype: torch.dtype, **more: Any) -> Timing:
    packed = math.prod(shape)
    moved = packed + packed * 8 * dtype.itemsize
    return timing(name, lambda make: [make.bytes(*shape), dtype], moved, **more)


def _counts(rows: int, width: int, **more: Any) -> Timing:
    name = f"[{rows}, {width}]"
    return timing(name, lambda make: [make.bytes(rows, width)], rows * width, **more)


def _masks(values: int) -> Timing:
    shape = (values // 256, 256)
    return timing(
        f"{_count(values)} bool", lambda make: [make.randn(*shape) > 0], values + values // 8, **CPU
    )


def _count(values: int) -> str:
    return f"{values / 1e6:.1f} M" if values > 1e6 else f"{values}"


def _pairs(rows: int, width: int, *k: int, codes: int = 0, index: bool = False) -> Timing:
    """Distances of queries and codes, or the k nearest ones, perhaps by an index."""
    codes, more = codes or rows, CPU if codes or index or k[1:] else {}

    def arguments(make: Make) -> list[Any]:
        b = make.bytes(codes, width)
        return [make.bytes(rows, width), CodeIndex(b) if index else b, *k]

    moved = (rows + codes) * width + (rows * 12 * k[0] if k else rows * codes * 4)
    name = f"{rows} x {codes}, {8 * width} bits"
    name += f", k = {k[0]}" if k and more else ""
    name += ", index" if index else ""
    flops = 2 * rows * codes * 8 * width
    items = rows * codes * -(-width // 4)
    return timing(name, arguments, moved, flops=flops, items=items, **more)


_SEARCHES = ((1, 10**5, 32), (1, 10**6, 8), (16, 4096, 32), (64, 10**5, 32))


def _distances() -> list[Timing]:
    sizes = [(n, width, m) for n, m, width in _SEARCHES]
    timings = [_pairs(n, width, codes=m) for n, width, m in sizes]
    return timings + [_pairs(n, width, codes=m, index=True) for n, width, m in sizes[2:]]


def _nearest() -> list[Timing]:
    timings = [_pairs(n, width, 10, codes=m) for n, m, width in _SEARCHES]
    timings += [_pairs(n, width, 10, codes=m, index=True) for n, m, width in _SEARCHES]
    timings += [_pairs(1, 32, k, codes=10**5) for k in (1, 100)]
    return timings + [_pairs(1024, 4, k, codes=1024) for k in (10, 100)]


def _flips(name: str, *shape: int, **more: Any) -> Timing:
    packed = math.prod(shape)
    return timing(
        name, lambda make: [make.bytes(*shape), 0.1, {"seed": 1}], 2 * packed, items=packed, **more
    )


def _sign_flips(name: str, *shape: int, **more: Any) -> Timing:
    values = math.prod(shape)
    return timing(
        name, lambda make: [make.randn(*shape).sign(), 0.1, {"seed": 1}], 8 * values,
        items=values, **more,
    )  # fmt: skip


def _packed_linear(rows: int, bits: int, features: int) -> Timing:
    def arguments(make: Make) -> list[Any]:
        return [make.bytes(rows, bits // 8), make.randn(features, bits), make.randn(features)]

    moved = rows * bits // 8 + 4 * features * (bits + 1) + 4 * rows * features
    flops = 2 * rows * bits * features
    return timing(f"[{rows}, {bits}] to {features}", arguments, moved, flops=flops)


def _entropy(tokens: int, bits: int) -> Timing:
    return timing(
        f"{tokens} tokens, {bits} bits, with backward",
        lambda make: [0.05 * make.randn(tokens, bits), bits],
        12 * tokens * bits,
        flops=3 * 2 * tokens * 2**bits,  # a product forward, two backward
        backward=True,
    )


def _tokens(suffix: str, bytes_a_value: int, **more: Any) -> Timing:
    moved = 2**22 * bytes_a_value + 2**19
    name = f"16384 tokens of 256 bits{suffix}"
    return timing(name, lambda make: [make.randn(2**14, 256)], moved, **more)


def pack_torch(x: Tensor) -> Tensor:
    weights = 2 ** torch.arange(8, device=x.device)
    return ((x > 0).unflatten(-1, (-1, 8)) * weights).sum(-1).to(torch.uint8)


def unpack_torch(packed: Tensor, dtype: torch.dtype) -> Tensor:
    shifts = torch.arange(8, device=packed.device, dtype=torch.uint8)
    return (((packed[..., None] >> shifts) & 1).to(dtype) * 2 - 1).flatten(-2)


def fill_alone(packed: Tensor, dtype: torch.dtype) -> Tensor:
    """What a new tensor of that size costs alone: the system clears a large one first."""
    return packed.new_empty((*packed.shape[:-1], 8 * packed.shape[-1]), dtype=dtype).fill_(1.0)


def flip_bits_torch(packed: Tensor, rate: float, **_: Any) -> Tensor:
    shape = (*packed.shape, 8)
    flips = torch.rand(shape, device=packed.device) < rate * torch.rand(shape, device=packed.device)
    return packed ^ (flips * 2 ** torch.arange(8, device=packed.device)).sum(-1).to(torch.uint8)


def flip_signs_torch(x: Tensor, rate: float, **_: Any) -> Tensor:
    return torch.where(torch.rand_like(x) < rate * torch.rand_like(x), -x, x)


def float_product(a: Tensor, b: Tensor) -> Tensor:
    product = unpack_signs(a) @ unpack_signs(b).T
    return ((a.shape[1] * 8 - product) / 2).to(torch.int32)


def float_product_topk(a: Tensor, b: Tensor, k: int) -> tuple[Tensor, Tensor]:
    distance, index = float_product(a, b).topk(k, dim=1, largest=False)
    return index, distance


def unpack_then_linear(packed: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return F.linear(unpack_signs(packed, weight.dtype), weight, bias)


def quantize_torch(x: Tensor) -> tuple[Tensor, Tensor]:
    return torch.where(x > 0, 1.0, -1.0), pack_signs(x)


def commitment_torch(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    signs = torch.where(x > 0, 1.0, -1.0)
    return x + (signs - x).detach(), pack_signs(x.detach()), F.mse_loss(x, signs)


SHAPES: dict[str, tuple[Any, ...]] = {
    "pack_signs": (
        [_pack("16.8 M float32", (2**16, 256), F32),
         _pack("16.8 M bfloat16", (2**16, 256), BF16),
         _pack("16.8 M float16", (2**16, 256), torch.float16, **CPU),
         _pack("1.0 M float32", (2**12, 256), F32, **CPU),
         _pack("one image [256, 32] float32", (256, 32), F32),
         *(_masks(values) for values in (2**13, 2**20, 2**24, 2**26)),
         _pack("268 M float32", (2**23, 32), F32, **CUDA),
         _pack("537 M bfloat16", (2**24, 32), BF16, **CUDA)],
        {"torch": pack_torch},
        {"numpy": peers.pack_numpy, "torch": peers.pack_torch},
    ),
    "unpack_signs": (
        [_unpack("16.8 M float32", (2**16, 32), F32),
         _unpack("16.8 M bfloat16", (2**16, 32), BF16),
         _unpack("4.2 M float32", (2**14, 32), F32),
         _unpack("1.0 M float32", (2**12, 32), F32, **CPU),
         _unpack("one image [256, 32] float32", (256, 4), F32),
         _unpack("268 M float32", (2**23, 4), F32, **CUDA),
         _unpack("537 M bfloat16", (2**24, 4), BF16, **CUDA)],
        {"torch": unpack_torch, "fill alone": fill_alone},
        {"numpy.take": peers.take_numpy, "torch": peers.embed_torch},
    ),
    "bit_counts": (
        [_counts(2**18, 32), _counts(2**21, 32, **CPU), _counts(256, 4, **CPU),
         _counts(2**25, 32, **CUDA)],
        {},
        {"numpy": peers.counts_numpy, "torch.bincount": peers.counts_table},
    ),
    "flip_bits": (
        [_flips("16.8 M bits", 2**16, 32), _flips("one image of 8192 bits", 256, 4, **CPU),
         _flips("4.3 G bits", 2**24, 32, **CUDA)],
        {"torch": flip_bits_torch},
        {"numpy, 16 words": peers.flip_bits_words},
    ),
    "flip_signs": (
        [_sign_flips("4.2 M float32", 2**14, 256),
         _sign_flips("one image [256, 32] float32", 256, 32, **CPU),
         _sign_flips("134 M float32", 2**19, 256, **CUDA)],
        {"torch": flip_signs_torch},
        {"torch": peers.flip_signs_torch},
    ),
    "hamming_distance": (
        [_pairs(4096, 32), _pairs(1024, 4), *_distances()],
        {"float product": float_product},
        {"faiss": peers.hamming_faiss, "numkong": peers.hamming_numkong,
         "numpy": peers.hamming_numpy, "float product": peers.hamming_product},
    ),
    "nearest_codes": (
        [_pairs(4096, 32, 10), *_nearest()],
        {"float product, topk": float_product_topk},
        {"faiss": peers.nearest_faiss, "usearch": peers.nearest_usearch},
    ),
    "packed_linear": (
        [_packed_linear(*size) for size in ((2048, 32, 2304), (16384, 32, 2304),
                                            (16384, 256, 3840))],
        {"unpack, linear": unpack_then_linear},
    ),
    "lfq_quantize": ([_tokens("", 8)], {"where, pack_signs": quantize_torch}),
    "lfq_quantize_commitment": (
        [_tokens(", with backward", 20, backward=True)],
        {"where, pack_signs, mse_loss": commitment_torch},
    ),
    "lfq_entropy": (
        [_entropy(16384, 8), _entropy(4096, 12), _entropy(1024, 16)],
        {"N x 2^d": all_codes},
        {"two half-codes": peers.entropy_halves},
    ),
}  # fmt: skip
"""Timings and baselines by op."""
