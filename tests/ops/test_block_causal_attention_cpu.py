"""The C++ of block_causal_attention: long sequences, and values that are not finite."""

import math

import pytest
import torch

from bitdance_kernels import Ranges, block_causal_attention, block_causal_ranges
from bitdance_kernels.testing import Call, check_backend, cpu_isa, cpu_isas, cpu_threads
from tests.cases import all_cases

CASE = all_cases()["block_causal_attention"]
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
pytestmark = pytest.mark.skipif(not cpu_isas(), reason="needs the compiled module")


def _inputs(B, T, Tk, heads, D, dtype=torch.float32):
    generator = torch.Generator().manual_seed(T)
    shapes = ((B, T, heads[0], D), *[(B, Tk, heads[1], D)] * 2)
    return [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]


def _sliding(T, width):
    start = torch.arange(T, dtype=torch.int32)
    return Ranges(start, start + width, keys=T + width - 1)


@DTYPES
@pytest.mark.parametrize("isa", cpu_isas())
def test_long_sequences(dtype, isa):
    """More strips than the backward pass holds at a time; the keys of the first leave it."""
    with cpu_isa(isa):
        for name, heads, D, ranges in (
            ("image", (2, 2), 32, block_causal_ranges(35, 10, 16)),
            ("sliding, grouped heads", (4, 2), 24, _sliding(150, 61)),
            ("sliding, in tiles", (2, 1), 96, _sliding(70, 200)),
        ):
            T, Tk = len(ranges.start), int(ranges.end.max())
            call = Call(f"{name}, {dtype}", (*_inputs(2, T, Tk, heads, D, dtype), ranges))
            check_backend(CASE, call, "cpu")


@pytest.mark.parametrize("isa", cpu_isas())
@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("poisoned", ["q", "k", "v", "grad"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_not_finite_stays_where_it_is_seen(isa, value, poisoned, dtype):
    """Token 7 has it; queries of the same strip that do not see token 7 are as if it had not."""
    ranges = block_causal_ranges(4, 4, 4)
    q, k, v = _inputs(1, 20, 20, (2, 1), 32, dtype)
    tensors = {"q": q, "k": k, "v": v, "grad": torch.randn_like(q)}
    results = []
    # Tiles leave a head whose result is not finite to the vectors.
    for used in ("avx512" if isa == "amx" and poisoned != "grad" else isa, isa):
        with cpu_isa(used):
            leaves = [tensors[name].clone().requires_grad_() for name in "qkv"]
            out = block_causal_attention(*leaves, ranges, backend="cpu")
            results.append([out, *torch.autograd.grad(out, leaves, tensors["grad"])])
            tensors[poisoned] = tensors[poisoned].clone()
            tensors[poisoned][0, 7] = value
    (out, dq, dk, dv), (found, found_dq, found_dk, found_dv) = results
    if poisoned == "q":  # query 7 sees keys 0 to 7
        assert found[0, 7].isnan().all()
        assert found_dk[0, :8].isnan().all()
        spared, spared_keys = [*range(7), *range(8, 20)], slice(8, 20)
    elif poisoned == "grad":
        torch.testing.assert_close(found, out)
        assert not found_dv[0, :8].isfinite().any()
        spared, spared_keys = [*range(7), *range(8, 20)], slice(8, 20)
    else:  # queries 4 to 19 see key 7
        assert not found[0, 4:].isfinite().any()
        assert found_dq[0, 4:].isnan().all()
        spared, spared_keys = slice(0, 4), slice(0, 0)
    torch.testing.assert_close(found[0, spared], out[0, spared])
    torch.testing.assert_close(found_dq[0, spared], dq[0, spared])
    torch.testing.assert_close(found_dk[0, spared_keys], dk[0, spared_keys])
    torch.testing.assert_close(found_dv[0, spared_keys], dv[0, spared_keys])


def test_threads_change_no_bit():
    """Each has a workspace of its own."""
    ranges = block_causal_ranges(40, 7, 16)
    inputs = _inputs(3, 152, 152, (6, 3), 32)
    runs = []
    for threads in (1, 2, 5):
        with cpu_threads(threads):
            leaves = [x.clone().requires_grad_() for x in inputs]
            out = block_causal_attention(*leaves, ranges, backend="cpu")
            runs.append([out, *torch.autograd.grad(out.square().sum(), leaves)])
    for run in runs[1:]:
        assert all(map(torch.equal, run, runs[0]))


def test_a_workspace_that_is_too_small_is_refused():
    from bitdance_kernels._shared import native

    q, k, v = _inputs(1, 20, 20, (1, 1), 16)
    ranges, lse, out = block_causal_ranges(4, 4, 4), torch.zeros(1, 1, 20), torch.empty_like(q)
    size = (3 * 32 + 2 * 20) * 16 + 16 * 32
    sizes = (1, 20, 1, 1, 16, 20, 0.25)
    with pytest.raises(RuntimeError, match=r"block_causal_attention: size or argument"):
        native.cpu.block_causal_attention(
            q, k, v, ranges.start, ranges.end, 0, out, lse, *sizes, torch.empty(size), size - 1, 1
        )
    native.cpu.block_causal_attention(
        q, k, v, ranges.start, ranges.end, 0, out, lse, *sizes, torch.empty(size), size, 1
    )
    torch.testing.assert_close(out, block_causal_attention(q, k, v, ranges, backend="reference"))
