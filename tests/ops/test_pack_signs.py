import numpy as np
import pytest
import torch

from bitdance_kernels import bit_counts, pack_signs
from bitdance_kernels.testing import Call, Invalid, cpu_isa, cpu_isas, cpu_threads, specials

INVALID = {
    "pack_signs": (
        Invalid("dtype", Call("int32", (torch.zeros(8, dtype=torch.int32),)), TypeError,
                "pack_signs: x must be float32 or .*, got int32"),
        Invalid("rank", Call("scalar", (torch.tensor(1.0),)), ValueError,
                r"pack_signs: x must be of at least 1 dimension, got shape \[\]"),
        Invalid("size", Call("C = 12", (torch.zeros(2, 12),)), ValueError,
                r"pack_signs: x must be .* multiple of 8, got shape \[2, 12\]"),
        Invalid("size", Call("C = 0", (torch.zeros(2, 0),)), ValueError,
                r"pack_signs: x must be .* multiple of 8, got shape \[2, 0\]"),
        Invalid("value", Call("requires grad", (torch.zeros(8, requires_grad=True),)), RuntimeError,
                "pack_signs: has no gradient, but x requires grad"),
    )
}  # fmt: skip


def _values(*shape, dtype):
    """Normals of a float dtype; half of the others are 0."""
    x = torch.randn(shape)
    return x.to(dtype) if dtype.is_floating_point else (x.clamp(min=0) * 50).ceil().to(dtype)


def test_equals_numpy():
    x = torch.randn(33, 72)
    expected = np.packbits(x.numpy() > 0, axis=-1, bitorder="little")
    assert np.array_equal(pack_signs(x).numpy(), expected)


@pytest.mark.usefixtures("every_isa")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_only_positive_values_give_ones(dtype):
    values = specials(dtype)
    x = torch.tensor(values, dtype=dtype).repeat(8)
    bits = np.unpackbits(pack_signs(x).numpy(), bitorder="little")
    assert bits.tolist() == [1 if value > 0 else 0 for value in values] * 8


@pytest.mark.parametrize("isa", cpu_isas())
def test_every_byte(isa):
    x = torch.arange(256, dtype=torch.uint8).repeat(3)
    with cpu_isa(isa):
        packed = pack_signs(x, backend="cpu")
        assert torch.equal(packed, pack_signs(x > 0, backend="cpu"))
    assert packed.tolist() == ([254] + [255] * 31) * 3


@pytest.mark.parametrize("isa", cpu_isas())
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_every_16_bit_pattern(isa, dtype):
    x = torch.arange(2**16).to(torch.int16).view(dtype)
    with cpu_isa(isa):
        assert torch.equal(pack_signs(x, backend="cpu"), pack_signs(x, backend="reference"))


@pytest.mark.parametrize("isa", cpu_isas())
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.uint8])
@pytest.mark.parametrize("threads", [1, 2])
def test_every_width_and_strided_rows(isa, dtype, threads):
    with cpu_isa(isa), cpu_threads(threads):
        for channels in range(8, 264, 8):
            x = _values(5, channels + 3, dtype=dtype)[:, 1 : channels + 1]
            assert torch.equal(pack_signs(x, backend="cpu"), pack_signs(x, backend="reference"))
        large = _values(1000, 3, 264, dtype=dtype)[:, :, :256]  # enough for several threads
        assert torch.equal(pack_signs(large, backend="cpu"), pack_signs(large, backend="reference"))


@pytest.mark.parametrize("isa", cpu_isas())
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.bool])
@pytest.mark.parametrize("threads", [1, 3])
def test_large_inputs(isa, dtype, threads):
    x = _values(2**17 + 3, 8, dtype=dtype)  # four streams and a tail
    with cpu_isa(isa), cpu_threads(threads):
        actual = pack_signs(x, backend="cpu")
        odd_start = pack_signs(x.view(-1)[1:-7], backend="cpu")
    expected = np.packbits(x.float().numpy() > 0, axis=-1, bitorder="little")
    assert np.array_equal(actual.numpy(), expected)
    expected = np.packbits(x.float().view(-1)[1:-7].numpy() > 0, bitorder="little")
    assert np.array_equal(odd_start.numpy(), expected)


@pytest.mark.parametrize("isa", cpu_isas())
def test_denormals_count_where_the_processor_flushes_them(isa):
    x = torch.full((8,), 1e-40)
    torch.set_flush_denormal(True)
    try:
        with cpu_isa(isa):
            assert pack_signs(x, backend="cpu").item() == 255
    finally:
        torch.set_flush_denormal(False)


@pytest.mark.slow
@pytest.mark.skipif(not cpu_isas(), reason="the C++ module was not built here")
def test_patterns_of_all_float32():
    """One in seven of all 2^32, on every instruction set: a bit is 1 from the least subnormal to
    infinity."""
    chunk, step, infinity = 2**22, 7, 0x7F800000  # a chunk stays in a cache
    patterns = -(2**31) + step * torch.arange(chunk).int()
    for start in range(-(2**31), 2**31 - step * chunk, step * chunk):
        # As integers, the positive patterns up to infinity are 1 to 0x7F800000.
        first, end = -((start - 1) // step), (infinity - start) // step + 1
        ones = max(min(end, chunk) - max(first, 0), 0)
        for isa in cpu_isas():
            with cpu_isa(isa):
                packed = pack_signs(patterns.view(torch.float32), backend="cpu")
            assert int(bit_counts(packed.view(-1, 1)).sum()) == ones
            if isa == "scalar":
                scalar = packed
            assert torch.equal(packed, scalar)
        if 0 < ones < chunk:  # the chunks where it begins and ends
            expected = (patterns >= 1) & (patterns <= infinity)
            assert torch.equal(scalar, pack_signs(expected.float(), backend="reference"))
        patterns += step * chunk
