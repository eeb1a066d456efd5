"""Samples of denoise_patch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from bitdance_kernels import denoise_patch, denoise_schedule, noise_keys, pack_weight
from bitdance_kernels.testing import Call, Case

__all__ = ["CASES", "head_call"]


def head_call(
    name: str,
    generator: torch.Generator,
    dtype: torch.dtype,
    shape: tuple[int, ...],
    widths: tuple[int, int] = (128, 256),
    *,
    layers: int = 2,
    projections: int = 1,
    steps: int = 2,
    cfg: float | None = None,
    keys: bool = True,
    packed: bool = True,
    num_heads: int = 0,
    **more: Any,
) -> Call:
    """A call on a state of `shape`, on the CPU, with a head of random weights."""
    (width, hidden), bits = widths, shape[-1]

    def draw(*sizes: int, scale: float = 1.0) -> torch.Tensor:
        return (torch.randn(sizes, generator=generator) * scale).to(dtype)

    def weight(features: int, channels: int, layout: str = "rows") -> torch.Tensor:
        matrix = draw(features, channels, scale=channels**-0.5)
        return pack_weight(matrix, layout) if packed else matrix

    def stack(features: int, channels: int, layout: str = "rows") -> torch.Tensor:
        return torch.stack([weight(features, channels, layout) for _ in range(layers)])

    rows = torch.Size(shape[:-1]).numel() * (1 if cfg is None else 2)
    chunks = (6 if num_heads else 3) * projections + 2
    given = torch.randn((steps + 1, *shape), generator=generator)
    attention = (
        1 + draw(layers, width, scale=0.2), draw(layers, width, scale=0.2),
        stack(3 * width, width), draw(layers, 3 * width, scale=0.2), stack(width, width),
        draw(layers, width, scale=0.2),
    )  # fmt: skip
    return Call(
        name,
        (
            torch.randn(shape, generator=generator),
            draw(steps + 1, rows, chunks * width, scale=0.5), denoise_schedule(steps)[0],
            weight(width, bits), draw(width, scale=0.2), 1 + draw(layers, width, scale=0.2),
            draw(layers, width, scale=0.2), stack(2 * hidden, width, "swiglu"),
            draw(layers, 2 * hidden, scale=0.2), stack(width, hidden),
            draw(layers, width, scale=0.2), weight(bits, width), draw(bits, scale=0.2),
        ),
        {
            "attention": attention if num_heads else None,
            "num_heads": num_heads,
            "cfg": None if cfg is None else torch.tensor([cfg]),
            "noise": None if keys else given,
            "keys": noise_keys(2**40 + 7, range(5, 5 + shape[0]), ar_step=3) if keys else None,
            **more,
        },
    )  # fmt: skip


def samples(device: torch.device) -> Iterator[Call]:
    generator = torch.Generator().manual_seed(0)
    half, brain = torch.float16, torch.bfloat16
    rows: tuple[tuple[torch.dtype, tuple[int, ...], tuple[int, int], dict[str, Any]], ...] = (
        (brain, (3, 32), (768, 1152), {"cfg": 4.5, "projections": 2}),
        (half, (2, 8, 32), (768, 1152), {"layers": 1, "keys": False, "squash": True}),
        (brain, (5, 4, 32), (128, 256), {"layers": 1, "steps": 1}),
        (torch.float32, (2, 16), (48, 80), {"cfg": 2.0, "layers": 3, "projections": 2}),
        (torch.float32, (3, 5, 7), (24, 20), {"packed": False, "keys": False, "squash": True}),
        (brain, (2, 4, 16), (64, 96), {"num_heads": 4, "cfg": 3.0, "projections": 2}),
        (half, (1, 6, 5), (36, 24), {"num_heads": 3, "packed": False, "keys": False}),
        (half, (0, 32), (768, 1152), {"layers": 1, "steps": 1}),
    )
    for dtype, shape, widths, more in rows:
        name = f"{list(shape)} of {widths} {dtype} {more}"
        call = head_call(name, generator, dtype, shape, widths, **more)
        yield call.map(lambda t: t.to(device))


CASES = (Case(op=denoise_patch, rule="staged", samples=samples),)
