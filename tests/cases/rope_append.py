"""rope_append: one step of the ImageNet and the text-to-image models."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F

from bitdance_kernels import rope_append
from bitdance_kernels.testing import Call, Case, Timing
from tests.cases.rope import table, torch_complex

F32, F16, BF16 = torch.float32, torch.float16, torch.bfloat16


def _call(
    name: str,
    heads: tuple[int, int, int],
    cache: int,
    P: int,
    position: Sequence[int],
    dtype: torch.dtype,
    device: torch.device,
    *,
    norm: torch.dtype | None = None,
    generator: torch.Generator | None = None,
    **kwargs: Any,
) -> Call:
    """(H, Hkv, D) = `heads`; with `norm`, q_norm and k_norm of that dtype."""
    H, Hkv, D = heads
    B = len(position)
    # With a generator the same values on every device.
    source = device if generator is None else torch.device("cpu")

    def randn(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, device=source)

    qkv = randn(B, P, (H + 2 * Hkv) * D).to(device, dtype)
    k, v = randn(2, B, cache, Hkv, D).to(device, dtype)
    kwargs |= {"num_heads": H, "num_kv_heads": Hkv}
    if norm is not None:
        kwargs["q_norm"], kwargs["k_norm"] = randn(2, D).to(device, norm)
    rows = torch.tensor(position, dtype=torch.int32, device=device)
    return Call(name, (qkv, k, v, rows, table(cache, D, device, generator=generator)), kwargs)


def samples(device: torch.device) -> Iterator[Call]:
    call = functools.partial(_call, device=device, generator=torch.Generator().manual_seed(0))
    for dtype in (F32, F16, BF16):
        yield call(f"interleaved, {dtype}", (3, 3, 16), 21, 4, (3, 17), dtype)
        name = f"halves, normed, grouped heads, {dtype}"
        halves: dict[str, Any] = {"norm": dtype, "interleaved": False, "eps": 1e-5}
        yield call(name, (4, 2, 64), 150, 5, (0, 100, 134), dtype, **halves)
    for D in (32, 48, 64, 80, 96, 128):
        yield call(f"interleaved, D = {D}", (4, 4, D), 9, 2, (7, 0), BF16)
        yield call(f"halves, D = {D}", (10, 2, D), 9, 2, (0, 7), BF16, interleaved=False, norm=F32)
    yield call("float32 norms", (2, 1, 10), 9, 3, (6, 0), BF16, norm=F32)
    yield call("serial", (8, 1, 32), 70, 1, (69,), F32)
    yield call("one pair", (1, 1, 2), 1, 1, (0,), F32)
    yield call("no token", (2, 2, 8), 4, 0, (1, 4), F32)
    yield call("no batch", (2, 2, 8), 4, 2, (), F32)


def _timing(
    name: str,
    B: int,
    P: int,
    heads: tuple[int, int, int],
    cache: int,
    dtype: torch.dtype,
    *devices: str,
    **kwargs: Any,
) -> Timing:
    H, Hkv, D = heads

    name = f"{name}, {str(dtype).removeprefix('torch.')}"

    def make(device: torch.device) -> Call:
        return _call(name, heads, cache, P, [cache // 2] * B, dtype, device, **kwargs)

    moved = 2 * B * P * (H + 2 * Hkv) * D * dtype.itemsize
    return Timing(name, make, moved, devices=devices)


def torch_steps(
    qkv: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    position: torch.Tensor,
    freqs: torch.Tensor,
    *,
    num_heads: int,
    num_kv_heads: int,
    interleaved: bool = True,
    q_norm: torch.Tensor | None = None,
    k_norm: torch.Tensor | None = None,
    eps: float = 1e-6,
) -> torch.Tensor:
    """Norm, rotation and two writes as separate steps; all rows at the position of the first."""
    P = qkv.shape[1]
    split = qkv.unflatten(-1, (-1, k_cache.shape[3]))
    q, k, v = split.split((num_heads, num_kv_heads, num_kv_heads), dim=2)
    if q_norm is not None:
        q = F.rms_norm(q, q_norm.shape, q_norm, eps)
    if k_norm is not None:
        k = F.rms_norm(k, k_norm.shape, k_norm, eps)
    rows = position[0] + torch.arange(P, device=qkv.device)
    angles = freqs[rows]
    k_cache.index_copy_(1, rows, torch_complex(k, angles, interleaved=interleaved))
    v_cache.index_copy_(1, rows, v)
    return torch_complex(q, angles, interleaved=interleaved)


CASES = (
    Case(
        op=rope_append,
        rule="rounded",
        samples=samples,
        timings=(
            _timing("ImageNet B-16x, 1 image", 2, 16, (12, 12, 64), 319, F32, "cpu", "cuda"),
            _timing("ImageNet B-1x, 1 image", 2, 1, (12, 12, 64), 319, BF16, "cuda"),
            _timing("ImageNet B-1x, 64 images", 128, 1, (12, 12, 64), 319, BF16, "cuda"),
            _timing("ImageNet B-16x, 1 image", 2, 16, (12, 12, 64), 319, BF16, "cuda"),
            _timing("ImageNet B-16x, 64 images", 128, 16, (12, 12, 64), 319, BF16, "cuda"),
            *(
                _timing(
                    f"14B-64x, {images} image{'s' * (images > 1)}",
                    2 * images,
                    64,
                    (40, 8, 128),
                    4352,
                    BF16,
                    "cuda",
                    norm=BF16,
                    interleaved=False,
                )
                for images in (1, 16)
            ),
        ),
        baselines={"torch": torch_steps},
        mutates=(1, 2),
    ),
)
