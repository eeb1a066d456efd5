"""The sampler's affine step: checks and formula, shared by the ops that take one."""

from __future__ import annotations

import torch

from bitdance_kernels import philox
from bitdance_kernels._dispatch import arguments
from bitdance_kernels._shared import checks
from bitdance_kernels.denoise._shared import guidance

_STATE = (torch.float32, torch.float64)


def step_tensor(op: str, step: torch.Tensor | int, table: torch.Tensor) -> torch.Tensor:
    """`step` as the ops take it: an integer tensor on the device of `table`."""
    if isinstance(step, torch.Tensor):
        return step
    row = arguments.integer(op, "step", step)
    arguments.tensor(op, "table", table)
    checks.rank(op, "table", table, 2, 2)
    if not 0 <= row < table.shape[0]:
        raise checks.fail(op, "step", f"in [0, {table.shape[0]})", row)
    return torch.full((), row, dtype=torch.int64, device=table.device)


def check_state(
    op: str,
    x: torch.Tensor,
    table: torch.Tensor,
    step: torch.Tensor,
    noise: torch.Tensor | None,
    keys: torch.Tensor | None,
) -> None:
    """Raise TypeError or ValueError unless `x` can take the step that the others describe."""
    checks.dtype(op, "x", x, _STATE)
    checks.rank(op, "x", x, 2)
    checks.dtype(op, "table", table, (x.dtype,))
    checks.rank(op, "table", table, 2, 2)
    checks.shape(op, "table", table, (table.shape[0], 3), "[S + 1, 3]")
    checks.dtype(op, "step", step, (torch.int32, torch.int64))
    if step.numel() != 1:
        raise checks.fail(op, "step", "of one element", f"shape {list(step.shape)}")
    if (noise is None) == (keys is None):
        got = "neither" if noise is None else "both"
        raise checks.fail(op, "noise or keys", "given, one of the two", got)
    if noise is not None:
        checks.dtype(op, "noise", noise, (x.dtype,))
        checks.shape(op, "noise", noise, x.shape)
    if keys is not None:
        checks.dtype(op, "keys", keys, (torch.int64,))
        checks.shape(op, "keys", keys, (x.shape[0], 3), "[R, 3]")
        if x.shape[1:].numel() > 2**34:
            raise checks.fail(op, "x", "of at most 2^34 elements a row", f"{list(x.shape)}")
    checks.same_device(op, "x", x, table=table, step=step, noise=noise, keys=keys)


def check_call(
    op: str,
    x: torch.Tensor,
    x0: torch.Tensor,
    table: torch.Tensor,
    step: torch.Tensor,
    cfg: torch.Tensor | None,
    noise: torch.Tensor | None,
    keys: torch.Tensor | None,
) -> None:
    """Raise TypeError or ValueError unless `x` can take a step to the prediction `x0`."""
    check_state(op, x, table, step, noise, keys)
    guidance.check(op, x0, cfg)
    if cfg is None:
        checks.shape(op, "x0", x0, x.shape)
    else:
        checks.shape(op, "x0", x0, (2 * x.shape[0], *x.shape[1:]), "[2 R, ...]")
    checks.same_device(op, "x", x, x0=x0)


def forward(
    x: torch.Tensor,
    x0: torch.Tensor,
    table: torch.Tensor,
    step: torch.Tensor,
    cfg: torch.Tensor | None,
    noise: torch.Tensor | None,
    keys: torch.Tensor | None,
) -> torch.Tensor:
    """The next state, a x + b x0_cfg + s eps, in the dtype of `x`."""
    step = step.reshape(1)
    # Selected on the device: the host does not know the step.
    a, b, s = table.index_select(0, step)[0].unbind()
    if noise is None:
        assert keys is not None
        # Counter word 1 is 0 for the initial noise, so step i has i + 1.
        noise = philox.noise(keys, step + 1, x.shape[1:].numel(), dtype=x.dtype).reshape(x.shape)
    guided = guidance.combine(x0, cfg, x.dtype)
    return (a * x + b * guided + s * noise).contiguous()
