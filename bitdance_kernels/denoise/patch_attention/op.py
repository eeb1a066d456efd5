"""patch_attention: the public function and the op's contract."""

from __future__ import annotations

from typing import Any

import torch

from bitdance_kernels._dispatch.op import KernelOp
from bitdance_kernels._shared import checks

__all__ = ["patch_attention"]

_ORDER = {"cuda": ("cuda", "triton", "reference"), "cpu": ("cpu", "reference")}
_BACKWARD_ORDER = {"cuda": ("triton", "reference"), "cpu": ("cpu", "reference")}
_MAX_TOKENS = 64


def patch_attention(qkv: torch.Tensor, num_heads: int, *, backend: str = "auto") -> torch.Tensor:
    """Full attention among the tokens of each patch, from packed projections.

        o = softmax(q k^T / sqrt(D)) v      per row and head, no mask

    Args:
        qkv: [R, P, 3C], floating point, any strides: queries, keys and values of the P <= 64 tokens
            of R patches, each third with its heads side by side, D = C / `num_heads` each.
        num_heads: divides C.
        backend: "auto", "reference", "cpu", "triton" or "cuda".

    Returns:
        [R, P, C] of the dtype of `qkv`, contiguous.

    Raises:
        TypeError: `qkv` is not floating point.
        ValueError: P is over 64, or the last dimension is not 3 `num_heads` D.
        BackendError: a backend named explicitly cannot run the call.

    Numerics:
        Scores and sums in float32 (float64 for float64); on a CPU with AMX the weights of bfloat16
        are rounded to it. Differentiable in `qkv`; the backward
        computes the scores anew. Patches are independent: what is not finite in one stays there
        (in gradients only on the reference). Autocast casts `qkv` to its dtype.

    Backends:
        reference; C++ on the CPU for heads of at most 128 channels; Triton on the GPU for heads of
        at most 128 channels, and in float32 for tiles that fit the registers; CUDA C++ for float32
        and heads of at most 128 channels, a multiple of 4 (the gradient of its result is that of
        Triton or the reference).
    """
    return _op.call(qkv, num_heads, backend)


def _check(qkv: torch.Tensor, num_heads: int) -> None:
    op = "patch_attention"
    checks.dtype(op, "qkv", qkv, checks.FLOATS)
    checks.rank(op, "qkv", qkv, 3, 3)
    if num_heads < 1:
        raise checks.fail(op, "num_heads", "at least 1", num_heads)
    if qkv.shape[2] == 0 or qkv.shape[2] % (3 * num_heads) != 0:
        raise checks.fail(
            op, "qkv", f"[R, P, 3C] with C a multiple of num_heads = {num_heads}", list(qkv.shape)
        )
    if qkv.shape[1] > _MAX_TOKENS:
        raise checks.fail(op, "qkv", f"[R, P, 3C] with P <= {_MAX_TOKENS}", list(qkv.shape))


def _fake(qkv: torch.Tensor, num_heads: int) -> torch.Tensor:
    return qkv.new_empty((*qkv.shape[:2], qkv.shape[2] // 3))


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    qkv, num_heads, backend = inputs
    ctx.save_for_backward(qkv)
    ctx.settings = (num_heads, backend)


def _backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    (qkv,) = ctx.saved_tensors
    return _backward_op.call(grad, qkv, *ctx.settings), None, None


_op = KernelOp(
    "patch_attention",
    "(Tensor qkv, int num_heads) -> Tensor",
    package=__package__,
    check=_check,
    fake=_fake,
    order=_ORDER,
    autocast=("qkv",),
    setup_context=_setup_context,
    backward=_backward,
)


def _check_backward(grad: torch.Tensor, qkv: torch.Tensor, num_heads: int) -> None:
    op = "patch_attention_backward"
    _check(qkv, num_heads)
    checks.dtype(op, "grad", grad, checks.FLOATS)
    checks.shape(op, "grad", grad, (*qkv.shape[:2], qkv.shape[2] // 3), "[R, P, C]")
    checks.same_device(op, "qkv", qkv, grad=grad)


def _fake_backward(grad: torch.Tensor, qkv: torch.Tensor, num_heads: int) -> torch.Tensor:
    return qkv.new_empty(qkv.shape)


_backward_op = KernelOp(
    "patch_attention_backward",
    "(Tensor grad, Tensor qkv, int num_heads) -> Tensor",
    package=__package__,
    check=_check_backward,
    fake=_fake_backward,
    order=_BACKWARD_ORDER,
    entry="_backward",
    is_backward=True,
)
