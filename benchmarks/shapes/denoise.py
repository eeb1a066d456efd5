"""Shapes of the diffusion head's ops, at the widths of the published models."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import bitdance_kernels as kernels
from benchmarks import peers
from benchmarks.shapes import Make, Timing, short, timing

F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16
CPU: dict[str, Any] = {"devices": ("cpu",)}
CUDA: dict[str, Any] = {"devices": ("cuda",)}
STEPS = 100  # of the ImageNet models


def _rows(inputs: int, chunks: int, results: int, *sizes: tuple[int, int]) -> list[Timing]:
    """An op on `inputs` tensors and `chunks` of a modulation, for sizes [rows, width].

    In float32 anywhere for the first two, in bfloat16 for the first, and on a card for the rest. On
    a CPU also in float16 and for a small model, where the call itself counts.
    """

    def one(rows: int, width: int, dtype: torch.dtype, **more: Any) -> Timing:
        def arguments(make: Make) -> list[Any]:
            modulation = make.randn(rows, 6 * width, dtype=dtype).chunk(6, dim=-1)
            streams = (make.randn(rows, width, dtype=dtype) for _ in range(inputs))
            return [*streams, *modulation[:chunks]]

        moved = (inputs + chunks + results) * rows * width * dtype.itemsize
        return timing(f"[{rows}, {width}] {short(dtype)}", arguments, moved, **more)

    on_card = (one(*size, BF16, **CUDA) for size in sizes[2:])
    small = (one(8, 192, dtype, **CPU) for dtype in (F32, BF16))
    half = one(*sizes[0], BF16), one(*sizes[0], F16, **CPU)
    return [*(one(*size, F32) for size in sizes[:2]), *small, *half, *on_card]


_ROWS = ((2048, 768), (128, 5120), (12288, 768), (8192, 5120), (32, 768))


def norm_torch(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale) + shift


def norm_addcmul(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    return torch.addcmul(shift, F.layer_norm(x, x.shape[-1:], eps=1e-6), 1 + scale)


def _rms(rows: int, width: int) -> Timing:
    def arguments(make: Make) -> list[Any]:
        return [make.randn(rows, width), make.randn(width)]

    return timing(f"[{rows}, {width}] float32", arguments, 4 * width * (2 * rows + 1), **CPU)


def rms_torch(x: Tensor, weight: Tensor) -> Tensor:
    return F.rms_norm(x, weight.shape, weight, 1e-6)


def sum_torch(x: Tensor, h: Tensor, gate: Tensor) -> Tensor:
    return x + gate * h


def sum_addcmul(x: Tensor, h: Tensor, gate: Tensor) -> Tensor:
    return torch.addcmul(x, gate, h)


def sum_and_norm_torch(
    x: Tensor, h: Tensor, gate: Tensor, scale: Tensor, shift: Tensor
) -> tuple[Tensor, Tensor]:
    total = x + gate * h
    return total, norm_torch(total, scale, shift)


def sum_and_norm_addcmul(
    x: Tensor, h: Tensor, gate: Tensor, scale: Tensor, shift: Tensor
) -> tuple[Tensor, Tensor]:
    total = torch.addcmul(x, gate, h)
    return total, norm_addcmul(total, scale, shift)


def _swiglu(rows: int, hidden: int, dtype: torch.dtype, **more: Any) -> Timing:
    moved = 3 * rows * hidden * dtype.itemsize
    name = f"[{rows}, 2 x {hidden}] {short(dtype)}"
    return timing(name, lambda make: [make.randn(rows, 2 * hidden, dtype=dtype)], moved, **more)


def swiglu_torch(h: Tensor) -> Tensor:
    gate, value = h.chunk(2, dim=-1)
    return F.silu(gate) * value


def swiglu_in_place(h: Tensor) -> Tensor:
    gate, value = h.chunk(2, dim=-1)
    return F.silu(gate).mul_(value)


def _patches(
    rows: int, patch: int, width: int, heads: int, dtype: torch.dtype = F32, **more: Any
) -> Timing:
    return timing(
        f"[{rows}, {patch}, 3 x {width}] {short(dtype)}",
        lambda make: [make.randn(rows, patch, 3 * width, dtype=dtype), heads],
        4 * rows * patch * width * dtype.itemsize,
        flops=4 * rows * patch * patch * width,
        half=dtype == BF16,
        **more,
    )


def _attended(qkv: Tensor, num_heads: int, attend: Any) -> Tensor:
    q, k, v = qkv.unflatten(-1, (3, num_heads, -1)).permute(2, 0, 3, 1, 4)
    return attend(q, k, v).transpose(1, 2).flatten(2)


def patch_sdpa(qkv: Tensor, num_heads: int) -> Tensor:
    return _attended(qkv, num_heads, F.scaled_dot_product_attention)


def eight_launches(qkv: Tensor, num_heads: int) -> Tensor:
    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
        return torch.softmax(scores.float(), dim=-1).to(v.dtype) @ v

    return _attended(qkv, num_heads, attend)


def _step(
    name: str, shape: tuple[int, ...], dtype: torch.dtype = BF16, *, keys: bool = True, **more: Any
) -> Timing:
    """A guided step with noise from keys or drawn before."""

    def arguments(make: Make) -> list[Any]:
        x, x0 = make.randn(*shape), make.randn(2 * shape[0], *shape[1:], dtype=dtype)
        table = kernels.denoise_schedule(STEPS)[0].to(make.device)
        step, cfg = make.full(40, torch.int64), make.full(4.0)
        drawn = (
            kernels.noise_keys(0, range(shape[0]), device=make.device)
            if keys
            else torch.randn_like(x)
        )
        return [x, x0, table, step, {"cfg": cfg, "keys" if keys else "noise": drawn}]

    values = math.prod(shape)
    moved = values * (4 + 4 + 2 * dtype.itemsize)  # x, x', both halves of x0
    moved += shape[0] * 24 if keys else values * 4
    return timing(name, arguments, moved, **more)


def _drawn(x: Tensor, more: dict[str, Tensor]) -> Tensor:
    return more["noise"] if "noise" in more else torch.randn_like(x)


def step_torch(x: Tensor, x0: Tensor, table: Tensor, step: Tensor, **more: Tensor) -> Tensor:
    """The affine step op by op; without explicit noise, PyTorch's own generator draws it."""
    a, b, s = table.index_select(0, step.view(1))[0]  # table[step] would wait for the card
    conditional, unconditional = x0.float().chunk(2)
    guided = torch.lerp(unconditional, conditional, more["cfg"])
    return a * x + b * guided + s * _drawn(x, more)


