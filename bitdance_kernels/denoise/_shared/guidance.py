"""Classifier-free guidance of the clean-bit prediction, shared by the ops that end a network call.

A guided prediction stacks the conditional rows first, then the unconditional ones, and both halves
belong to one state x; guiding the velocities is then the same as guiding the predictions:

    x0_cfg = x0_u + cfg (x0_c - x0_u)

The difference, the product and the sum each round once, with no fused multiply-add, so that every
backend has the same bits and hence the same signs.
"""

from __future__ import annotations

import torch

from bitdance_kernels._dispatch import arguments
from bitdance_kernels._shared import checks


def scale_tensor(
    op: str, cfg: float | torch.Tensor | None, x0: torch.Tensor, *, name: str = "x0"
) -> torch.Tensor | None:
    """`cfg` as the ops take it: a float32 tensor on the device of `x0`, None if not guided."""
    if cfg is None or isinstance(cfg, torch.Tensor):
        return cfg
    number = arguments.real(op, "cfg", cfg)
    arguments.tensor(op, name, x0)
    return torch.full((), number, dtype=torch.float32, device=x0.device)


def check(op: str, x0: torch.Tensor, cfg: torch.Tensor | None, *, name: str = "x0") -> None:
    """Raise TypeError or ValueError unless `x0`, the argument `name`, can be guided by `cfg`."""
    checks.dtype(op, name, x0, checks.FLOATS)
    checks.rank(op, name, x0, 2)
    if cfg is None:
        return
    checks.dtype(op, "cfg", cfg, (torch.float32, torch.float64))
    if cfg.numel() != 1:
        raise checks.fail(op, "cfg", "of one element", f"shape {list(cfg.shape)}")
    checks.same_device(op, name, x0, cfg=cfg)
    if x0.shape[0] % 2 != 0:
        raise checks.fail(op, name, "[2 R, ...] when cfg is given", f"shape {list(x0.shape)}")


def rows(x0: torch.Tensor, cfg: torch.Tensor | None) -> int:
    """Rows R of the state that `x0` belongs to."""
    return x0.shape[0] if cfg is None else x0.shape[0] // 2


def combine(x0: torch.Tensor, cfg: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor:
    """The guided prediction [R, ...], computed in `dtype`; `x0` itself if there is no `cfg`."""
    x0 = x0.to(dtype)
    if cfg is None:
        return x0
    count = rows(x0, cfg)
    conditional, unconditional = x0[:count], x0[count:]
    return unconditional + cfg.reshape(()).to(dtype) * (conditional - unconditional)
