"""The CUDA kernel without a card: its device code as C++, on tests/emulated."""

import functools
import math

import pytest
import torch

from bitdance_kernels._shared import native
from bitdance_kernels.attention.block_decode_attention import reference
from bitdance_kernels.testing import compare
from tests.emulated import build, drivers, needs_compiler

pytestmark = needs_compiler


@pytest.fixture(scope="module")
def decode(tmp_path_factory):
    library = build("block_decode_attention", tmp_path_factory.mktemp("emulated"))
    return functools.partial(drivers.decode, library)


CALLS = [
    # P, (H, Hkv), D, lengths, splits
    (1, (1, 1), 32, (0, 1, 64, 150), 1),
    (1, (8, 1), 64, (150, 63, 65, 0), 2),
    (4, (4, 2), 48, (31, 32), 2),
    (9, (1, 1), 96, (129, 79), 3),
    (16, (2, 2), 64, (150, 5), 3),
    (4, (6, 1), 128, (100, 17), 1),  # 24 rows: warps side by side
    (9, (4, 2), 80, (65, 1), 2),
    (64, (2, 1), 32, (17, 128), 1),  # two tiles of rows
    (16, (5, 1), 64, (150,), 3),
    (4, (2, 2), 8, (150, 1), 7),  # more splits than tiles
    (1, (2, 1), 128, (0, 3), 64),  # more splits than keys
]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("P", "heads", "D", "lengths", "splits"), CALLS)
def test_against_the_formula(decode, P, heads, D, lengths, splits, dtype):
    B, (H, Hkv) = len(lengths), heads
    # Views of wider tensors, as the caches of all layers in one are; none of the strides of k is
    # that of v.
    q = torch.randn(B, P, H, D + 8, dtype=dtype)[..., :D]
    k = torch.randn(B, 150, Hkv, D + 16, dtype=dtype)[..., 8 : D + 8]
    v = torch.randn(B, Hkv, 153, D + 24, dtype=dtype).transpose(1, 2)[:, :150, :, 8 : D + 8]
    n = torch.tensor(lengths, dtype=torch.int32)
    truth = reference.attend(q.double(), k.double(), v.double(), n, 0.125)
    plain = reference.attend(q, k, v, n, 0.125)
    for b, length in enumerate(lengths):
        k[b, length:] = math.nan
        v[b, length:] = math.inf
    out = decode(q, k, v, n, 0.125, splits, False)
    compare("staged", out, plain, truth, f"{splits} splits")
    assert torch.equal(out, decode(q, k, v, n, 0.125, splits, True)), "the order of the threads"


def test_lengths_outside_the_cache(decode):
    q = torch.randn(2, 1, 1, 32, dtype=torch.float16)
    k, v = torch.randn(2, 2, 70, 1, 32, dtype=torch.float16)
    out = decode(q, k, v, torch.tensor([-3, 90], dtype=torch.int32), 1.0, 2, False)
    inside = decode(q, k, v, torch.tensor([0, 70], dtype=torch.int32), 1.0, 2, False)
    assert torch.equal(out, inside)


@pytest.mark.parametrize("P", [1, 17])
@pytest.mark.parametrize("splits", [1, 3])
def test_scores_of_minus_infinity(decode, P, splits):
    """Keys that are masked by their scores: the first tiles see nothing, the last one does."""
    q = torch.rand(1, P, 1, 32, dtype=torch.float16) + 0.5
    k, v = torch.randn(2, 1, 150, 1, 32, dtype=torch.float16)
    k[:, :140] = -math.inf
    n = torch.tensor([150], dtype=torch.int32)
    out = decode(q, k, v, n, 0.2, splits, False)
    q, k, v, n = q, k[:, 140:], v[:, 140:], n - 140
    plain = reference.attend(q, k, v, n, 0.2)
    truth = reference.attend(q.double(), k.double(), v.double(), n, 0.2)
    compare("staged", out, plain, truth, "out")


@pytest.mark.skipif(
    native.cuda.unavailable("block_decode_attention") is not None,
    reason="the CUDA module was not built here",
)
def test_c_function_checks_before_it_launches():
    def call(*, B=1, P=1, H=4, Hkv=2, D=64, Tmax=8, splits=1, dtype=native.FLOAT16, clusters=0):
        sizes = (B, P, H, Hkv, D, Tmax, splits)
        native.cuda.block_decode_attention(
            *(0,) * 8, *sizes, *(0,) * 9, 1.0, dtype, clusters, 0, 0, 0
        )

    with pytest.raises(RuntimeError, match="dtype code not handled"):
        call(dtype=native.FLOAT32)
    wrong = [{"B": -1}, {"H": 3}, {"Hkv": 0}, {"D": 12}, {"D": 136}, {"Tmax": -1}, {"Tmax": 2**31}]
    wrong += [{"splits": 0}, {"splits": 65}, {"P": 2**30}, {"splits": 9, "clusters": 1}]
    for sizes in wrong:
        with pytest.raises(RuntimeError, match="size or argument out of range"):
            call(**sizes)
    call(B=0)  # nothing to launch, on any machine
    call(P=0)