def step_official(x: Tensor, x0: Tensor, table: Tensor, step: Tensor, **more: Tensor) -> Tensor:
    """Velocities, guidance, score and Euler-Maruyama step, as the published sampler writes them."""
    a, b, s = table.index_select(0, step.view(1))[0]
    dt = 1 - a - b
    t = 1 - s.square() / (2 * dt)
    both = torch.cat((x, x))
    velocity = (x0.float() - both) / (1 - t).clamp_min(0.05)
    conditional, unconditional = velocity.chunk(2)
    velocity = unconditional + more["cfg"] * (conditional - unconditional)
    score = (t * velocity - x) / (1 - t)
    drift = velocity + (1 - t) * score
    return x + drift * dt + torch.sqrt(2 * (1 - t) * dt) * _drawn(x, more)


def _bits(name: str, shape: tuple[int, ...], dtype: torch.dtype = BF16, **more: Any) -> Timing:
    """Guided predictions of `shape` states."""
    values, rows = math.prod(shape), (2 * shape[0], *shape[1:])
    return timing(
        name,
        lambda make: [make.randn(*rows, dtype=dtype), {"cfg": make.full(4.0)}],
        values * 3 * dtype.itemsize + values // 8,
        **more,
    )


def bits_torch(x0: Tensor, *, cfg: Tensor) -> tuple[Tensor, Tensor]:
    conditional, unconditional = x0.float().chunk(2)
    bits = torch.lerp(unconditional, conditional, cfg) > 0
    weights = 2 ** torch.arange(8, device=x0.device)
    packed = (bits.unflatten(-1, (-1, 8)) * weights).sum(-1).to(torch.uint8)
    return bits.to(x0.dtype) * 2 - 1, packed


