"""Calls like one before that run without Python: csrc/bindings/plan.h."""

import pytest
import torch

from bitdance_kernels import (
    bit_counts,
    block_decode_attention,
    finalize_bits,
    flip_bits,
    flip_signs,
    gated_residual,
    group_norm_silu,
    hamming_distance,
    nearest_codes,
    pack_signs,
    patch_attention,
    rope,
    unpack_signs,
)
from bitdance_kernels._dispatch.op import REGISTRY
from bitdance_kernels._shared import native, pool
from bitdance_kernels.testing import cpu_isas, cpu_threads

pytestmark = pytest.mark.skipif(not cpu_isas(), reason="plans are part of the compiled module")


def _codes(*shape):
    return torch.randint(256, shape, dtype=torch.uint8)


CALLS = {
    "pack_signs": lambda backend: pack_signs(torch.randn(3, 16), backend=backend),
    "unpack_signs": lambda backend: unpack_signs(_codes(3, 2), torch.float16, backend=backend),
    "bit_counts": lambda backend: bit_counts(_codes(30, 2), backend=backend),
    "flip_bits": lambda backend: flip_bits(_codes(3, 2), 0.5, seed=7, backend=backend),
    "flip_signs": lambda backend: flip_signs(torch.randn(3, 16), 0.5, seed=7, backend=backend),
    "hamming_distance": lambda backend: hamming_distance(
        _codes(2, 4), _codes(9, 4), backend=backend
    ),
    "nearest_codes": lambda backend: nearest_codes(_codes(2, 4), _codes(9, 4), 3, backend=backend),
    "finalize_bits": lambda backend: finalize_bits(torch.randn(3, 2, 16), backend=backend),
}


def _results(name, seed, backend="auto"):
    torch.manual_seed(seed)
    results = CALLS[name](backend)
    return results if isinstance(results, tuple) else (results,)


def _is_plan(run):
    return type(run).__name__ == "builtin_function_or_method"


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("backend", ["auto", "cpu"])
def test_a_planned_call_gives_what_the_reference_gives(name, backend, monkeypatch):
    monkeypatch.setattr(REGISTRY[name], "_chosen", {})
    kept = [_results(name, seed, backend) for seed in range(4)]
    assert [_is_plan(run) for run in REGISTRY[name]._chosen.values()] == [True]
    with cpu_threads(2):  # goes another way
        kept.append(_results(name, 4, backend))
    for seed, results in enumerate(kept):
        for result, expected in zip(results, _results(name, seed, "reference"), strict=True):
            assert (result.dtype, result.shape) == (expected.dtype, expected.shape)
            assert result.stride() == expected.stride()
            assert torch.equal(result, expected)


ROUNDED = {
    "rope": lambda: rope(torch.randn(2, 3, 4, 8), torch.randn(3, 4, 2)),
    "block_decode_attention": lambda: block_decode_attention(
        *torch.randn(3, 2, 5, 4, 8), torch.randint(1, 6, (2,), dtype=torch.int32)
    ),
    "group_norm_silu": lambda: group_norm_silu(
        torch.randn(2, 8, 3, 3), 4, torch.randn(8), torch.randn(8)
    ),
    "patch_attention": lambda: patch_attention(torch.randn(3, 4, 48).bfloat16(), 2),
}


@pytest.mark.parametrize("name", ROUNDED)
def test_a_planned_call_gives_the_bits_of_a_first_one(name, monkeypatch):
    found = []
    for seeds in ((0, 1, 2), (2,)):
        monkeypatch.setattr(REGISTRY[name], "_chosen", {})
        for seed in seeds:
            torch.manual_seed(seed)
            found.append(ROUNDED[name]())
    assert torch.equal(found[2], found[3])
    assert not torch.equal(found[1], found[2])
    assert [_is_plan(run) for run in REGISTRY[name]._chosen.values()] == [True]


OF_TWO = {
    "hamming_distance": (hamming_distance, lambda: _codes(2, 4)),
    "gated_residual": (
        lambda x, h, **options: gated_residual(x, h, torch.ones(8, 16), **options),
        lambda: torch.randn(8, 16),
    ),
}


