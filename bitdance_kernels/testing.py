"""Compares a backend with its reference, for tests and benchmarks.

Truth is the reference run in float64 on the same inputs. There are three rules and no other
tolerance:

exact
    Bits, indices, random words: equal.
rounded
    Ops whose result is rounded once: against the correctly rounded truth, the rms error is at most
    1.02 times as large (from 256 rows on; fewer tell too little), and no element is more than one
    unit in the last place (and 2^-20 max |truth|) away. For float32, where the arithmetic itself
    rounds: rms <= 2^-21 rms(truth), max <= 2^-20 max |truth|.
staged
    Ops with several roundings: rms and max error at most twice those of plain PyTorch at the same
    dtype, or the rounding of the result itself where PyTorch happens to be nearer than that.
    Gradients always use this rule, since they sum over many elements.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils import _pytree as pytree

from bitdance_kernels._dispatch.op import REGISTRY, KernelOp
from bitdance_kernels._shared import native

RULES = ("exact", "rounded", "staged")


@dataclass(frozen=True)
class Call:
    """Arguments of one call of a public op.

    Attributes:
        name: for test ids and tables, such as "one row, float16".
        args: positional arguments.
        kwargs: keyword arguments, without ``backend``.
    """

    name: str
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any] = field(default_factory=dict)

    def map(self, function: Callable[[torch.Tensor], torch.Tensor]) -> Call:
        """The same call with `function` applied to every tensor in it."""
        args, kwargs = pytree.tree_map_only(torch.Tensor, function, (self.args, dict(self.kwargs)))
        return Call(self.name, args, kwargs)

    def tensors(self) -> list[torch.Tensor]:
        """Every tensor among the arguments, in order."""
        leaves = pytree.tree_leaves((self.args, dict(self.kwargs)))
        return [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]


@dataclass(frozen=True)
class Case:
    """Samples of an op and the rule that its backends meet.

    Attributes:
        op: the public function.
        rule: one of RULES.
        samples: calls that cover dtypes, odd sizes, one row, no row; small enough for the
            interpreter.
        mutates: positions in ``Call.args`` of tensors that the op writes; they count as outputs.
        constants: positions of floating-point tensors in which a differentiable op has no gradient.
    """

    op: Callable[..., Any]
    rule: str
    samples: Callable[[torch.device], Iterable[Call]]
    mutates: tuple[int, ...] = ()
    constants: tuple[int, ...] = ()

    @property
    def name(self) -> str:
        """The op's name."""
        return self.op.__name__

    def leaves(self, call: Call) -> list[torch.Tensor]:
        """The arguments with respect to which the op may have a gradient."""
        constants = {id(call.args[i]) for i in self.constants}
        return [t for t in call.tensors() if t.is_floating_point() and id(t) not in constants]

    @property
    def kernel_op(self) -> KernelOp:
        """The op's registration."""
        return REGISTRY[self.name]


@dataclass(frozen=True)
class Invalid:
    """A call that must be refused before anything is launched or written.

    Attributes:
        kind: "dtype", "device", "rank", "size" or "value".
        call: the arguments.
        error: exception class.
        match: regular expression that the message must match.
    """

    kind: str
    call: Call
    error: type[Exception]
    match: str


Outputs = dict[str, torch.Tensor]
"""Results of a call by name: outputs, arguments changed in place, gradients."""


def expected_outputs(case: Case, call: Call, *, gradients: bool = True) -> tuple[Outputs, Outputs]:
    """What the reference gives in the dtypes of the call and, the truth, in float64."""
    gradients = gradients and case.kernel_op.differentiable
    eager = _outputs(case, call, "reference", gradients)
    if case.rule == "exact":
        return eager, eager
    wide = call.map(lambda t: t.double() if t.is_floating_point() else t)
    return eager, _outputs(case, wide, "reference", gradients)


