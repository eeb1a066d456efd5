"""patch_attention: patches of 4, 16 and 64 tokens at the widths of the published heads."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F

from bitdance_kernels import patch_attention
from bitdance_kernels.testing import Call, Case, Timing


def samples(device: torch.device) -> Iterator[Call]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(5, 4, 48, 2), (3, 16, 96, 1), (1, 1, 24, 1), (2, 9, 72, 3), (0, 4, 24, 2)]
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        for rows, patch, width, heads in shapes:
            qkv = torch.randn(rows, patch, width, generator=generator).to(device, dtype)
            yield Call(f"[{rows}, {patch}, {width}], {heads} heads, {dtype}", (qkv, heads))
    qkv = torch.randn(2, 64, 96, generator=generator).to(device)
    yield Call("64 tokens", (qkv, 2))
    yield Call("sharp scores", (30 * qkv[:, :16], 2))


def _timing(rows: int, patch: int, width: int, heads: int, *devices: str) -> Timing:
    dtype = torch.bfloat16 if devices == ("cuda",) else torch.float32
    name = f"[{rows}, {patch}, 3 x {width}] {str(dtype).removeprefix('torch.')}"

    def make(device: torch.device) -> Call:
        qkv = torch.randn(rows, patch, 3 * width, device=device).to(dtype)
        return Call(name, (qkv, heads))

    return Timing(
        name,
        make,
        bytes=4 * rows * patch * width * dtype.itemsize,
        flops=4 * rows * patch * patch * width,
        devices=devices or ("cpu", "cuda"),
    )


def sdpa(qkv: torch.Tensor, num_heads: int) -> torch.Tensor:
    rows, patch, width = qkv.shape
    q, k, v = qkv.view(rows, patch, 3, num_heads, -1).permute(2, 0, 3, 1, 4)
    out = F.scaled_dot_product_attention(q, k, v)
    return out.transpose(1, 2).reshape(rows, patch, width // 3)


def eight_launches(qkv: torch.Tensor, num_heads: int) -> torch.Tensor:
    rows, patch, width = qkv.shape
    q, k, v = qkv.view(rows, patch, 3, num_heads, -1).permute(2, 0, 3, 1, 4)
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
    out = torch.softmax(scores.float(), dim=-1).to(v.dtype) @ v
    return out.transpose(1, 2).reshape(rows, patch, width // 3)


CASES = (
    Case(
        op=patch_attention,
        rule="staged",
        samples=samples,
        timings=(
            _timing(128, 16, 768, 12),
            _timing(128, 4, 768, 12),
            _timing(2, 64, 5120, 40),
            _timing(768, 16, 768, 12, "cuda"),
            _timing(768, 4, 768, 12, "cuda"),
            _timing(128, 64, 5120, 40, "cuda"),
        ),
        baselines={"sdpa": sdpa, "eight launches": eight_launches},
    ),
)
