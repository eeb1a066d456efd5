import pytest
import torch

from bitdance_kernels import hamming_distance, nearest_codes, unpack_signs
from bitdance_kernels._dispatch.op import REGISTRY
from bitdance_kernels.testing import Call, Invalid, cpu_isa, cpu_isas, cpu_threads

A = torch.zeros(3, 4, dtype=torch.uint8)
_SHARED = (
    ("dtype", "float a", (A.float(), A), TypeError, "a must be uint8, got float32"),
    ("dtype", "int b", (A, A.int()), TypeError, "b must be uint8, got int32"),
    ("rank", "one code", (A[0], A), ValueError, r"a must be of 2 dimensions, got shape \[4\]"),
    (
        "size",
        "widths",
        (A, A[:, :3]),
        ValueError,
        r"b must be of shape \[M, C / 8\] = \[3, 4\], got",
    ),
    ("size", "no bit", (A[:, :0], A[:, :0]), ValueError, r"a must be \[N, C / 8\] with 0 < C"),
    ("device", "b elsewhere", (A, A.to("meta")), ValueError, "b must be on cpu like a, got meta"),
)
INVALID = {
    "hamming_distance": tuple(
        Invalid(kind, Call(name, args), error, match) for kind, name, args, error, match in _SHARED
    ),
    "nearest_codes": (
        *(
            Invalid(kind, Call(name, (*args, 1)), error, match)
            for kind, name, args, error, match in _SHARED
        ),
        Invalid("value", Call("k = 0", (A, A, 0)), ValueError, "k must be in 1 to M = 3, got 0"),
        Invalid("value", Call("k = 4", (A, A, 4)), ValueError, "k must be in 1 to M = 3, got 4"),
    ),
}


def _codes(rows, width):
    return torch.randint(256, (rows, width), dtype=torch.uint8)


def test_equals_counting_different_bits():
    a, b = _codes(9, 5), _codes(11, 5)
    different = unpack_signs(a)[:, None] != unpack_signs(b)[None]
    assert torch.equal(hamming_distance(a, b), different.sum(-1, dtype=torch.int32))


def test_identity_with_the_inner_product():
    a, b = _codes(30, 8), _codes(20, 8)
    product = unpack_signs(a) @ unpack_signs(b).T
    assert torch.equal(64 - 2 * hamming_distance(a, b).float(), product)


def test_is_a_metric():
    a = _codes(20, 3)
    d = hamming_distance(a, a)
    assert torch.equal(d, d.T)
    assert (d.diagonal() == 0).all()
    assert (d[:, None, :] <= d[:, :, None] + d[None]).all()


@pytest.mark.parametrize("k", [1, 5, 300])
def test_nearest_sorts_by_distance_then_index(k):
    a, b = _codes(40, 1), _codes(300, 1)  # one byte: many ties
    index, distance = nearest_codes(a, b, k)
    d = hamming_distance(a, b)
    for row in range(len(a)):
        order = sorted(range(len(b)), key=lambda m: (int(d[row, m]), m))[:k]
        assert index[row].tolist() == order
        assert torch.equal(distance[row], d[row, order])


def test_nearest_across_chunks():
    a, b = _codes(1500, 4), _codes(9000, 4)
    b[8500] = a[1200]
    index, distance = nearest_codes(a, b, 2)
    assert distance[1200, 0] == 0
    assert torch.equal(b[index[1200, 0]], a[1200])
    rows = torch.arange(0, 1500, 97)
    d = hamming_distance(a[rows], b).sort(dim=1, stable=True)
    assert torch.equal(index[rows], d.indices[:, :2])
    assert torch.equal(distance[rows], d.values[:, :2])


def _backends(op, *args):
    return [name for name in op.backends if op.reason(name, args) is None]


@pytest.mark.parametrize("width", [1, 4, 32, 33])
def test_every_backend_on_several_tiles(width):
    a, b = _codes(70, width + 3)[:, 1:-2], _codes(150, width)
    different = unpack_signs(a)[:, None] != unpack_signs(b)[None]
    expected = different.sum(-1, dtype=torch.int32)
    for backend in _backends(REGISTRY["hamming_distance"], a, b):
        assert torch.equal(hamming_distance(a, b, backend=backend), expected), backend