def check_backend(
    case: Case,
    call: Call,
    backend: str,
    *,
    gradients: bool = True,
    expected: tuple[Outputs, Outputs] | None = None,
) -> Outputs:
    """Run `call` on `backend` in poisoned memory and compare every output with the reference.

    Gradients of all floating-point arguments are compared too where the op has a backward.

    Args:
        case: the op's case.
        call: the arguments.
        backend: name of a backend that can run them.
        gradients: whether to compare gradients.
        expected: result of `expected_outputs` with the same arguments, for several backends.

    Returns:
        What the backend gave, by name: outputs, arguments changed in place, gradients.

    Raises:
        AssertionError: an output (or gradient, or argument changed in place) is wrong.
    """
    arguments = call.tensors()
    before = [t.clone() for t in arguments]
    gradients = gradients and case.kernel_op.differentiable
    with poisoned_memory():
        actual = _outputs(case, call, backend, gradients)
    allowed = {id(t) for i in case.mutates for t in [call.args[i]]}
    for old, new in zip(before, arguments, strict=True):
        if id(new) not in allowed and not _same(old, new):
            raise AssertionError(f"{case.name} [{call.name}] {backend}: changed an input")
    eager, truth = expected or expected_outputs(case, call, gradients=gradients)
    names = list(actual)
    if names != list(eager):
        raise AssertionError(
            f"{case.name} [{call.name}] {backend}: outputs {names}, not {list(eager)}"
        )
    for name in names:
        where = f"{case.name} [{call.name}] {backend}: {name}"
        rule = "staged" if name.startswith("gradient") else case.rule
        compare(rule, actual[name], eager[name], truth[name], where)
    return actual


def compare(
    rule: str, actual: torch.Tensor, eager: torch.Tensor, truth: torch.Tensor, where: str
) -> None:
    """Compare one tensor with plain PyTorch (`eager`) and with the float64 `truth`.

    Raises:
        AssertionError: with `where` and the figures.
    """
    if actual.shape != eager.shape or actual.dtype != eager.dtype or actual.device != eager.device:
        raise AssertionError(
            f"{where}: is {_describe(actual)}, the reference gives {_describe(eager)}"
        )
    if actual.numel() == 0:
        return
    if rule == "exact" or not actual.is_floating_point():
        if not _same(actual, eager):
            raise AssertionError(f"{where}: {_count_different(actual, eager)} elements differ")
        return
    ideal = truth.to(actual.dtype)
    if not torch.equal(actual.isfinite(), ideal.isfinite()):
        raise AssertionError(f"{where}: NaN or infinity where the truth has none, or the reverse")
    finite = ideal.isfinite()
    chosen = ... if finite.all() else finite  # nearly always all, and a view is cheaper
    actual64, eager64, truth64 = (t.double()[chosen] for t in (actual, eager, truth))
    if truth64.numel() == 0:
        return
    if rule == "rounded":
        _check_rounded(actual64, truth64, ideal.double()[chosen], actual, where)
    elif rule == "staged":
        _check_staged(actual64, eager64, truth64, actual.dtype, where)
    else:
        raise ValueError(f"compare: rule must be one of {RULES}, got {rule!r}")


def _check_rounded(
    actual: torch.Tensor, truth: torch.Tensor, ideal: torch.Tensor, output: torch.Tensor, where: str
) -> None:
    error = actual - truth
    if output.dtype in (torch.float32, torch.float64):
        unit = 2.0**-21 if output.dtype == torch.float32 else 2.0**-50
        _within(_rms(error), unit * _rms(truth), f"{where}: rms error")
        _within(_max(error), 2 * unit * _max(truth), f"{where}: max error")
        return
    info = torch.finfo(output.dtype)
    # One unit in the last place of the binade that `ideal` lies in.
    ulp = info.eps * torch.exp2(torch.floor(torch.log2(ideal.abs().clamp_min(info.tiny))))
    # The arithmetic itself is in float32, which shows where terms cancel to almost nothing.
    allowed = ulp + 2.0**-20 * truth.abs().max()
    _within(_max((actual - ideal) / allowed), 1.0, f"{where}: units in the last place")
    rows = output.numel() // max(1, output.shape[-1] if output.dim() else 1)
    if rows >= 256:
        _within(_rms(error), 1.02 * _rms(ideal - truth), f"{where}: rms error")


def _check_staged(
    actual: torch.Tensor, eager: torch.Tensor, truth: torch.Tensor, dtype: torch.dtype, where: str
) -> None:
    eps = torch.finfo(dtype).eps
    error, usual = actual - truth, eager - truth
    _within(_rms(error), max(2 * _rms(usual), eps / 2 * _rms(truth)), f"{where}: rms error")
    _within(_max(error), max(2 * _max(usual), eps * _max(truth)), f"{where}: max error")


def _within(value: float, bound: float, what: str) -> None:
    if not value <= bound:
        raise AssertionError(f"{what} {value:.4g} is over the bound {bound:.4g}")


def _rms(x: torch.Tensor) -> float:
    return float(x.square().mean().sqrt())


def _max(x: torch.Tensor) -> float:
    return float(x.abs().max())


