import pytest
import torch

from bitdance_kernels import hamming_distance, nearest_codes, unpack_signs
from bitdance_kernels.testing import Call, Invalid

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
