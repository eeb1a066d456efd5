"""The CUDA kernel without a card: its device code as C++, on tests/emulated."""

import functools
import math

import pytest
import torch

from bitdance_kernels._shared import native
from bitdance_kernels.denoise.patch_attention import reference
from bitdance_kernels.testing import compare
from tests.emulated import build, drivers, needs_compiler

pytestmark = needs_compiler


@pytest.fixture(scope="module")
def attend(tmp_path_factory):
    library = build("patch_attention", tmp_path_factory.mktemp("emulated"))
    return functools.partial(drivers.patch_attention, library)


@pytest.mark.parametrize("patch", [1, 4, 9, 16, 17, 32, 33, 64])
@pytest.mark.parametrize("head_dim", [4, 20, 64, 128])
def test_against_the_formula(attend, patch, head_dim):
    rows = 8 + 512 // patch  # many tokens, so that the largest error is no matter of luck
    # Tokens of a wider tensor, and what lies beside them is not to be read.
    wide = torch.full((rows, patch, 3 * 2 * head_dim + 8), math.nan)
    qkv = wide[..., 4:-4].copy_(torch.randn(rows, patch, 3 * 2 * head_dim))
    out = attend(qkv, 2)
    truth = reference.run(qkv.double(), 2)
    compare("staged", out, reference.run(qkv, 2), truth, f"{patch} tokens, {head_dim} channels")
    assert torch.equal(out, attend(qkv, 2, backward=True)), "the order of the threads"


@pytest.mark.parametrize("patch", [5, 16, 40])
def test_products_are_exact(attend, patch):
    """Small integers: equal scores of any size give the mean of the values."""
    qkv = torch.randint(-3, 4, (3, patch, 3 * 2 * 64)).float()
    qkv[..., 128:256] = qkv[:, :1, 128:256]  # one key for all tokens of a patch
    qkv[..., 256:] *= patch
    torch.testing.assert_close(
        attend(qkv, 2), qkv[..., 256:].mean(1, keepdim=True).expand(3, patch, 128)
    )


@pytest.mark.parametrize("patch", [3, 16, 50])
@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite(attend, patch, broken):
    """In the end as in the formula, and never in another patch."""
    qkv = torch.randn(3, patch, 3 * 64)
    qkv[0, patch // 2, 5] = broken  # a query
    qkv[1, patch // 2, 64 + 5] = broken  # a key
    qkv[2, patch // 2, 128 + 5] = broken  # a value
    torch.testing.assert_close(attend(qkv, 1), reference.run(qkv, 1), equal_nan=True)


def test_scores_far_apart(attend):
    qkv = 40 * torch.randn(4, 16, 3 * 64)
    compare("staged", attend(qkv, 1), reference.run(qkv, 1), reference.run(qkv.double(), 1), "out")


@pytest.mark.skipif(
    native.cuda.unavailable("patch_attention") is not None,
    reason="the CUDA module was not built here",
)
def test_c_function_checks_before_it_launches():
    def call(*, stride=3 * 256, rows=1, patch=16, heads=4, head_dim=64):
        native.cuda.patch_attention(0, stride, 0, rows, patch, heads, head_dim, 0, 0)

    wrong = [{"rows": -1}, {"patch": -1}, {"patch": 65}, {"heads": 0}, {"head_dim": 0}]
    wrong += [{"head_dim": 66}, {"head_dim": 132}, {"stride": 770}]
    wrong += [{"heads": 2**25}, {"rows": 2**29}]
    for sizes in wrong:
        with pytest.raises(RuntimeError, match="size or argument out of range"):
            call(**sizes)
    call(rows=0)  # nothing to launch, on any machine
    call(patch=0)
