"""finalize_bits: the public function and the op's contract."""

from __future__ import annotations

import torch

from bitdance_kernels._dispatch.op import KernelOp
from bitdance_kernels._shared import checks
from bitdance_kernels.denoise._shared import guidance

__all__ = ["finalize_bits"]


def finalize_bits(
    x0: torch.Tensor, *, cfg: torch.Tensor | float | None = None, backend: str = "auto"
) -> tuple[torch.Tensor, torch.Tensor]:
    """The bits of the final prediction, as +1 and -1 and packed.

    The sampler's last Euler step leads to the (guided) prediction itself, and a token is its signs,
    so this is the last ``denoise_step`` and the quantiser in one:

        x0_cfg = x0                            without cfg
               = x0_u + cfg (x0_c - x0_u)      with cfg, x0 = [x0_c; x0_u]
        signs  = +1 where x0_cfg > 0, else -1
        packed = pack_signs(x0_cfg)

    Args:
        x0: [R, ..., C] any floating dtype, or [2 R, ..., C] with `cfg`, the conditional rows first;
            C a positive multiple of 8; any strides.
        cfg: guidance scale: None for no guidance, a number, or a float32 tensor of one element on
            the device of `x0`, which is read there.
        backend: "auto", "reference", "cpu", "triton" or "cuda".

    Returns:
        signs: [R, ..., C] of the dtype of `x0`, +1 and -1, contiguous.
        packed: uint8 [R, ..., C / 8], contiguous; channel c is bit c % 8 of byte c // 8.

    Raises:
        TypeError: `x0` is not floating point, or `cfg` is neither float32 nor float64.
        ValueError: a shape or device does not fit.
        RuntimeError: an argument requires grad; signs have no gradient.
        BackendError: a backend named explicitly cannot run the call.

    Numerics:
        Guidance is computed in float32 (float64 for float64); the difference, the product and the
        sum round once each, without fused multiply-add, so the bits are equal on all backends.
        Values of exactly 0, and NaN, give -1 and bit 0, as in the tokenizer's quantiser; the
        official sampler takes ``torch.sign``, which would leave an exact 0 as 0.

    Backends:
        reference; C++ on the CPU; Triton and CUDA C++ on the GPU. Float64 is for the reference.

    Example:
        >>> import torch
        >>> x0 = torch.tensor([[0.5, -1, 2, 0, 1, 1, -3, 4], [1.0, 1, 1, 1, -1, -1, -1, -1]])
        >>> finalize_bits(x0[:1])
        (tensor([[ 1., -1.,  1., -1.,  1.,  1., -1.,  1.]]), tensor([[181]], dtype=torch.uint8))
        >>> finalize_bits(x0, cfg=3.0)[0]
        tensor([[-1., -1.,  1., -1.,  1.,  1., -1.,  1.]])
    """
    return _op.call(x0, guidance.scale_tensor("finalize_bits", cfg, x0), backend)


def _check(x0: torch.Tensor, cfg: torch.Tensor | None) -> None:
    guidance.check("finalize_bits", x0, cfg)
    checks.channels("finalize_bits", "x0", x0)


def _fake(x0: torch.Tensor, cfg: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    shape = (guidance.rows(x0, cfg), *x0.shape[1:])
    packed = x0.new_empty((*shape[:-1], shape[-1] // 8), dtype=torch.uint8)
    return x0.new_empty(shape), packed


_op = KernelOp(
    "finalize_bits",
    "(Tensor x0, Tensor? cfg) -> (Tensor, Tensor)",
    package=__package__,
    check=_check,
    fake=_fake,
    order={"cuda": ("triton", "cuda", "reference"), "cpu": ("cpu", "reference")},
)