@pytest.mark.parametrize("name", OF_TWO)
def test_arguments_in_the_same_memory_are_not_taken_for_each_other(name, monkeypatch):
    function, make = OF_TWO[name]
    a, b = make(), make()
    for first, second in (((a, a), (a, b)), ((a, b), (b, b))):
        monkeypatch.setattr(REGISTRY[name], "_chosen", {})
        kept = function(*first)
        assert [_is_plan(run) for run in REGISTRY[name]._chosen.values()] == [first[1] is b]
        for result, arguments in ((kept, first), (function(*second), second)):
            torch.testing.assert_close(result, function(*arguments, backend="reference"))


def test_large_results_come_from_the_pool():
    packed = _codes(pool.MAPPED_BYTES // 32 + 1, 1)
    op = REGISTRY["unpack_signs"]
    op._chosen.clear()
    for _ in range(2):
        assert torch.equal(unpack_signs(packed), unpack_signs(packed, backend="reference"))
    assert not any(map(_is_plan, op._chosen.values()))


def _pack(x, y):
    native.cpu.pack_signs(x, y, 1, 16, 16, native.FLOAT32, 1)
    return y


def _empty(*shape):
    return torch.empty(shape, dtype=torch.uint8)


RUNS = {
    "one call": (lambda x: _pack(x, _empty(1, 2)), True),
    "no call": (lambda x: x.clone(), False),
    "two calls": (lambda x: (_pack(x, _empty(1, 2)), _pack(x, _empty(1, 2))), False),
    "a copy": (lambda x: _pack(x.clone(), _empty(1, 2)), False),
    "no result": (lambda x: (_pack(x, _empty(1, 2)), None)[1], False),
    "another result": (lambda x: (_pack(x, _empty(1, 2)), _empty(3)), False),
    "part of a larger one": (lambda x: _pack(x, _empty(3, 2))[:1], False),
    "transposed": (lambda x: _pack(x, _empty(2, 2)).T, False),
    "an argument": (lambda x: _pack(x, x.view(torch.uint8)), False),
    "too large": (lambda x: _pack(x, _empty(1, 1000)), False),
    "empty": (lambda x: (_pack(x, _empty(1, 2)), _empty(0)), False),
    "with a gradient": (lambda x: _pack(x, _empty(1, 2)).float().requires_grad_(), False),
}


@pytest.mark.parametrize("name", RUNS)
def test_only_a_run_that_fills_its_results_is_planned(name):
    run, is_planned = RUNS[name]
    x = torch.randn(1, 16)
    results, plan = native.cpu.planned(lambda args: run(args[0]), (x, "auto"), 1000)
    assert (plan is not None) == is_planned
    if is_planned:
        other = torch.randn(1, 16)
        assert torch.equal(results, pack_signs(x))
        assert torch.equal(plan((other, "auto")), pack_signs(other))


def test_a_run_that_fails_leaves_no_recording():
    def fail(args):
        _pack(args[0], _empty(1, 2))
        raise ValueError("as it must")

    with pytest.raises(ValueError, match="as it must"):
        native.cpu.planned(fail, (torch.randn(1, 16), "auto"), 1000)
    assert len(native.cpu.take_recording()) == 0
    _pack(torch.randn(1, 16), _empty(1, 2))
    assert len(native.cpu.take_recording()) == 0


def test_another_number_of_threads_goes_the_way_of_the_first_call():
    ran = []

    def run(args):
        x, *_ = args
        ran.append(x)
        return _pack(x, _empty(1, 2))

    x = torch.randn(1, 16)
    with cpu_threads(1):
        _, plan = native.cpu.planned(run, (x, "auto"), 1000)
        assert len(ran) == 1
        assert torch.equal(plan((x, "auto")), pack_signs(x))
        assert len(ran) == 1
    with cpu_threads(2):
        assert torch.equal(plan((x, "auto")), pack_signs(x))
    assert len(ran) == 2
