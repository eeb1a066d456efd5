import pytest
import torch
import torch.nn.functional as F

from bitdance_kernels import patch_attention
from bitdance_kernels.testing import Call, Invalid

QKV = torch.zeros(2, 4, 48)
INVALID = {
    "patch_attention": (
        Invalid("dtype", Call("int32", (QKV.int(), 2)), TypeError, "qkv must be float32 .* int32"),
        Invalid("rank", Call("no patch", (QKV[0], 2)), ValueError,
                r"qkv must be of 3 dimensions, got shape \[4, 48\]"),
        Invalid("size", Call("heads", (QKV, 5)), ValueError,
                r"qkv must be \[R, P, 3C\] with C a multiple of num_heads = 5, got \[2, 4, 48\]"),
        Invalid("size", Call("65 tokens", (torch.zeros(1, 65, 48), 2)), ValueError,
                r"qkv must be \[R, P, 3C\] with P <= 64, got \[1, 65, 48\]"),
        Invalid("value", Call("none", (QKV, 0)), ValueError, "num_heads must be at least 1, got 0"),
    )
}  # fmt: skip


@pytest.mark.parametrize("heads", [1, 2, 4])
@pytest.mark.parametrize("patch", [1, 4, 16, 36, 64])
def test_equals_attention_on_separate_heads(patch, heads):
    qkv = torch.randn(3, patch, 3 * 16, dtype=torch.float64)
    q, k, v = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in qkv.chunk(3, dim=-1))
    expected = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
    torch.testing.assert_close(patch_attention(qkv, heads), expected)


def test_patches_do_not_see_each_other():
    qkv = torch.randn(4, 4, 48)
    alone = patch_attention(qkv[2:3], 2)
    qkv[[0, 1, 3]] = float("nan")
    assert torch.equal(patch_attention(qkv, 2)[2:3], alone)


def test_gradcheck():
    qkv = torch.randn(2, 5, 3 * 8, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda qkv: patch_attention(qkv, 2), (qkv,))
