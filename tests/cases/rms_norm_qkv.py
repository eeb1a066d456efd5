"""Samples of rms_norm_qkv."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from bitdance_kernels import pack_weight, quantize_rows, rms_norm_qkv
from bitdance_kernels._shared import moments
from bitdance_kernels.testing import Call, Case
from tests.cases.rope import table


def samples(device: torch.device) -> Iterator[Call]:
    generator = torch.Generator().manual_seed(0)

    def make(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(device, dtype)

    def call(
        name: str,
        heads: tuple[int, int, int],
        channels: int,
        new: int,
        position: Sequence[int],
        dtype: torch.dtype,
        *,
        packed: bool = False,
        float8: bool = False,
        with_moments: bool = False,
        **more: Any,
    ) -> Call:
        """(H, Hkv, D) = `heads`; P = `new` tokens after the positions in caches of 21 rows."""
        H, Hkv, D = heads
        weight = (make((H + 2 * Hkv) * D, channels) / channels**0.5).to(dtype)
        if packed:
            interleaved = more.get("interleaved", True)
            layout = ("rope", None) if interleaved else ("rope_half", D)
            values, scales = quantize_rows(weight) if float8 else (weight, None)
            weight = pack_weight(values, layout[0], head_dim=layout[1], scales=scales)
        x = make(len(position), new, channels, dtype=dtype)
        k, v = make(2, len(position), 21, Hkv, D, dtype=dtype)
        rows = torch.tensor(position, dtype=torch.int32, device=device)
        args = (
            x, weight, make(channels, dtype=dtype), k, v, rows,
            table(21, D, device, generator=generator),
        )  # fmt: skip
        named = {"num_heads": H, "num_kv_heads": Hkv, **more}
        if with_moments:
            named["moments"] = moments.of(x)
        return Call(name, args, named)

    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        yield call(f"{dtype}", (3, 3, 10), 24, 4, (3, 17), dtype)
        yield call(f"packed, {dtype}", (2, 2, 16), 32, 4, (0, 9, 17), dtype, packed=True)
        yield call(
            f"packed, float8, {dtype}", (2, 2, 16), 32, 3, (0, 9), dtype, packed=True, float8=True
        )
        yield call(
            f"packed, grouped heads, moments, {dtype}", (4, 2, 16), 48, 2, (19, 0), dtype,
            packed=True, with_moments=True, bias=make(128, dtype=dtype), eps=1e-5,
        )  # fmt: skip
        for packed in (False, True):
            yield call(
                f"norms of heads, {'packed, ' * packed}{dtype}", (4, 2, 32), 48, 3, (2, 11), dtype,
                packed=packed, with_moments=packed, interleaved=False,
                q_norm=make(32, dtype=dtype), k_norm=make(32),
            )  # fmt: skip
    yield call("norms, halves", (3, 1, 10), 24, 2, (0, 9), torch.float32, interleaved=False,
               q_norm=make(10), k_norm=make(10))  # fmt: skip
    yield call("serial", (8, 1, 32), 40, 1, (20,), torch.float32)
    yield call("no token", (2, 2, 8), 16, 0, (1, 4), torch.float32)
    yield call("no batch", (2, 2, 8), 16, 2, (), torch.float32)


CASES = (Case(op=rms_norm_qkv, rule="staged", samples=samples, mutates=(3, 4)),)