@pytest.mark.parametrize(("width", "k"), [(1, 1), (1, 12), (4, 5), (33, 3)])
def test_every_backend_finds_the_nearest_in_order(width, k):
    a, b = _codes(20, width), _codes(200, width)
    order = hamming_distance(a, b, backend="reference").sort(dim=1, stable=True)
    for backend in _backends(REGISTRY["nearest_codes"], a, b, k):
        index, distance = nearest_codes(a, b, k, backend=backend)
        assert torch.equal(index, order.indices[:, :k]), backend
        assert torch.equal(distance, order.values[:, :k]), backend


@pytest.mark.parametrize("isa", cpu_isas())
@pytest.mark.parametrize("threads", [1, 2])
def test_many_rows_and_threads(isa, threads):
    """Streaming stores, several chunks of codes, a block that is not full."""
    a, b = _codes(1500, 9), _codes(2001, 9)
    expected = hamming_distance(a, b, backend="reference")
    with cpu_isa(isa), cpu_threads(threads):
        assert torch.equal(hamming_distance(a, b, backend="cpu"), expected)
        even = hamming_distance(a, b[:2000], backend="cpu")
        nearest = nearest_codes(a, b, 7, backend="cpu")
    assert torch.equal(even, expected[:, :2000])
    order = expected.sort(dim=1, stable=True)
    assert torch.equal(nearest[0], order.indices[:, :7])
    assert torch.equal(nearest[1], order.values[:, :7])


@pytest.mark.parametrize("isa", cpu_isas())
@pytest.mark.parametrize("width", [31, 32, 62, 63, 64, 125, 300])
def test_counts_of_long_codes_do_not_overflow(isa, width):
    a = torch.cat([torch.full((3, width), 255, dtype=torch.uint8), _codes(4, width)])
    b = torch.cat([torch.zeros(67, width, dtype=torch.uint8), _codes(600, width)])
    expected = hamming_distance(a, b, backend="reference")
    assert expected[0, 0] == 8 * width
    order = expected.sort(dim=1, stable=True)
    with cpu_isa(isa):
        assert torch.equal(hamming_distance(a, b, backend="cpu"), expected)
        index, distance = nearest_codes(a, b, 5, backend="cpu")
    assert torch.equal(index, order.indices[:, :5])
    assert torch.equal(distance, order.values[:, :5])


@pytest.mark.parametrize("isa", cpu_isas())
@pytest.mark.parametrize("queries", [1, 2, 6])
def test_few_queries_of_every_width(isa, queries):
    """Codes as they lie, with and without gaps; the last ones fill no vector and no stream."""
    for width in (*range(1, 20), 31, 32, 33, 40, 48, 63, 64, 65, 127, 128, 200, 8191, 8192):
        count = 5000 // width + 7
        a, wide = _codes(queries, width), _codes(count, width + 3)
        wide[3, : width + 1] = 255
        a[0] = 0
        for b in (wide[:, 1:-2], wide[:, 1:-2].contiguous()):
            expected = hamming_distance(a, b, backend="reference")
            order = expected.sort(dim=1, stable=True)
            with cpu_isa(isa):
                assert torch.equal(hamming_distance(a, b, backend="cpu"), expected), width
                index, distance = nearest_codes(a, b, 3, backend="cpu")
            assert torch.equal(index, order.indices[:, :3]), width
            assert torch.equal(distance, order.values[:, :3]), width


@pytest.mark.parametrize("isa", cpu_isas())
@pytest.mark.parametrize("width", [4, 16, 48])
def test_few_queries_of_many_codes_and_threads(isa, width):
    a, b = _codes(3, width), _codes(60_003, width)
    with cpu_isa(isa), cpu_threads(2):
        distance = hamming_distance(a, b, backend="cpu")
        index, nearest = nearest_codes(a, b, 9, backend="cpu")
    assert torch.equal(distance, hamming_distance(a, b, backend="reference"))
    order = distance.sort(dim=1, stable=True)
    assert torch.equal(index, order.indices[:, :9])
    assert torch.equal(nearest, order.values[:, :9])
