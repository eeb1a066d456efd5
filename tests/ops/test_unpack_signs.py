import pytest
import torch

from bitdance_kernels import pack_signs, unpack_signs
from bitdance_kernels.testing import Call, Invalid, cpu_isa, cpu_isas

INVALID = {
    "unpack_signs": (
        Invalid("dtype", Call("int32", (torch.zeros(8, dtype=torch.int32),)), TypeError,
                "unpack_signs: packed must be uint8, got int32"),
        Invalid("dtype", Call("to int8", (torch.zeros(8, dtype=torch.uint8), torch.int8)),
        TypeError,
                "unpack_signs: dtype must be float32, .* got torch.int8"),
        Invalid("rank", Call("scalar", (torch.tensor(1, dtype=torch.uint8),)), ValueError,
                r"unpack_signs: packed must be of at least 1 dimension, got shape \[\]"),
        Invalid("size", Call("no byte", (torch.zeros(2, 0, dtype=torch.uint8),)), ValueError,
                r"unpack_signs: packed must be \[..., C / 8\] with C > 0, got shape \[2, 0\]"),
    )
}  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_inverse_of_pack_signs(dtype):
    x = torch.randn(17, 64).to(dtype)
    y = unpack_signs(pack_signs(x), dtype)
    assert y.dtype == dtype
    assert torch.equal(y, torch.where(x > 0, 1, -1).to(dtype))


@pytest.mark.parametrize("isa", cpu_isas())
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("width", [1, 2, 3, 4, 5, 7, 8, 31, 33])
def test_every_byte_at_every_width(isa, dtype, width):
    packed = torch.arange(256, dtype=torch.uint8).repeat(width).reshape(-1, width)
    strided = torch.cat([packed, packed[:, :1]], dim=1)[:, :width]
    with cpu_isa(isa):
        expected = unpack_signs(packed, dtype, backend="reference")
        assert torch.equal(unpack_signs(packed, dtype, backend="cpu"), expected)
        assert torch.equal(unpack_signs(strided, dtype, backend="cpu"), expected)


@pytest.mark.parametrize("isa", cpu_isas())
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_large_outputs_at_any_address(isa, dtype):
    width = 176_000 * 4 // dtype.itemsize + 3  # 34 MB, which every processor streams
    packed = torch.randint(256, (6, width), dtype=torch.uint8)
    with cpu_isa(isa):
        actual = unpack_signs(packed, dtype, backend="cpu")
        odd_start = unpack_signs(packed.view(-1)[1:], dtype, backend="cpu")
        odd_rows = unpack_signs(packed[:, 1:-1], dtype, backend="cpu")
    assert torch.equal(actual, unpack_signs(packed, dtype, backend="reference"))
    assert torch.equal(odd_start, actual.view(-1)[8:])
    assert torch.equal(odd_rows, actual[:, 8:-8])
