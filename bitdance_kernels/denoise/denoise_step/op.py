"""denoise_step: the public function and the op's contract."""

from __future__ import annotations

import torch

from bitdance_kernels._dispatch.op import KernelOp
from bitdance_kernels.denoise._shared import affine_step, guidance

__all__ = ["denoise_step"]


def denoise_step(
    x: torch.Tensor,
    x0: torch.Tensor,
    table: torch.Tensor,
    step: torch.Tensor | int,
    *,
    cfg: torch.Tensor | float | None = None,
    noise: torch.Tensor | None = None,
    keys: torch.Tensor | None = None,
    backend: str = "auto",
) -> torch.Tensor:
    """One step of the sampler, from state `x` and prediction `x0` to the next state.

        (a, b, s) = table[step]
        x0_cfg    = x0                            without cfg
                  = x0_u + cfg (x0_c - x0_u)      with cfg, x0 = [x0_c; x0_u]
        x'        = a x + b x0_cfg + s eps

    ``denoise_schedule`` makes the table and derives the formula. The noise eps is given, or made
    here: standard normals of ``noise(keys, step + 1, ...)``, element by element in the order of a
    row's flattened block. Step, guidance and keys are read from device memory, so that a captured
    CUDA graph serves all steps.

    Args:
        x: [R, ..., C] float32 (or float64), any strides.
        x0: the network's prediction, any floating dtype: of the shape of `x`, or [2 R, ..., C] with
            `cfg`, the conditional rows first.
        table: [S + 1, 3] of the dtype of `x`, as ``denoise_schedule`` makes it.
        step: row of `table`, from 0: an int, or an int32 or int64 tensor of one element on the
            device of `x`.
        cfg: guidance scale: None for no guidance, a number, or a float32 tensor of one element on
            the device of `x`.
        noise: eps, of the shape and dtype of `x`. Either `noise` or `keys` must be given.
        keys: int64 [R, 3] as ``noise_keys`` makes them.
        backend: "auto", "reference", "cpu", "triton" or "cuda".

    Returns:
        The next state, of the shape and dtype of `x`, contiguous.

    Raises:
        TypeError: a tensor has a wrong dtype.
        ValueError: a shape or device does not fit, an int `step` is outside the table, or not
            exactly one of `noise` and `keys` is given.
        IndexError: a tensor `step` outside the table, on the CPU. On CUDA nobody looks at its
            value: the result is undefined.
        RuntimeError: an argument requires grad; sampling has no gradient.
        BackendError: a backend named explicitly cannot run the call.

    Numerics:
        Computed in the dtype of `x`; guidance rounds as in ``finalize_bits``. The random words
        behind `keys` are equal on every backend, their normals to within a few units in the last
        place.

    Backends:
        reference; C++ on the CPU; Triton and CUDA C++ on the GPU. All but the reference take a
        float32 state alone.

    Example:
        >>> import torch
        >>> table, times = denoise_schedule(4)
        >>> keys = noise_keys(0, range(2))
        >>> x = noise(keys, 0, 4 * 32).view(2, 4, 32)
        >>> for i, t in enumerate(times):
        ...     x = denoise_step(x, torch.tanh(x + t), table, i, keys=keys)
        >>> x.shape
        torch.Size([2, 4, 32])
    """
    step = affine_step.step_tensor("denoise_step", step, table)
    cfg = guidance.scale_tensor("denoise_step", cfg, x0)
    return _op.call(x, x0, table, step, cfg, noise, keys, backend)


def _check(
    x: torch.Tensor,
    x0: torch.Tensor,
    table: torch.Tensor,
    step: torch.Tensor,
    cfg: torch.Tensor | None,
    noise: torch.Tensor | None,
    keys: torch.Tensor | None,
) -> None:
    affine_step.check_call("denoise_step", x, x0, table, step, cfg, noise, keys)


def _fake(x: torch.Tensor, *_: torch.Tensor | None) -> torch.Tensor:
    return x.new_empty(x.shape)


_op = KernelOp(
    "denoise_step",
    "(Tensor x, Tensor x0, Tensor table, Tensor step, Tensor? cfg, Tensor? noise, Tensor? keys)"
    " -> Tensor",
    package=__package__,
    check=_check,
    fake=_fake,
    order={"cuda": ("triton", "cuda", "reference"), "cpu": ("cpu", "reference")},
)
