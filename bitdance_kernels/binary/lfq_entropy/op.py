"""lfq_entropy: the public function and the op's contract."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist

from bitdance_kernels._dispatch import arguments, transforms
from bitdance_kernels._dispatch.op import KernelOp
from bitdance_kernels._shared import checks
from bitdance_kernels._shared.dtypes import accumulate_dtype
from bitdance_kernels.binary.lfq_entropy.reference import codebook_entropy

__all__ = ["lfq_entropy"]

_ORDER = {"cuda": ("triton", "reference"), "cpu": ("cpu", "reference")}
_MAX_BITS = 16


def lfq_entropy(
    x: torch.Tensor,
    group_bits: int,
    *,
    temperature: float = 0.01,
    eps: float = 1e-5,
    per_group: bool = False,
    process_group: dist.ProcessGroup | None = None,
    backend: str = "auto",
) -> tuple[torch.Tensor, torch.Tensor]:
    """The two entropies of group-wise look-up-free quantisation, without its 2^d-wide tensors.

    A group of d = `group_bits` channels has the 2^d codes c in {-1, +1}^d, and a token's soft
    assignment to them is p(c) = softmax_c(2 <x, c> / temperature). The tokenizer's entropy loss is
    per_sample - codebook, with:

        per_sample = mean over tokens and groups of   H(p) = -sum_c p(c) log p(c)
        codebook   = -sum_c P(c) log(P(c) + eps),     P = mean of p over tokens and groups

    The softmax over a full hypercube is a product of independent bits, p(c) = prod_i
    sigmoid(4 x_i c_i / temperature). So H(p) is a sum of d bit entropies, and P is one matrix
    product of the probabilities of two half-codes, [N, 2^(d/2)] each; this is exact.

    Args:
        x: [..., C], floating point, C a multiple of `group_bits`; any strides. The first channel of
            a group is the least significant bit of its code.
        group_bits: d, 1 to 16.
        temperature: of the softmax, > 0.
        eps: inside the logarithm of the codebook term, > 0.
        per_group: one distribution, and one codebook entropy, for each group.
        process_group: take P over the tokens of all these processes, by one all-reduce. It is a
            statistic of the batch: the mean of the processes' own codebook entropies is another,
            smaller number. Each process must use the result alike, as in data parallelism with
            averaged gradients; per_sample stays that of the process.
        backend: "auto", "reference", "cpu" or "triton".

    Returns:
        per_sample, a scalar, and codebook, a scalar or (`per_group`) [C / d], in nats, of the dtype
        of `x`. NaN if there is no token.

    Raises:
        TypeError: `x` is not floating point.
        ValueError: C is not a positive multiple of `group_bits`, or a number is out of range.
        BackendError: a backend named explicitly cannot run the call.

    Numerics:
        In float32 (float64 for float64), P and its entropy in float64. Differentiable in `x`.
        Memory O(N d + N 2^(d/2) + 2^d), the middle term in chunks of tokens; a few kilobytes a
        thread in C++.

    Backends:
        reference; C++ on the CPU (AVX2, AVX-512) and Triton, tile by tile, forward and backward.
    """
    if process_group is not None:
        _check_group(x, process_group)
    per_sample, codebook, p, _ = _op.call(x, group_bits, temperature, eps, per_group, backend)
    if process_group is not None:
        tokens = x.shape[:-1].numel()
        counts = p.flatten() * tokens if tokens else p.new_zeros(p.numel())  # p is NaN without any
        counted = torch.cat([counts, p.new_tensor([float(tokens)])])
        counted = _SumOverProcesses.apply(counted, process_group)
        p = (counted[:-1] / counted[-1]).view_as(p)
        codebook = codebook_entropy(p, eps)[0].view_as(codebook).to(x.dtype)
    return per_sample, codebook


def _check_group(x: torch.Tensor, group: dist.ProcessGroup) -> None:
    if not isinstance(group, dist.ProcessGroup):
        got = type(group).__name__
        raise TypeError(f"lfq_entropy: process_group must be a ProcessGroup, got {got}")
    arguments.tensor("lfq_entropy", "x", x)
    if torch.compiler.is_compiling():
        return
    if transforms.active() or (transforms.in_forward_mode() and transforms.has_tangent(x)):
        raise RuntimeError(
            "lfq_entropy: process_group must be None in forward-mode AD and in transforms of "
            f"torch.func, got {type(group).__name__}"
        )


class _SumOverProcesses(torch.autograd.Function):
    """All-reduce. All processes continue alike, so the sum of their gradients is a multiple."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
        ctx.processes = dist.get_world_size(group)
        x = x.clone()
        dist.all_reduce(x, group=group)
        return x

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None]:
        return grads[0] * ctx.processes, None


