import importlib

import numpy as np
import pytest
import torch

from bitdance_kernels import bit_counts, pack_signs
from bitdance_kernels._dispatch.op import REGISTRY
from bitdance_kernels.testing import Call, Invalid, cpu_isa, cpu_isas, cpu_threads

P = torch.zeros(3, 4, dtype=torch.uint8)
INVALID = {
    "bit_counts": (
        Invalid("dtype", Call("int32", (P.int(),)), TypeError, "packed must be uint8, got int32"),
        Invalid("rank", Call("scalar", (P[0, 0],)), ValueError, "packed must be of at least 1 dim"),
        Invalid("size", Call("no byte", (P[:, :0],)), ValueError, r"packed must be \[..., C / 8\]"),
    )
}


def test_equals_counting_signs():
    x = torch.randn(4, 33, 40)
    assert torch.equal(bit_counts(pack_signs(x)), (x > 0).sum((0, 1)))


def test_equals_numpy_on_more_rows_than_a_byte_counts():
    packed = torch.randint(256, (1000, 3), dtype=torch.uint8)
    expected = np.unpackbits(packed.numpy(), axis=1, bitorder="little").sum(0)
    assert bit_counts(packed).tolist() == expected.tolist()


@pytest.mark.parametrize("shape", [(70_000, 4), (5000, 5), (9000, 32), (1000, 300), (257, 64)])
def test_more_rows_than_the_small_counters_hold(shape, monkeypatch):
    if REGISTRY["bit_counts"].unavailable("triton") is None:  # few programs, of many rows each
        kernels = importlib.import_module("bitdance_kernels.binary.bit_counts.triton")
        monkeypatch.setattr(kernels, "_PROGRAMS", 1)
    packed = torch.randint(256, shape, dtype=torch.uint8)
    packed[:, 0] = 255
    gaps = torch.randint(256, (shape[0], shape[1] + 4), dtype=torch.uint8)[:, : shape[1]]
    for codes in (packed, gaps):
        expected = np.unpackbits(codes.numpy(), axis=1, bitorder="little").sum(0, dtype=np.int64)
        for backend in REGISTRY["bit_counts"].backends:
            if REGISTRY["bit_counts"].reason(backend, (codes,)) is None:
                assert bit_counts(codes, backend=backend).tolist() == expected.tolist(), backend


@pytest.mark.parametrize("isa", cpu_isas())
@pytest.mark.parametrize("threads", [1, 2])
def test_threads_add_up(isa, threads):
    packed = torch.randint(256, (100_003, 6), dtype=torch.uint8)
    with cpu_isa(isa), cpu_threads(threads):
        counts = bit_counts(packed, backend="cpu")
    assert torch.equal(counts, bit_counts(packed, backend="reference"))


@pytest.mark.parametrize("isa", cpu_isas())
def test_every_width(isa):
    widths = [*range(1, 70), 95, 96, 97, 127, 128, 129, 300, 1023, 1024, 1025, 1089, 2050, 3100]
    with cpu_isa(isa):
        for width in widths:
            for rows in (1, 15, 300):
                packed = torch.randint(256, (rows, width), dtype=torch.uint8)
                ones = np.unpackbits(packed.numpy(), axis=1, bitorder="little").sum(0)
                assert bit_counts(packed, backend="cpu").tolist() == ones.tolist()


@pytest.mark.parametrize("isa", cpu_isas())
def test_full_counters(isa):
    packed = torch.full((300_000, 8), 255, dtype=torch.uint8)  # of all ones, many times over
    with cpu_isa(isa):
        assert bit_counts(packed, backend="cpu").tolist() == [300_000] * 64
