"""block_causal_attention: training sequences of the ImageNet and the text-to-image models."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F

from bitdance_kernels import (
    Ranges,
    block_causal_attention,
    block_causal_ranges,
    dense_mask,
    packed_document_ranges,
)
from bitdance_kernels.testing import Call, Case, Timing

F32, F16, BF16 = torch.float32, torch.float16, torch.bfloat16


def samples(device: torch.device) -> Iterator[Call]:
    generator = torch.Generator().manual_seed(0)

    def call(
        name: str,
        B: int,
        heads: tuple[int, int],
        D: int,
        ranges: Ranges,
        *,
        keys: int | None = None,
        dtype: torch.dtype = F32,
        scale: float | None = None,
    ) -> Call:
        H, Hkv = heads
        T = ranges.start.shape[-1]
        Tk = T if keys is None else keys
        q, k, v = (
            torch.randn(shape, generator=generator).to(device, dtype)
            for shape in ((B, T, H, D), (B, Tk, Hkv, D), (B, Tk, Hkv, D))
        )
        return Call(name, (q, k, v, ranges), {} if scale is None else {"scale": scale})

    def ranges(start: list[int] | list[list[int]], end: list[int] | list[list[int]]) -> Ranges:
        start_tensor = torch.tensor(start, dtype=torch.int32, device=device)
        return Ranges(start_tensor, torch.tensor(end, dtype=torch.int32, device=device))

    imagenet = block_causal_ranges(3, 4, 4, device=device)
    for dtype in (F32, F16, BF16):
        yield call(f"P = 4, {dtype}", 2, (3, 3), 16, imagenet, dtype=dtype)
    packed = packed_document_ranges(
        [15, 130], [(5, "causal"), (10, "parallel"), (130, "parallel")], patch_tokens=16
    )
    packed = Ranges(packed.start.to(device), packed.end.to(device))
    for dtype in (F32, BF16):
        yield call(f"packed, grouped heads, {dtype}", 2, (4, 2), 64, packed, dtype=dtype)
    # Every width of a head that has tiles of its own, whole and in part.
    for D in (32, 48, 80, 128):
        for dtype in (F32, BF16):
            yield call(f"D = {D}, {dtype}", 1, (2, 1), D, imagenet, dtype=dtype)
    yield call("one query", 1, (1, 1), 8, ranges([0], [1]))
    yield call("serial, odd D", 2, (2, 1), 5, block_causal_ranges(71, 0, 1, device=device))
    yield call("scale", 1, (2, 2), 16, imagenet, scale=0.5)
    yield call("more keys", 2, (2, 2), 16, ranges([0, 3, 3], [70, 70, 133]), keys=150)
    blind = ranges([[0, 0, 2, 5], [1, 1, 4, 4]], [[0, 2, 2, 9], [1, 1, 1, 6]])
    yield call("per row, some queries see nothing", 2, (2, 1), 16, blind, keys=9)
    nothing = ranges([0, 0], [0, 0])
    yield call("no key", 1, (1, 1), 16, nothing, keys=0)
    yield call("no query", 1, (1, 1), 16, ranges([], []), keys=4)
    yield call("no batch", 0, (1, 1), 16, imagenet)


def _timing(
    name: str,
    B: int,
    heads: tuple[int, int],
    D: int,
    make_ranges: Callable[[torch.device | str], Ranges],
    dtype: torch.dtype,
    *devices: str,
    backward: bool = False,
) -> Timing:
    """Operations are those of visible pairs: two products forward, five more for the gradients."""
    H, Hkv = heads
    ranges = make_ranges("cpu")
    T = ranges.start.shape[0]
    pairs = int((ranges.end - ranges.start).sum())

    name = f"{name}, {str(dtype).removeprefix('torch.')}{', with gradients' if backward else ''}"

    def make(device: torch.device) -> Call:
        def randn(heads: int) -> torch.Tensor:
            return torch.randn(B, T, heads, D, device=device).to(dtype)

        return Call(name, (randn(H), randn(Hkv), randn(Hkv), make_ranges(device)))

    moved = 2 * B * T * (H + Hkv) * D * dtype.itemsize  # q, k, v, out
    if backward:  # those and the gradient of out are read, those of q, k and v written
        moved += B * T * (4 * H + 4 * Hkv) * D * dtype.itemsize
    products = 7 if backward else 2
    flops = 2 * products * B * H * D * pairs
    return Timing(name, make, moved, flops=flops, devices=devices, backward=backward)


def _imagenet(device: torch.device | str) -> Ranges:
    return block_causal_ranges(63, 16, 16, device=device)


def _serial(device: torch.device | str) -> Ranges:
    return block_causal_ranges(63, 256, 1, device=device)


def _bundled(device: torch.device | str) -> Ranges:
    return block_causal_ranges(3, 16, 4, device=device)


def _bundled_prefix(device: torch.device | str) -> Ranges:
    return block_causal_ranges(3, 1, 4, device=device)


def _text_to_image(device: torch.device | str) -> Ranges:
    """Fourteen documents, each a prompt and a 512-pixel image in patches of 64 tokens."""
    documents, prompt, image, P = 14, 130, 2 + 1024, 64
    segments = [(prompt, "causal"), (image, "parallel")] * documents
    lengths = [prompt + image] * documents
    return packed_document_ranges(lengths, segments, patch_tokens=P, device=device)


def _causal(device: torch.device | str) -> Ranges:
    return block_causal_ranges(8192, 0, 1, device=device)


@functools.lru_cache(maxsize=2)
def _dense(ranges: Ranges, keys: int) -> torch.Tensor:
    """Made once and kept, as a user who trains with a dense mask would.

    [T, Tk] or [B, 1, T, Tk]: with three dimensions SDPA on the CPU writes its scores.
    """
    mask = dense_mask(ranges, keys)
    return mask if mask.dim() == 2 else mask.unsqueeze(1)


def sdpa(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    ranges: Ranges,
    *,
    scale: float | None = None,
) -> torch.Tensor:
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    grouped = q.shape[1] != k.shape[1]
    mask = _dense(ranges, k.shape[2])
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale, enable_gqa=grouped)
    return out.transpose(1, 2)


@functools.lru_cache(maxsize=2)
def _flex(ranges: Ranges, keys: int) -> Callable[..., torch.Tensor]:
    """Compiled FlexAttention with the block mask of `ranges` [T]."""
    # Imported late: most users of this module are tests, which need no compiler.
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    start, end = ranges.start, ranges.end

    def visible(b: torch.Tensor, h: torch.Tensor, i: torch.Tensor, j: torch.Tensor) -> torch.Tensor:
        return (j >= start[i]) & (j < end[i])

    device = str(start.device)
    blocks = create_block_mask(visible, None, None, start.shape[0], keys, device=device)
    return functools.partial(torch.compile(flex_attention), block_mask=blocks)


def flex(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    ranges: Ranges,
    *,
    scale: float | None = None,
) -> torch.Tensor:
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    grouped = q.shape[1] != k.shape[1]
    out = _flex(ranges, k.shape[2])(q, k, v, scale=scale, enable_gqa=grouped)
    return out.transpose(1, 2)


def flash_attn_causal(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    ranges: Ranges,
    *,
    scale: float | None = None,
) -> torch.Tensor:
    """FlashAttention-2 under a causal mask of T tokens: another function, to compare the speed."""
    from flash_attn import flash_attn_func

    return flash_attn_func(q, k, v, softmax_scale=scale, causal=True)


def flash_attn_4_causal(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    ranges: Ranges,
    *,
    scale: float | None = None,
) -> torch.Tensor:
    """FlashAttention-4 (``flash-attn-4``, in CuTe) under a causal mask, as above."""
    from flash_attn.cute import flash_attn_func

    out = flash_attn_func(q, k, v, softmax_scale=scale, causal=True)
    return out[0] if isinstance(out, tuple) else out  # some versions return the log-sum-exp too


def _timings() -> Iterator[Timing]:
    yield _timing("ImageNet B, 4 images", 4, (12, 12), 64, _imagenet, F32, "cpu", "cuda")
    yield _timing("bundled model, first patch", 2, (6, 6), 32, _bundled_prefix, F32, "cpu")
    for backward in (False, True):
        for name, B, heads, D, make_ranges in (
            ("ImageNet B, 1 image", 1, (12, 12), 64, _imagenet),
            ("ImageNet B, 16 images", 16, (12, 12), 64, _imagenet),
            ("ImageNet B-1x, 4 images", 4, (12, 12), 64, _serial),
            ("bundled model, 32 images", 32, (6, 6), 32, _bundled),
        ):
            yield _timing(name, B, heads, D, make_ranges, F32, "cpu", backward=backward)
        for name, B, heads, D, make_ranges in (
            ("ImageNet B, 64 images", 64, (12, 12), 64, _imagenet),
            ("ImageNet H, 64 images", 64, (20, 20), 64, _imagenet),
            ("packed 14B, 16k tokens", 1, (40, 8), 128, _text_to_image),
            ("causal 8k", 1, (40, 8), 128, _causal),
        ):
            yield _timing(name, B, heads, D, make_ranges, BF16, "cuda", backward=backward)


CASES = (
    Case(
        op=block_causal_attention,
        rule="staged",
        samples=samples,
        timings=tuple(_timings()),
        baselines={
            "sdpa dense mask": sdpa,
            "flex": flex,
            "flash-attn 2, causal": flash_attn_causal,
            "flash-attn 4, causal": flash_attn_4_causal,
        },
    ),
)
