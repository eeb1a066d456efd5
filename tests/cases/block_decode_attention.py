"""block_decode_attention: one step of the ImageNet and the text-to-image models."""

from __future__ import annotations

import importlib.util
import itertools
from collections.abc import Callable, Iterator, Sequence

import torch
import torch.nn.functional as F

from bitdance_kernels import block_decode_attention
from bitdance_kernels.testing import Call, Case, Timing

F32, F16, BF16 = torch.float32, torch.float16, torch.bfloat16


def _call(
    name: str,
    q: Sequence[int],
    cache: tuple[int, int],
    lengths: Sequence[int],
    dtype: torch.dtype,
    device: torch.device,
    scale: float | None = None,
) -> Call:
    """Queries of shape `q` against (Tmax, Hkv) = `cache`, NaN where it is not filled."""
    generator = torch.Generator().manual_seed(len(name))
    B, _, _, D = q
    k, v = torch.randn(2, B, *cache, D, generator=generator).to(dtype)
    for b, length in enumerate(lengths):
        k[b, max(length, 0) :] = float("nan")
        v[b, max(length, 0) :] = float("nan")
    args = (
        torch.randn(*q, generator=generator).to(dtype),
        k,
        v,
        torch.tensor(lengths, dtype=torch.int32),
    )
    kwargs = {} if scale is None else {"scale": scale}
    return Call(name, tuple(x.to(device) for x in args), kwargs)


def samples(device: torch.device) -> Iterator[Call]:
    for dtype in (F32, F16, BF16):
        yield _call(f"P = 4, {dtype}", (2, 4, 3, 16), (21, 3), (7, 21), dtype, device)
        yield _call(f"grouped heads, {dtype}", (2, 9, 4, 64), (150, 2), (150,) * 2, dtype, device)
    for D, dtype in itertools.product((32, 48, 64, 80, 96, 128), (F32, F16, BF16)):
        yield _call(f"D = {D}, {dtype}", (2, 1, 4, D), (70, 2), (1, 67), dtype, device)
    for P, D in itertools.product((4, 9, 64), (64, 128)):
        yield _call(f"P = {P}, D = {D}", (2, P, 5, D), (70, 1), (70, 8), BF16, device)
    yield _call("lengths of all kinds", (5, 1, 4, 8), (40, 4), (-1, 0, 1, 33, 50), F32, device)
    yield _call("serial, grouped heads", (2, 1, 8, 32), (70, 1), (65, 1), F32, device)
    yield _call("one token", (1, 1, 1, 8), (1, 1), (1,), F32, device)
    yield _call("P = 3, odd D", (3, 3, 2, 5), (9, 2), (0, 4, 9), F32, device)
    yield _call("P = 64", (1, 64, 2, 16), (300, 1), (257,), BF16, device)
    yield _call("scale", (1, 4, 2, 16), (21, 2), (20,), F32, device, 0.5)
    yield _call("nothing cached", (1, 2, 1, 8), (4, 1), (0,), F32, device)
    yield _call("no cache", (1, 2, 1, 8), (0, 1), (0,), F32, device)
    yield _call("no batch", (0, 2, 1, 8), (4, 1), (), F32, device)


def _timing(
    name: str,
    q: tuple[int, int, int, int],
    cache: tuple[int, int],
    length: int,
    dtype: torch.dtype,
    *devices: str,
) -> Timing:
    B, P, H, D = q
    keys = 2 * B * length * cache[1] * D

    name = f"{name}, {str(dtype).removeprefix('torch.')}"

    def make(device: torch.device) -> Call:
        k, v = torch.randn(2, B, *cache, D, device=device).to(dtype)
        lengths = torch.full((B,), length, dtype=torch.int32, device=device)
        return Call(name, (torch.randn(q, device=device).to(dtype), k, v, lengths))

    moved = (2 * B * P * H * D + keys) * dtype.itemsize
    return Timing(name, make, moved, flops=4 * B * P * H * D * length, devices=devices)


def sdpa(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    lengths: torch.Tensor,
    *,
    scale: float | None = None,
) -> torch.Tensor:
    """With a mask, as lengths that stay on the device need."""
    mask = torch.arange(k_cache.shape[1], device=q.device) < lengths[:, None]
    q, k, v = (x.transpose(1, 2) for x in (q, k_cache, v_cache))
    out = F.scaled_dot_product_attention(
        q,
        k,
        v,
        attn_mask=mask[:, None, None].expand(-1, 1, q.shape[2], -1),
        scale=scale,
        enable_gqa=q.shape[1] != k.shape[1],
    )
    return out.transpose(1, 2)


def flash_attention(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    lengths: torch.Tensor,
    *,
    scale: float | None = None,
) -> torch.Tensor:
    """What FlashAttention has for this, where it is installed."""
    from flash_attn import flash_attn_with_kvcache

    return flash_attn_with_kvcache(
        q, k_cache, v_cache, cache_seqlens=lengths, softmax_scale=scale, causal=False
    )


def baselines() -> dict[str, Callable[..., torch.Tensor]]:
    found: dict[str, Callable[..., torch.Tensor]] = {"sdpa mask": sdpa}
    if torch.cuda.is_available() and importlib.util.find_spec("flash_attn"):
        found["flash_attn_with_kvcache"] = flash_attention
    return found


CASES = (
    Case(
        op=block_decode_attention,
        rule="staged",
        samples=samples,
        timings=(
            _timing("ImageNet B-16x, 1 image", (2, 16, 12, 64), (319, 12), 200, F32, "cpu", "cuda"),
            _timing("ImageNet B-1x, 1 image", (2, 1, 12, 64), (319, 12), 200, F32, "cpu", "cuda"),
            _timing("ImageNet B-1x, 1 image", (2, 1, 12, 64), (319, 12), 319, BF16, "cuda"),
            _timing("ImageNet B-16x, 1 image", (2, 16, 12, 64), (319, 12), 200, BF16, "cuda"),
            _timing("ImageNet B-1x, 64 images", (128, 1, 12, 64), (319, 12), 319, BF16, "cuda"),
            _timing("ImageNet B-16x, 64 images", (128, 16, 12, 64), (319, 12), 319, BF16, "cuda"),
            _timing("ImageNet B-1x, 384 images", (768, 1, 12, 64), (319, 12), 319, BF16, "cuda"),
            _timing("14B-64x, 1 image", (2, 64, 40, 128), (4352, 8), 4352, BF16, "cuda"),
            _timing("14B-64x, 16 images", (32, 64, 40, 128), (4352, 8), 4352, BF16, "cuda"),
            _timing("14B-64x, 64 images", (128, 64, 40, 128), (4352, 8), 4352, BF16, "cuda"),
        ),
        baselines=baselines(),
    ),
)
