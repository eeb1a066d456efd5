"""Shapes of the attention ops: training sequences and decoding steps of the published models."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.peers import and_compiled, installed
from benchmarks.shapes import Make, Timing, short, timing
from bitdance_kernels import Ranges, block_causal_ranges, dense_mask, packed_document_ranges
from tests.cases.rope import table

F32, BF16 = torch.float32, torch.bfloat16
CPU, CUDA, BOTH = ("cpu",), ("cuda",), ("cpu", "cuda")
MakeRanges = Callable[..., Ranges]


def _causal_attention(
    dtype: torch.dtype, devices: tuple[str, ...], name: str, B: int, heads: tuple[int, int], D: int,
    make_ranges: MakeRanges, *, backward: bool = False,
) -> Timing:  # fmt: skip
    """Operations are those of visible pairs: two products forward, five more for the gradients."""
    H, Hkv = heads
    ranges = make_ranges(device="cpu")
    T = ranges.start.shape[0]
    pairs = int((ranges.end - ranges.start).sum())

    def arguments(make: Make) -> list[Any]:
        q, k, v = (make.randn(B, T, h, D, dtype=dtype) for h in (H, Hkv, Hkv))
        return [q, k, v, make_ranges(device=make.device)]

    # q, k, v, out; then those and the gradient of out are read, those of q, k and v written.
    moved = (6 if backward else 2) * B * T * (H + Hkv) * D * dtype.itemsize
    flops = 2 * (7 if backward else 2) * B * H * D * pairs
    name = f"{name}, {short(dtype)}{', with gradients' if backward else ''}"
    return timing(
        name, arguments, moved, flops=flops, half=dtype == BF16, devices=devices, backward=backward
    )


def text_to_image(device: torch.device | str) -> Ranges:
    """Fourteen documents, each a prompt and a 512-pixel image in patches of 64 tokens."""
    documents, prompt, image, P = 14, 130, 2 + 1024, 64
    segments = [(prompt, "causal"), (image, "parallel")] * documents
    lengths = [prompt + image] * documents
    return packed_document_ranges(lengths, segments, patch_tokens=P, device=device)


def texts(device: torch.device | str) -> Ranges:
    """Documents of text alone: 16k tokens of 64, 256 and 1024 a document in turn."""
    lengths = [64, 256, 1024] * 12
    segments = [(length, "causal") for length in lengths]
    return packed_document_ranges(lengths, segments, patch_tokens=1, device=device)


def pictures(device: torch.device | str) -> Ranges:
    """Images without words, in patches of 16 tokens: eleven of 256, 512 and 1024 pixels a side."""
    images = [256, 1024, 4096, *[1024] * 8]
    segments = [(2 + tokens, "parallel") for tokens in images]
    lengths = [length for length, _ in segments]
    return packed_document_ranges(lengths, segments, patch_tokens=16, device=device)


def _causal_timings() -> list[Timing]:
    imagenet, serial, bundled, first, causal = (
        functools.partial(block_causal_ranges, *sizes)
        for sizes in ((63, 16, 16), (63, 256, 1), (3, 16, 4), (3, 1, 4), (8192, 0, 1))
    )
    B, small, large = (12, 12), (6, 6), (40, 8)
    on_cpu = (
        ("ImageNet B, 1 image", 1, B, 64, imagenet), ("ImageNet B, 16 images", 16, B, 64, imagenet),
        ("ImageNet B-1x, 4 images", 4, B, 64, serial),
        ("bundled model, 32 images", 32, small, 32, bundled),
    )  # fmt: skip
    on_card = (
        ("ImageNet B, 64 images", 64, B, 64, imagenet),
        ("ImageNet H, 64 images", 64, (20, 20), 64, imagenet),
        ("packed 14B, 16k tokens", 1, large, 128, text_to_image),
        ("packed 14B, 16k tokens of text", 1, large, 128, texts),
        ("packed 14B-16x, 14k tokens of images", 1, large, 128, pictures),
        ("causal 8k", 1, large, 128, causal),
    )
    timings = [
        _causal_attention(F32, BOTH, "ImageNet B, 4 images", 4, B, 64, imagenet),
        _causal_attention(F32, CPU, "bundled model, first patch", 2, small, 32, first),
        *(_causal_attention(dtype, CPU, "ImageNet B, 4 images", 4, B, 64, imagenet, backward=b)
          for dtype in (BF16, torch.float16) for b in (False, True)),
    ]  # fmt: skip
    for backward in (False, True):
        timings += [_causal_attention(F32, CPU, *row, backward=backward) for row in on_cpu]
        timings += [_causal_attention(BF16, CUDA, *row, backward=backward) for row in on_card]
    return timings


@functools.lru_cache(maxsize=2)
def _dense(ranges: Ranges, keys: int) -> Tensor:
    """The mask of `ranges`, built once, as a user who trains with a dense mask would.

    [T, Tk] or [B, 1, T, Tk]: with three dimensions SDPA on the CPU writes its scores.
    """
    mask = dense_mask(ranges, keys)
    return mask if mask.dim() == 2 else mask.unsqueeze(1)


def _sdpa(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    grouped = q.shape[1] != k.shape[1]
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=grouped)
    return out.transpose(1, 2)


def sdpa_dense(q: Tensor, k: Tensor, v: Tensor, ranges: Ranges) -> Tensor:
    return _sdpa(q, k, v, _dense(ranges, k.shape[1]))


def _sdpa_by(backend: str, q: Tensor, k: Tensor, v: Tensor, ranges: Ranges) -> Tensor:
    """One backend of PyTorch's attention on a card, which refuses a dense mask if it takes none."""
    if q.device.type != "cuda":
        raise RuntimeError("it is a backend for cards")
    with sdpa_kernel(getattr(SDPBackend, backend)):
        return sdpa_dense(q, k, v, ranges)