def _check(
    x: torch.Tensor, group_bits: int, temperature: float, eps: float, per_group: bool
) -> None:
    _check_settings("lfq_entropy", x, group_bits, temperature)
    if not eps > 0:
        raise checks.fail("lfq_entropy", "eps", "greater than 0", eps)


def _check_settings(op: str, x: torch.Tensor, group_bits: int, temperature: float) -> None:
    checks.dtype(op, "x", x, checks.FLOATS)
    checks.rank(op, "x", x, 1)
    if not 1 <= group_bits <= _MAX_BITS:
        raise checks.fail(op, "group_bits", f"in 1 to {_MAX_BITS}", group_bits)
    if x.shape[-1] == 0 or x.shape[-1] % group_bits != 0:
        expected = f"[..., C] with C a positive multiple of group_bits = {group_bits}"
        raise checks.fail(op, "x", expected, f"shape {list(x.shape)}")
    if not temperature > 0:
        raise checks.fail(op, "temperature", "greater than 0", temperature)


def _fake(
    x: torch.Tensor, group_bits: int, temperature: float, eps: float, per_group: bool
) -> tuple[torch.Tensor, ...]:
    groups = x.shape[-1] // group_bits
    table = (groups if per_group else 1, 2 ** (group_bits // 2), 2 ** ((group_bits + 1) // 2))
    return (
        x.new_empty(()),
        x.new_empty((groups,) if per_group else ()),
        x.new_empty(table, dtype=torch.float64),
        x.new_empty(table, dtype=accumulate_dtype(x)),
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, ...]) -> None:
    x, *ctx.settings = inputs
    _, _, p, slope = output
    ctx.save_for_backward(x, p, slope)
    ctx.mark_non_differentiable(slope)
    ctx.set_materialize_grads(False)  # P's is as large as P


def _backward(
    ctx: Any,
    grad_sample: torch.Tensor | None,
    grad_codebook: torch.Tensor | None,
    grad_p: torch.Tensor | None,
    _: None,
) -> tuple[torch.Tensor | None, ...]:
    x, p, slope = ctx.saved_tensors
    group_bits, temperature, eps, per_group, backend = ctx.settings
    if torch.is_grad_enabled():  # a second derivative goes through P
        slope = codebook_entropy(p, eps)[1].to(slope.dtype)
    if grad_sample is None:
        grad_sample = x.new_zeros(())
    if grad_codebook is None:
        grad_codebook = x.new_zeros((len(p),) if per_group else ())
    if grad_p is not None:
        slope = grad_p.to(slope.dtype) + grad_codebook.view(-1, 1, 1) * slope
        grad_codebook = torch.ones_like(grad_codebook)
    settings = (group_bits, temperature, per_group, backend)
    grad_x = _backward_op.call(grad_sample, grad_codebook, slope, x, *settings)
    return grad_x, None, None, None, None, None


_op = KernelOp(
    "lfq_entropy",
    "(Tensor x, int group_bits, float temperature, float eps, bool per_group) "
    "-> (Tensor, Tensor, Tensor, Tensor)",
    package=__package__,
    check=_check,
    fake=_fake,
    order=_ORDER,
    setup_context=_setup_context,
    backward=_backward,
)


def _check_backward(
    grad_sample: torch.Tensor,
    grad_codebook: torch.Tensor,
    slope: torch.Tensor,
    x: torch.Tensor,
    group_bits: int,
    temperature: float,
    per_group: bool,
) -> None:
    op = "lfq_entropy_backward"
    _check_settings(op, x, group_bits, temperature)
    sample, codebook, _, like = _fake(x, group_bits, temperature, 1.0, per_group)
    for name, given, expected in (
        ("grad_sample", grad_sample, sample),
        ("grad_codebook", grad_codebook, codebook),
        ("slope", slope, like),
    ):
        checks.dtype(op, name, given, checks.FLOATS)
        checks.shape(op, name, given, expected.shape)
    checks.same_device(
        op, "x", x, grad_sample=grad_sample, grad_codebook=grad_codebook, slope=slope
    )


def _fake_backward(
    grad_sample: torch.Tensor,
    grad_codebook: torch.Tensor,
    slope: torch.Tensor,
    x: torch.Tensor,
    *_: Any,
) -> torch.Tensor:
    return x.new_empty(x.shape)


_backward_op = KernelOp(
    "lfq_entropy_backward",
    "(Tensor grad_sample, Tensor grad_codebook, Tensor slope, Tensor x, int group_bits, "
    "float temperature, bool per_group) -> Tensor",
    package=__package__,
    check=_check_backward,
    fake=_fake_backward,
    order=_ORDER,
    entry="_backward",
    is_backward=True,
)
