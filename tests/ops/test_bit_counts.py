import numpy as np
import torch

from bitdance_kernels import bit_counts, pack_signs
from bitdance_kernels.testing import Call, Invalid

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