_ONE, _MANY, _B1, _T2I = (1, 16, 32), (64, 16, 32), (384, 1, 32), (1, 64, 32)
_LARGE = (2**16, 16, 32)
_STATES = (
    ("B-16x batch 1 [1, 16, 32]", _ONE), ("B-16x batch 64 [64, 16, 32]", _MANY),
    ("B-1x batch 384 [384, 1, 32]", _B1), ("14B-64x batch 1 [1, 64, 32]", _T2I),
)  # fmt: skip

SHAPES: dict[str, tuple[Any, ...]] = {
    "adaln_norm": (
        _rows(1, 2, 1, *_ROWS),
        {"torch": norm_torch},
        peers.and_compiled(norm_addcmul),
    ),
    "rms_norm": ([_rms(*size) for size in ((8, 192), (2048, 768))], peers.and_compiled(rms_torch)),
    "gated_residual": (
        _rows(2, 1, 1, *_ROWS), {"torch": sum_torch}, peers.and_compiled(sum_addcmul),
    ),
    "gated_residual_adaln": (
        _rows(2, 3, 2, *_ROWS),
        {"torch": sum_and_norm_torch},
        peers.and_compiled(sum_and_norm_addcmul),
    ),
    "swiglu": (
        [_swiglu(*size, F32) for size in ((2048, 1152), (128, 7680))]
        + [_swiglu(*size, dtype, **CPU)
           for size, dtype in (((8, 288), F32), ((8, 288), BF16), ((2048, 1152), BF16),
                               ((2048, 1152), F16))]
        + [_swiglu(*size, BF16, **CUDA) for size in ((12288, 1152), (8192, 7680), (32, 1152))],
        {"torch": swiglu_torch},
        peers.and_compiled(swiglu_in_place),
    ),
    "patch_attention": (
        [_patches(*size) for size in ((128, 16, 768, 12), (128, 4, 768, 12), (2, 64, 5120, 40))]
        + [_patches(*size, dtype, **CPU)
           for dtype in (F32, BF16, F16)
           for size in ((2, 4, 192, 6), (16, 4, 192, 6), (128, 16, 768, 12), (2, 64, 5120, 40))
           if dtype != F32 or size[2] == 192]
        + [_patches(*size, BF16, **CUDA)
           for size in ((768, 16, 768, 12), (768, 4, 768, 12), (2, 16, 5120, 40),
                        (2, 64, 5120, 40), (128, 64, 5120, 40))],
        {"sdpa": patch_sdpa, "eight launches": eight_launches},
        {"sdpa": patch_sdpa},
    ),
    "denoise_step": (
        [_step(f"{name} bfloat16", shape) for name, shape in _STATES[:2]]
        + [_step("B-16x batch 64 [64, 16, 32] float32", _MANY, F32)]
        + [_step(f"{name} bfloat16", shape) for name, shape in _STATES[2:]]
        + [_step("B-16x batch 64 with noise", _MANY, keys=False),
           _step("33.5 M bfloat16", _LARGE, **CUDA),
           _step("33.5 M with noise", _LARGE, keys=False, **CUDA)],
        {"torch": step_torch, "official": step_official},
        peers.and_compiled(step_torch),
    ),
    "finalize_bits": (
        [_bits(f"{name} bfloat16", shape) for name, shape in _STATES]
        + [_bits(f"33.5 M {short(dtype)}", _LARGE, dtype, **CUDA) for dtype in (BF16, F32)],
        {"torch": bits_torch},
        peers.and_compiled(bits_torch),
    ),
}  # fmt: skip
"""Timings and baselines by op."""
