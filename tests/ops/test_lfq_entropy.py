import contextlib
import datetime
import math

import pytest
import torch
import torch.distributed as dist
from torch.multiprocessing import start_processes
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from bitdance_kernels import lfq_entropy
from bitdance_kernels.binary.lfq_entropy import reference
from bitdance_kernels.testing import Call, Invalid, cpu_isa, cpu_isas, cpu_threads
from tests.cases.lfq_entropy import all_codes
from tests.forked import READY

X = torch.zeros(3, 8)
INVALID = {
    "lfq_entropy": (
        Invalid("dtype", Call("int32", (X.int(), 4)), TypeError, "x must be float32 .*, got int32"),
        Invalid("rank", Call("scalar", (X[0, 0], 1)), ValueError, "x must be of at least 1 dim"),
        Invalid("size", Call("groups", (X, 3)), ValueError,
                r"x must be \[..., C\] with C a positive multiple of group_bits = 3, got shape"),
        Invalid("value", Call("17 bits", (X, 17)), ValueError, "group_bits must be in 1 to 16"),
        Invalid("value", Call("temperature", (X, 4), {"temperature": 0.0}), ValueError,
                "temperature must be greater than 0, got 0"),
        Invalid("value", Call("eps", (X, 4), {"eps": -1.0}), ValueError, "eps must be greater"),
    )
}  # fmt: skip


@pytest.mark.parametrize("bits", range(1, 11))
def test_equals_the_formula_over_all_codes(bits):
    """Values and gradients in float64, where codes compete and where one takes all."""
    for temperature, size in ((0.5, 1.0), (0.01, 0.02), (0.01, 1.0)):
        x = (size * torch.randn(13, 2 * bits, dtype=torch.float64)).requires_grad_()
        actual = lfq_entropy(x, bits, temperature=temperature)
        expected = all_codes(x, bits, temperature)
        for a, b in zip(actual, expected, strict=True):
            torch.testing.assert_close(a, b)
            grad_a = torch.autograd.grad(a, x, retain_graph=True)
            grad_b = torch.autograd.grad(b, x, retain_graph=True)
            torch.testing.assert_close(grad_a, grad_b)


def test_per_group_keeps_a_distribution_for_each():
    x = 0.05 * torch.randn(40, 12, dtype=torch.float64)
    per_sample, codebook = lfq_entropy(x, 4, per_group=True)
    alone = [lfq_entropy(part, 4) for part in x.chunk(3, dim=-1)]
    torch.testing.assert_close(codebook, torch.stack([c for _, c in alone]))
    torch.testing.assert_close(per_sample, torch.stack([s for s, _ in alone]).mean())


@pytest.mark.parametrize("per_group", [False, True])
def test_gradcheck(per_group):
    x = (0.1 * torch.randn(4, 6, dtype=torch.float64)).requires_grad_()

    def call(x):
        return lfq_entropy(x, 3, temperature=0.3, per_group=per_group)

    assert torch.autograd.gradcheck(call, (x,))


def test_known_values():
    per_sample, codebook = lfq_entropy(torch.zeros(10, 8), 8)
    assert per_sample.item() == pytest.approx(8 * math.log(2), rel=1e-6)
    assert codebook.item() == pytest.approx(-math.log(2**-8 + 1e-5), rel=1e-6)
    certain = torch.full((10, 8), 5.0)
    per_sample, codebook = lfq_entropy(certain, 8)
    assert per_sample.item() == 0
    assert codebook.item() == pytest.approx(-math.log(1 + 1e-5), abs=1e-6)


def test_sixteen_bits_in_bounded_memory_and_chunks():
    x = (0.02 * torch.randn(10_000, 16)).requires_grad_()
    per_sample, codebook = lfq_entropy(x, 16)
    (per_sample - codebook).backward()
    assert x.grad.isfinite().all()
    halves = [lfq_entropy(part.detach(), 16)[0] for part in x.chunk(2)]
    torch.testing.assert_close(per_sample.detach(), torch.stack(halves).mean())


def test_chunks_of_the_reference_change_nothing_but_rounding(monkeypatch):
    x = torch.randn(10, 16, dtype=torch.float64)
    whole = reference.run(x, 8, 1.0, 1e-5, True)
    monkeypatch.setattr(reference, "_CHUNK", 3)
    for part, expected in zip(reference.run(x, 8, 1.0, 1e-5, True), whole, strict=True):
        torch.testing.assert_close(part, expected)


def test_float32_gradients_are_those_of_float64():
    x = 0.03 * torch.randn(500, 16)
    grads = []
    for dtype in (torch.float32, torch.float64):
        leaf = x.to(dtype).requires_grad_()
        per_sample, codebook = lfq_entropy(leaf, 8)
        grads.append(torch.autograd.grad(per_sample - codebook, leaf)[0].double())
    error = (grads[0] - grads[1]).norm() / grads[1].norm()
    assert error <= 1e-4


