"""Samples of predict_step."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from bitdance_kernels import denoise_schedule, noise_keys, predict_step
from bitdance_kernels.testing import Call, Case

_STEPS = 100


def _call(
    name: str,
    draw: torch.Generator,
    device: torch.device,
    dtype: torch.dtype,
    shape: tuple[int, ...],
    width: int,
    *,
    cfg: float | None,
    keys: bool,
    timed: bool,
    step: int = 3,
    **more: object,
) -> Call:
    """A call on a state of `shape`."""

    def make(*sizes: int, scale: float = 1.0) -> torch.Tensor:
        return (torch.randn(sizes, generator=draw) * scale).to(device, dtype)

    bits = shape[-1]
    rows = shape[0] if cfg is None else 2 * shape[0]
    modulation = make(rows, *shape[1:-1], 3 * width)
    stream = (rows, *shape[1:-1], width)
    table = denoise_schedule(_STEPS)[0].to(device)
    return Call(
        name,
        (
            make(*stream), modulation[..., :width], modulation[..., width : 2 * width],
            make(bits, width, scale=width**-0.5), make(bits),
            torch.randn(shape, generator=draw).to(device), table,
            torch.tensor(step, dtype=torch.int32, device=device),
            make(width, bits, scale=bits**-0.5), make(width),
            make(_STEPS + 1, width) if timed else None, make(*stream) if timed else None,
        ),
        {
            "cfg": None if cfg is None else torch.tensor([cfg], device=device),
            "noise": None if keys else torch.randn(shape, generator=draw).to(device),
            "keys": noise_keys(7, range(shape[0]), ar_step=3, device=device) if keys else None,
            **more,
        },
    )  # fmt: skip


def samples(device: torch.device) -> Iterator[Call]:
    draw = torch.Generator().manual_seed(0)
    half, brain = torch.float16, torch.bfloat16
    # shape of the state, channels, dtype, cfg, drawn noise, time, more
    rows: tuple[tuple[tuple[int, ...], int, torch.dtype, float | None, bool, bool, dict], ...] = (
        *(((2, 8, 32), 64, dtype, 4.0, True, True, {}) for dtype in (torch.float32, half, brain)),
        ((4, 32), 192, brain, None, True, False, {}),
        ((2, 9, 32), 192, brain, 4.0, False, True, {"squash": True}),
        ((65, 16, 32), 64, brain, 2.0, True, True, {}),
        ((3, 4, 8), 24, torch.float32, 3.0, True, False, {}),
        ((2, 7, 12), 40, half, 2.5, True, True, {"squash": True}),
        ((33, 5), 72, half, None, False, True, {"step": _STEPS}),
        ((1, 1), 7, torch.float32, 1.0, False, False, {}),
        ((0, 16, 32), 64, torch.float32, 3.0, True, True, {}),
        ((65, 16, 16), 64, half, None, False, True, {}),
    )
    for shape, width, dtype, cfg, keys, timed, more in rows:
        name = f"{list(shape)} of {width} {dtype} cfg {cfg} {'keys' if keys else 'noise'}"
        yield _call(
            name, draw, device, dtype, shape, width, cfg=cfg, keys=keys, timed=timed, **more
        )


CASES = (Case(op=predict_step, rule="staged", samples=samples),)
