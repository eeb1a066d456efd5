"""bitdance_kernels.binary.numpy: the same bits as the ops, and no PyTorch."""

import mmap
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest
import torch

import bitdance_kernels
from bitdance_kernels._shared import native_modules
from bitdance_kernels.binary import numpy as front
from bitdance_kernels.testing import specials

DTYPES = {np.float32: torch.float32, np.float16: torch.float16}


@pytest.fixture(params=["compiled", "numpy"])
def _either(request, monkeypatch):
    if request.param == "numpy":
        monkeypatch.setattr(
            native_modules, "cpu", native_modules.NativeModule("_none", "not built")
        )


@pytest.mark.usefixtures("_either")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(8,), (3, 40), (2, 3, 16), (0, 8), (70, 256)])
def test_equals_the_ops(dtype, shape):
    x = np.random.default_rng(0).standard_normal(shape).astype(dtype)
    x.flat[: len(specials(DTYPES[dtype]))] = np.array(specials(DTYPES[dtype]))[: x.size]
    packed = front.pack_signs(x)
    assert packed.dtype == np.uint8
    expected = bitdance_kernels.pack_signs(torch.from_numpy(x), backend="reference")
    np.testing.assert_array_equal(packed, expected.numpy())
    again = front.unpack_signs(packed, dtype)
    assert again.dtype == dtype
    np.testing.assert_array_equal(again, np.where(x > 0, 1, -1))


@pytest.mark.usefixtures("_either")
@pytest.mark.parametrize("dtype", [np.bool_, np.uint8])
def test_masks_and_bytes(dtype):
    x = np.random.default_rng(0).integers(3, size=(33, 72)).astype(dtype) * dtype(255)
    for view in (x, x[::2, 8:48], x.T[:, :24]):
        packed = front.pack_signs(view)
        np.testing.assert_array_equal(packed, np.packbits(view > 0, -1, bitorder="little"))


@pytest.mark.usefixtures("_either")
def test_bfloat16_of_ml_dtypes():
    bfloat16 = ml_dtypes.bfloat16
    x = np.array([*specials(torch.bfloat16), *range(-3, 4)] * 4).astype(bfloat16).reshape(2, 32)
    packed = front.pack_signs(x)
    np.testing.assert_array_equal(packed, front.pack_signs(x.astype(np.float32)))
    y = front.unpack_signs(packed, bfloat16)
    assert y.dtype == bfloat16
    np.testing.assert_array_equal(y.astype(np.float32), front.unpack_signs(packed))


@pytest.mark.usefixtures("_either")
def test_strided_arrays_and_threads():
    x = np.random.default_rng(1).standard_normal((3000, 64), dtype=np.float32)
    for view in (x[::2, 8:48], x.T[:, :8], x[:, ::-1]):
        packed = front.pack_signs(view, threads=2)
        np.testing.assert_array_equal(packed, np.packbits(view > 0, -1, bitorder="little"))
        unpacked = front.unpack_signs(packed[::-1], threads=2)
        np.testing.assert_array_equal(unpacked, np.where(view[::-1] > 0, 1, -1))


def test_misuse():
    x = np.zeros((2, 8), np.float32)
    for call, error, words in (
        (lambda: front.pack_signs(x.astype(np.float64)), TypeError, "x must be float32 or float16"),
        (lambda: front.pack_signs(x.astype(">f4")), TypeError, "or bool or uint8, got >f4"),
        (lambda: front.pack_signs(x[:, :7]), ValueError, r"multiple of 8, got shape \[2, 7\]"),
        (lambda: front.pack_signs(x[:, :0]), ValueError, "positive multiple of 8"),
        (lambda: front.pack_signs(np.float32(1)[()]), ValueError, r"got shape \[\]"),
        (lambda: front.pack_signs(x, threads=0), ValueError, "threads must be at least 1, got 0"),
        (lambda: front.unpack_signs(x), TypeError, "packed must be uint8, got float32"),
        (lambda: front.unpack_signs(x.astype(np.uint8), np.int8), TypeError, "dtype must be"),
        (lambda: front.unpack_signs(np.zeros((2, 0), np.uint8)), ValueError, "C > 0"),
    ):
        with pytest.raises(error, match=words):
            call()


def test_torch_is_not_imported():
    code = """
import sys
from bitdance_kernels.binary.numpy import pack_signs, unpack_signs
import numpy as np
assert unpack_signs(pack_signs(np.ones((4, 8), np.float32))).sum() == 32
assert "torch" not in sys.modules
import bitdance_kernels
assert not hasattr(bitdance_kernels, "nonsense") and "torch" not in sys.modules
assert {"pack_signs", "__doc__"} <= set(dir(bitdance_kernels))
assert "torch" not in sys.modules
bitdance_kernels.pack_signs, bitdance_kernels.__version__
assert "torch" in sys.modules
import pickle
from bitdance_kernels import *
assert pickle.loads(pickle.dumps(lfq_quantize)) is bitdance_kernels.lfq_quantize is lfq_quantize
assert lfq_quantize is sys.modules["bitdance_kernels.binary.lfq_quantize.op"].lfq_quantize
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_large_arrays_use_memory_again_after_the_last_view():
    packed = np.random.default_rng(2).integers(256, size=(3 << 17, 4), dtype=np.uint8)  # 48 MiB
    first = front.unpack_signs(packed)
    address, view = first.ctypes.data, first[1:, ::2]
    kept = view.copy()
    del first
    second = front.unpack_signs(~packed)
    np.testing.assert_array_equal(view, kept)
    np.testing.assert_array_equal(second, -front.unpack_signs(packed))
    del view
    third = front.unpack_signs(packed)
    # numpy, which computes where nothing was compiled, has memory of its own.
    if hasattr(mmap, "MADV_FREE") and native_modules.cpu.unavailable("unpack_signs") is None:
        assert third.ctypes.data == address
    np.testing.assert_array_equal(third[1:, ::2], kept)