class LaunchCounter(TorchDispatchMode):
    """Counts what a card would launch: PyTorch's operators that compute, and Triton's kernels."""

    def __init__(self, monkeypatch):
        super().__init__()
        interpreter = pytest.importorskip("triton.runtime.interpreter")
        launch = interpreter.GridExecutor.__call__

        def counted(executor, *args, **kwargs):
            self.launched.append(executor.fn.__name__)
            with _disable_current_modes():
                return launch(executor, *args, **kwargs)

        monkeypatch.setattr(interpreter.GridExecutor, "__call__", counted)
        self.launched = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        is_view = any(a.alias_info is not None for a in func._schema.arguments)
        if func.namespace == "aten" and not is_view and "empty" not in func.__name__:
            self.launched.append(func.__name__)
        return result


@pytest.mark.parametrize("per_group", [False, True])
@pytest.mark.parametrize(("tokens", "bits"), [(70, 4), (40, 8)])
def test_triton_takes_three_launches_forward_and_one_backward(monkeypatch, tokens, bits, per_group):
    x = (0.03 * torch.randn(tokens, 2 * bits)).requires_grad_()
    with LaunchCounter(monkeypatch) as counter:
        results = lfq_entropy(x, bits, per_group=per_group, backend="triton")
        assert len(counter.launched) == 3, counter.launched
        counter.launched.clear()
        torch.autograd.grad(results, x, [torch.ones_like(r) for r in results])
    assert [name for name in counter.launched if not name.startswith("ones_like")] == [
        "_lfq_entropy_backward_kernel"
    ]


def test_the_counter_sees_an_operator_too(monkeypatch):
    with LaunchCounter(monkeypatch) as counter:
        torch.ones(3).view(3, 1).exp().sum()
    assert counter.launched == ["ones.default", "exp.default", "sum.default"]


@pytest.mark.parametrize("bits", [1, 5, 10])
@pytest.mark.parametrize("per_group", [False, True])
def test_gradients_of_each_entropy_through_triton(bits, per_group):
    """Alone and together, with an expanded gradient, several tiles of codes and strided rows."""
    x = (0.03 * torch.randn(70, 3 * bits))[:, : 2 * bits]
    for weights in ((1.0, 0.0), (0.0, 1.0), (0.5, -2.0)):
        results = []
        for backend, dtype in (("triton", torch.float32), ("reference", torch.float64)):
            leaf = x.to(dtype).requires_grad_()
            entropies = lfq_entropy(leaf, bits, per_group=per_group, backend=backend)
            loss = sum(w * e.sum() for w, e in zip(weights, entropies, strict=True) if w)
            results.append(torch.autograd.grad(loss, leaf)[0].double())
        assert (results[0] - results[1]).norm() <= 1e-5 * results[1].norm()


def test_second_derivatives_of_both_entropies():
    x = (0.1 * torch.randn(4, 6, dtype=torch.float64)).requires_grad_()

    def call(x):
        return lfq_entropy(x, 3, temperature=0.3, backend="reference")

    assert torch.autograd.gradgradcheck(call, (x,))


def test_a_gradient_of_the_distribution_adds_to_that_of_its_entropy():
    x = (0.1 * torch.randn(4, 6, dtype=torch.float64)).requires_grad_()

    def call(x):
        return torch.ops.bitdance.lfq_entropy(x, 3, 0.3, 1e-5, True, "reference")[:3]

    assert torch.autograd.gradcheck(call, (x,))


@pytest.mark.parametrize("isa", cpu_isas())
@pytest.mark.parametrize("bits", range(1, 17))
def test_every_width_and_instruction_set(isa, bits):
    """Strided rows, several tiles and threads, and a last tile that is not full."""
    x = (0.03 * torch.randn(700, 3 * bits))[:, : 2 * bits]
    for per_group in (False, True):
        results = []
        for backend, dtype in (("cpu", torch.float32), ("reference", torch.float64)):
            leaf = x.to(dtype).requires_grad_()
            with cpu_isa(isa):
                per_sample, codebook = lfq_entropy(leaf, bits, per_group=per_group, backend=backend)
                grad_x = torch.autograd.grad(per_sample - codebook.sum(), leaf)[0]
            results.append([t.detach().double() for t in (per_sample, codebook, grad_x)])
        for actual, expected in zip(*results, strict=True):
            assert (actual - expected).norm() <= 1e-5 * expected.norm()


def test_one_thread_and_two_agree():
    x = 0.03 * torch.randn(5000, 16)
    results = []
    for threads in (1, 2):
        with cpu_threads(threads):
            results.append(lfq_entropy(x, 8))
    torch.testing.assert_close(*results)