@functools.lru_cache(maxsize=2)
def compiled_flex(ranges: Ranges, keys: int) -> Callable[..., Tensor]:
    """Compiled FlexAttention with the block mask of `ranges` [T]."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    start, end = ranges.start, ranges.end

    def visible(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return (j >= start[i]) & (j < end[i])

    device = str(start.device)
    blocks = create_block_mask(visible, None, None, start.shape[0], keys, device=device)
    return functools.partial(torch.compile(flex_attention), block_mask=blocks)


def flex(q: Tensor, k: Tensor, v: Tensor, ranges: Ranges) -> Tensor:
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    grouped = q.shape[1] != k.shape[1]
    return compiled_flex(ranges, k.shape[2])(q, k, v, enable_gqa=grouped).transpose(1, 2)


def _flash_causal(module: str, q: Tensor, k: Tensor, v: Tensor, ranges: Ranges) -> Tensor:
    """FlashAttention under a causal mask of T tokens: another function, to compare the speed."""
    out = installed(module).flash_attn_func(q, k, v, causal=True)
    return out[0] if isinstance(out, tuple) else out  # some return the log-sum-exp too


def _decode(
    name: str, q: tuple[int, int, int, int], cache: tuple[int, int], length: int,
    dtype: torch.dtype, devices: tuple[str, ...] = CUDA,
) -> Timing:  # fmt: skip
    B, P, H, D = q

    def arguments(make: Make) -> list[Any]:
        k, v = make.randn(2, B, *cache, D, dtype=dtype)
        lengths = torch.full((B,), length, dtype=torch.int32, device=make.device)
        return [make.randn(*q, dtype=dtype), k, v, lengths]

    moved = (2 * B * P * H * D + 2 * B * length * cache[1] * D) * dtype.itemsize
    flops = 4 * B * P * H * D * length
    name = f"{name}, {short(dtype)}"
    half = dtype == BF16
    return timing(name, arguments, moved, flops=flops, half=half, devices=devices)


def sdpa_mask(q: Tensor, k_cache: Tensor, v_cache: Tensor, lengths: Tensor) -> Tensor:
    """With a mask, as lengths that stay on the device need."""
    visible = torch.arange(k_cache.shape[1], device=q.device) < lengths[:, None]
    mask = visible[:, None, None].expand(-1, 1, q.shape[1], -1)
    return _sdpa(q, k_cache, v_cache, mask)


def sdpa_slices(q: Tensor, k_cache: Tensor, v_cache: Tensor, lengths: Tensor) -> Tensor:
    """Without a mask, as a user on a CPU may whose rows are all as long."""
    q, k, v = (x.transpose(1, 2) for x in (q, *(c[:, : lengths[0]] for c in (k_cache, v_cache))))
    grouped = q.shape[1] != k.shape[1]
    return F.scaled_dot_product_attention(q, k, v, enable_gqa=grouped).transpose(1, 2)


def flash_attention(q: Tensor, k_cache: Tensor, v_cache: Tensor, lengths: Tensor) -> Tensor:
    """FlashAttention's decoding with per-row lengths, where it is installed."""
    decode = installed("flash_attn").flash_attn_with_kvcache
    return decode(q, k_cache, v_cache, cache_seqlens=lengths, causal=False)


def _rope(
    name: str, shape: tuple[int, int, int, int], dtype: torch.dtype, devices: tuple[str, ...]
) -> Timing:
    def arguments(make: Make) -> list[Any]:
        return [make.randn(*shape, dtype=dtype), table(shape[1], shape[3], make.device)]

    moved = 2 * math.prod(shape) * dtype.itemsize + 4 * shape[1] * shape[3]
    return timing(f"{name}, {short(dtype)}", arguments, moved, devices=devices)


def rope_complex(x: Tensor, freqs: Tensor, *, interleaved: bool = True) -> Tensor:
    """As the official code rotates: as complex numbers."""
    pairs = x.float().unflatten(-1, (-1, 2) if interleaved else (2, -1))
    pairs = pairs if interleaved else pairs.transpose(-1, -2).contiguous()
    turned = torch.view_as_complex(pairs) * torch.view_as_complex(freqs)[:, None]
    result = torch.view_as_real(turned)
    return (result if interleaved else result.transpose(-1, -2)).flatten(-2).to(x.dtype)