def _same(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Equal element by element, with NaN equal to NaN."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    equal = a == b
    if a.is_floating_point():
        equal |= a.isnan() & b.isnan()
    return bool(equal.all())


def _count_different(a: torch.Tensor, b: torch.Tensor) -> str:
    return f"{int((a != b).sum())} of {a.numel()}"


def _describe(tensor: torch.Tensor) -> str:
    return f"{tensor.dtype} {list(tensor.shape)} on {tensor.device}"


def _outputs(case: Case, call: Call, backend: str, gradients: bool) -> Outputs:
    """All results of a call; gradients are those for the same random cotangents each time."""
    call = call.map(lambda t: t.detach().clone() if t.is_contiguous() else t.detach())
    call = _own_mutated(case, call)
    leaves = case.leaves(call) if gradients else []
    for leaf in leaves:
        leaf.requires_grad_()
    results = pytree.tree_leaves(case.op(*call.args, **call.kwargs, backend=backend))
    outputs = {f"output {i}": t for i, t in enumerate(results) if isinstance(t, torch.Tensor)}
    outputs |= {f"argument {i} after the call": call.args[i] for i in case.mutates}
    if gradients:
        differentiable = [t for t in outputs.values() if t.requires_grad]
        seed = torch.Generator(device="cpu").manual_seed(len(call.name))
        cotangents = [_sixteenths(t, seed) for t in differentiable]
        grads = torch.autograd.grad(differentiable, leaves, cotangents, allow_unused=True)
        outputs |= {f"gradient {i}": g for i, g in enumerate(grads) if g is not None}
    return {name: t.detach() for name, t in outputs.items()}


def _sixteenths(like: torch.Tensor, seed: torch.Generator) -> torch.Tensor:
    """Random numbers that every dtype represents: truth and backend get the same cotangent."""
    drawn = torch.randint(-32, 33, like.shape, generator=seed, dtype=torch.int64, device="cpu")
    return drawn.to(like) / 16


def _own_mutated(case: Case, call: Call) -> Call:
    args = list(call.args)
    for i in case.mutates:
        args[i] = args[i].clone()
    return Call(call.name, tuple(args), call.kwargs)


def strided(tensor: torch.Tensor) -> torch.Tensor:
    """The same values in a view with gaps between its rows, starting at an odd address."""
    if tensor.dim() == 0:
        return tensor
    if tensor.dim() == 4 and tensor.stride(1) == 1 and not tensor.is_contiguous():
        return strided(tensor.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)  # stays channels-last
    wide = tensor.new_empty((*tensor.shape[:-1], tensor.shape[-1] + 3))
    view = wide[..., 1:-2]
    view.copy_(tensor)
    return view


@contextlib.contextmanager
def poisoned_memory() -> Iterator[None]:
    """A context in which PyTorch fills new memory with NaN (integers: the largest value)."""
    was = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    settings: Any = torch.utils.deterministic  # its attribute is not in the type stubs
    fill = settings.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    settings.fill_uninitialized_memory = True
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(was, warn_only=warn_only)
        settings.fill_uninitialized_memory = fill


@contextlib.contextmanager
def cpu_isa(limit: str) -> Iterator[None]:
    """A context in which C++ kernels use at most `limit` ("scalar", "avx2", "avx512", "amx")."""
    before = native.cpu.isa()
    native.cpu.set_isa_limit(native.ISAS.index(limit))
    try:
        yield
    finally:
        native.cpu.set_isa_limit(before)


@contextlib.contextmanager
def cpu_threads(count: int) -> Iterator[None]:
    """A context in which PyTorch and the C++ kernels use `count` threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def only_backend(name: str, ops: Iterable[str], device: str = "cpu") -> Iterator[None]:
    """A context in which "auto" knows no other backend for these ops on `device`."""
    found = [REGISTRY[op] for op in ops]
    before = [(op.order, op._chosen) for op in found]
    for op in found:
        op.order, op._chosen = {**op.order, device: (name,)}, {}
    try:
        yield
    finally:
        for op, (order, chosen) in zip(found, before, strict=True):
            op.order, op._chosen = order, chosen


def cpu_isas() -> tuple[str, ...]:
    """The instruction sets that this processor and this build support, smallest first."""
    if native.cpu.unavailable() is not None:
        return ()
    return native.ISAS[: native.cpu.isa_detected() + 1]


def specials(dtype: torch.dtype) -> Sequence[float]:
    """Values at which sign and rounding rules show: zeros, NaN, infinities and the extremes."""
    info = torch.finfo(dtype)
    tiny = info.smallest_normal * info.eps  # the smallest subnormal
    return (0.0, -0.0, float("nan"), float("inf"), -float("inf"), tiny, -tiny, info.max, info.min)
