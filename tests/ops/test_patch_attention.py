import pytest
import torch
import torch.nn.functional as F

from bitdance_kernels import BackendError, patch_attention
from bitdance_kernels._dispatch.op import REGISTRY
from bitdance_kernels.testing import Call, Invalid, compare, cpu_isa, cpu_isas

OP = REGISTRY["patch_attention"]
BACKENDS = [name for name in OP.backends if OP.unavailable(name) is None]
EVERY_BACKEND = pytest.mark.parametrize("backend", BACKENDS)
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


@EVERY_BACKEND
@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_patches_do_not_see_each_other(backend, broken):
    """Not even those that share a tile of the kernel."""
    qkv = torch.randn(4, 4, 48)
    alone = patch_attention(qkv[2:3], 2, backend=backend)
    qkv[[0, 1, 3]] = broken
    out = patch_attention(qkv, 2, backend=backend)
    torch.testing.assert_close(out[2:3], alone)
    assert not out[[0, 1, 3]].isfinite().any()


@pytest.mark.parametrize("isa", cpu_isas())
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_halves_of_every_size(dtype, isa):
    """Patches that fill tiles of sixteen tokens in part, heads of one tile of channels and more."""
    for patch, head_dim in ((5, 96), (16, 32), (31, 64), (64, 128), (33, 20)):
        qkv = torch.randn(1 + 256 // patch, patch, 3 * 2 * head_dim).to(dtype)
        with cpu_isa(isa):
            out = patch_attention(qkv, 2, backend="cpu")
        eager = patch_attention(qkv, 2, backend="reference")
        truth = patch_attention(qkv.double(), 2, backend="reference")
        compare("staged", out, eager, truth, f"{patch} tokens, {head_dim} channels, {dtype}")


@EVERY_BACKEND
def test_every_size_of_patch_and_head(backend):
    """Patches that fill a tile in part, heads that are no power of two."""
    sizes = (1, 2, 3, 5, 7, 8, 15, 16, 17, 31, 33, 64)
    # Triton's tiles are powers of two, and its interpreter is slow.
    for patch in sizes if backend == "cpu" else sizes[::3]:
        for head_dim in (1, 16, 20) if patch < 33 else (20,):
            # Many tokens, so that the largest error is no matter of luck.
            qkv = torch.randn(8 + 512 // patch, patch, 3 * 2 * head_dim)
            out = patch_attention(qkv, 2, backend=backend)
            eager = patch_attention(qkv, 2, backend="reference")
            truth = patch_attention(qkv.double(), 2, backend="reference")
            compare("staged", out, eager, truth, f"{patch} tokens, {head_dim} channels")


@pytest.mark.parametrize("backend", ["cpu", "triton"])
def test_wide_heads_are_for_the_reference(backend):
    if backend not in BACKENDS:
        return
    with pytest.raises(BackendError, match="heads of at most 128 channels, got 136"):
        patch_attention(torch.zeros(1, 4, 3 * 136), 1, backend=backend)


def test_gradcheck():
    qkv = torch.randn(2, 5, 3 * 8, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda qkv: patch_attention(qkv, 2), (qkv,))