def _append(
    name: str, B: int, P: int, heads: tuple[int, int, int], cache: int, dtype: torch.dtype,
    devices: tuple[str, ...] = CUDA, *, norm: torch.dtype | None = None, **options: Any,
) -> Timing:  # fmt: skip
    H, Hkv, D = heads

    def arguments(make: Make) -> list[Any]:
        named = {"num_heads": H, "num_kv_heads": Hkv, **options}
        qkv = make.randn(B, P, (H + 2 * Hkv) * D, dtype=dtype)
        k, v = make.randn(2, B, cache, Hkv, D, dtype=dtype)
        if norm is not None:
            named["q_norm"], named["k_norm"] = make.randn(2, D, dtype=norm)
        rows = torch.full((B,), cache // 2, dtype=torch.int32, device=make.device)
        return [qkv, k, v, rows, table(cache, D, make.device), named]

    moved = 2 * B * P * (H + 2 * Hkv) * D * dtype.itemsize
    return timing(f"{name}, {short(dtype)}", arguments, moved, devices=devices)


def append_steps(
    qkv: Tensor, k_cache: Tensor, v_cache: Tensor, position: Tensor, freqs: Tensor, *,
    num_heads: int, num_kv_heads: int, interleaved: bool = True, q_norm: Tensor | None = None,
    k_norm: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Norm, rotation and two writes as separate steps; all rows at the position of the first."""
    split = qkv.unflatten(-1, (-1, k_cache.shape[3]))
    q, k, v = split.split((num_heads, num_kv_heads, num_kv_heads), dim=2)
    if q_norm is not None and k_norm is not None:
        q, k = (F.rms_norm(x, w.shape, w, 1e-6) for x, w in ((q, q_norm), (k, k_norm)))
    rows = position[0] + torch.arange(qkv.shape[1], device=qkv.device)
    angles = freqs[rows]
    k_cache.index_copy_(1, rows, rope_complex(k, angles, interleaved=interleaved))
    v_cache.index_copy_(1, rows, v)
    return rope_complex(q, angles, interleaved=interleaved)


_B, _14B = (12, 12, 64), (40, 8, 128)
_T2I: dict[str, Any] = {"norm": BF16, "interleaved": False}


def _images(batch: int) -> str:
    return f"{batch} image{'s' * (batch > 1)}"


SHAPES: dict[str, tuple[Any, ...]] = {
    "block_causal_attention": (
        _causal_timings(),
        {
            "sdpa dense mask": sdpa_dense,
            **{
                f"sdpa dense mask, {backend.lower()}": functools.partial(_sdpa_by, backend.upper())
                for backend in ("flash_attention", "efficient_attention", "cudnn_attention", "math")
            },
            "flex": flex,
            "flash-attn 2, causal": functools.partial(_flash_causal, "flash_attn"),
            "flash-attn 4, causal": functools.partial(_flash_causal, "flash_attn.cute"),
        },
        {"sdpa dense mask": sdpa_dense},
    ),
    "block_decode_attention": (
        [_decode(f"ImageNet B-{P}x, 1 image", (2, P, 12, 64), (319, 12), 200, F32, BOTH)
         for P in (16, 1)]
        + [_decode(f"ImageNet B-{P}x, {_images(B)}", (2 * B, P, 12, 64), (319, 12), length, BF16,
                   BOTH if B == 1 else CUDA)
           for P, B, length in ((1, 1, 319), (16, 1, 200), (1, 64, 319), (16, 64, 319),
                                (1, 384, 319))]
        + [_decode(f"14B-{P}x, {_images(B)}", (2 * B, P, 40, 128), (4352, 8), 4352, BF16)
           for P, B in ((16, 1), (16, 4), (64, 1), (64, 4), (64, 16), (64, 64))],
        {"sdpa mask": sdpa_mask, "flash_attn_with_kvcache": flash_attention},
        {"sdpa mask": sdpa_mask, "sdpa of slices": sdpa_slices},
    ),
    "rope": (
        [
            _rope("ImageNet B, 4 images", (4, 319, 12, 64), F32, BOTH),
            _rope("ImageNet B, 4 images", (4, 319, 12, 64), BF16, CPU),
            _rope("one patch", (2, 16, 12, 64), F32, CPU),
            _rope("ImageNet B, 64 images", (64, 319, 12, 64), BF16, CUDA),
            _rope("14B, 18k tokens", (1, 18496, 40, 128), BF16, CUDA),
        ],
        {"torch": rope_complex},
        and_compiled(rope_complex),
    ),
    "rope_append": (
        [_append("ImageNet B-16x, 1 image", 2, 16, _B, 319, F32, BOTH)]
        + [_append(f"ImageNet B-{P}x, {_images(B)}", 2 * B, P, _B, 319, BF16)
           for P in (1, 16) for B in (1, 64)]
        + [_append(f"14B-{P}x, {_images(B)}", 2 * B, P, _14B, 4352, BF16, **_T2I)
           for P, B in ((16, 1), (16, 4), (64, 1), (64, 16))],
        {"torch": append_steps},
    ),
}  # fmt: skip
"""Timings and baselines by op."""