def _in_process(rank, folder, results):
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2,
        timeout=datetime.timedelta(seconds=60),
    )  # fmt: skip
    try:
        x = _halves()[rank].requires_grad_()
        for per_group in (False, True):
            _, codebook = lfq_entropy(x, 4, per_group=per_group, process_group=dist.group.WORLD)
            (grad_x,) = torch.autograd.grad(codebook.sum(), x)
            results[rank, per_group] = (codebook.detach(), grad_x)
        uneven = x if rank else x[:0]  # a process may have no token
        results[rank] = lfq_entropy(uneven, 4, process_group=dist.group.WORLD)[1].detach()
    finally:
        dist.destroy_process_group()


def _halves():
    x = 0.03 * torch.randn(300, 8, generator=torch.Generator().manual_seed(1))
    return x[:100].clone(), x[100:].clone()


@pytest.mark.skipif(not dist.is_available(), reason="this PyTorch has no distributed package")
def test_processes_share_one_codebook_term(tmp_path):
    """Each has the value of all tokens, and averaged gradients are that value's."""
    with READY.Manager() as manager:
        results = manager.dict()
        start_processes(_in_process, (str(tmp_path), results), 2, start_method="forkserver")
        results = dict(results)
    alone = lfq_entropy(_halves()[1], 4)[1]
    torch.testing.assert_close(results[0], alone)
    torch.testing.assert_close(results[1], alone)
    for per_group in (False, True):
        whole = torch.cat(_halves()).requires_grad_()
        _, expected = lfq_entropy(whole, 4, per_group=per_group)
        (grad_whole,) = torch.autograd.grad(expected.sum(), whole)
        parts = [results[rank, per_group] for rank in (0, 1)]
        for codebook, _ in parts:
            torch.testing.assert_close(codebook, expected.detach())
        torch.testing.assert_close(torch.cat([grad_x for _, grad_x in parts]) / 2, grad_whole)


def test_the_caller_keeps_its_subnormal_numbers():
    """The C++ loops flush them to zero, in their own scope alone."""
    x = torch.randn(64, 16, requires_grad=True)
    sum(lfq_entropy(x, 8)).backward()
    least = torch.tensor([2.0**-149])
    assert (least * 1).item() == 2.0**-149


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_nan_reaches_both_entropies_and_their_gradients(backend):
    """Of its group, where there is one for each."""
    x = torch.randn(5, 8)
    x[1, 2] = float("nan")
    x.requires_grad_()
    per_sample, codebook = lfq_entropy(x, 4, backend=backend)
    assert per_sample.isnan()
    assert codebook.isnan()
    assert torch.autograd.grad(codebook, x)[0].isnan().all()
    _, codebook = lfq_entropy(x, 4, per_group=True, backend=backend)
    assert codebook.isnan().tolist() == [True, False]
    (grad,) = torch.autograd.grad(codebook[1], x)
    assert grad[:, 4:].isfinite().all()


EXTREMES = {
    "tiny temperature": (1.0, 1e-38),
    "denormal temperature": (1.0, 1e-320),
    "huge values": (1e38, 0.01),
    "infinite values": (math.inf, 0.01),
    "huge temperature": (1.0, 1e38),
}


@pytest.mark.parametrize("name", EXTREMES)
@pytest.mark.parametrize("backend", ["reference", "float64", *cpu_isas(), "triton"])
def test_log_odds_beyond_the_floats_are_decided_bits(backend, name):
    """Where they overflow the entropies are their limits, and gradients are finite."""
    factor, temperature = EXTREMES[name]
    dtype = torch.float64 if backend == "float64" else torch.float32
    x = torch.randn(40, 8, dtype=dtype).clamp(-3, 3) * factor
    x[0] = 0  # of which no temperature makes a decision
    x.requires_grad_()
    isa = cpu_isa(backend) if backend in cpu_isas() else contextlib.nullcontext()
    chosen = "cpu" if backend in cpu_isas() else backend.replace("float64", "reference")
    with isa:
        per_sample, codebook = lfq_entropy(x, 4, temperature=temperature, backend=chosen)
        (grad,) = torch.autograd.grad(per_sample - codebook, x)
    odds = (4 * x.detach().double() / temperature).clamp(-1e300, 1e300)
    one, zero = torch.sigmoid(odds), torch.sigmoid(-odds)
    entropies = -(torch.xlogy(one, one) + torch.xlogy(zero, zero))
    expected = entropies.unflatten(1, (2, 4)).sum(2).mean()
    torch.testing.assert_close(per_sample.double(), expected, rtol=1e-5, atol=0)
    assert codebook.isfinite()
    assert grad.isfinite().all()
    assert (grad[odds.abs() > 1000] == 0).all()
