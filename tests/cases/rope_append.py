"""Samples of rope_append."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from bitdance_kernels import rope_append
from bitdance_kernels.testing import Call, Case
from tests.cases.rope import table

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


CASES = (Case(op=rope_append, rule="rounded", samples=samples, mutates=(1, 2)),)
