import pytest
import torch
import torch.nn.functional as F

from bitdance_kernels import group_norm_silu
from bitdance_kernels._shared import native
from bitdance_kernels.testing import Call, Invalid, cpu_isas

X = torch.zeros(2, 8, 4, 4)
INVALID = {
    "group_norm_silu": (
        Invalid("dtype", Call("int", (X.int(), 2)), TypeError, "x must be float32 .* got int32"),
        Invalid("dtype", Call("int weight", (X, 2, torch.ones(8).int())), TypeError,
                "weight must be float32 or .* got int32"),
        Invalid("rank", Call("no batch", (X[0], 2)), ValueError,
                r"x must be of 4 dimensions, got shape \[8, 4, 4\]"),
        Invalid("size", Call("groups", (X, 3)), ValueError,
                "num_groups must be a divisor of C = 8, got 3"),
        Invalid("size", Call("weight", (X, 2, torch.ones(7))), ValueError,
                r"weight must be of shape \[C\] = \[8\], got \[7\]"),
        Invalid("size", Call("scale", (X, 2), {"scale": torch.ones(7), "shift": torch.ones(8)}),
                ValueError, r"scale must be of shape \[B, C\] = \[2, 8\], or one .* got \[7\]"),
        Invalid("value", Call("no shift", (X, 2), {"scale": torch.ones(2, 8)}), ValueError,
                "scale and shift must be given together, got scale alone"),
        Invalid("device", Call("bias elsewhere", (X, 2, None, torch.ones(8, device="meta"))),
                ValueError, "bias must be on cpu like x, got meta"),
    )
}  # fmt: skip


def _literal(x, groups, weight, bias, scale, shift, silu, eps=1e-6):
    """The formula of the docstring, for autograd to differentiate."""
    parts = x.unflatten(1, (groups, -1))
    mean = parts.mean((2, 3, 4), keepdim=True)
    var = (parts - mean).square().mean((2, 3, 4), keepdim=True)
    z = ((parts - mean) / (var + eps).sqrt()).flatten(1, 2)
    z = z * weight[:, None, None] + bias[:, None, None]
    z = scale[..., None, None] * z + shift[..., None, None]
    return z * torch.sigmoid(z) if silu else z


def _arguments():
    torch.manual_seed(1)
    shapes = [(2, 6, 3, 2), (6,), (6,), (2, 6), (2, 6)]
    return [torch.randn(s, dtype=torch.float64, requires_grad=True) for s in shapes]


@pytest.mark.parametrize("silu", [True, False])
@pytest.mark.parametrize("groups", [1, 2, 6])
def test_forward_and_gradients_of_the_formula(groups, silu):
    x, weight, bias, scale, shift = arguments = _arguments()
    expected = _literal(x, groups, weight, bias, scale, shift, silu)
    actual = group_norm_silu(x, groups, weight, bias, scale=scale, shift=shift, silu=silu)
    torch.testing.assert_close(actual, expected)
    cotangent = torch.randn_like(expected)
    for a, b in zip(
        torch.autograd.grad(actual, arguments, cotangent),
        torch.autograd.grad(expected, arguments, cotangent),
        strict=True,
    ):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("silu", [True, False])
def test_gradcheck(silu):
    x, weight, bias, scale, shift = _arguments()

    def call(x, weight, bias, scale, shift):
        return group_norm_silu(x, 2, weight, bias, scale=scale, shift=shift, silu=silu)

    assert torch.autograd.gradcheck(call, (x, weight, bias, scale, shift))
    assert torch.autograd.gradcheck(lambda x: group_norm_silu(x, 3, silu=silu), (x,))


def test_memory_format_is_kept():
    x = torch.randn(2, 8, 4, 6)
    last = x.contiguous(memory_format=torch.channels_last)
    assert group_norm_silu(x, 2).is_contiguous()
    result = group_norm_silu(last, 2)
    assert result.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(result, group_norm_silu(x, 2))


def test_mixed_dtypes_keep_that_of_x():
    x = torch.randn(2, 8, 4, 4, dtype=torch.bfloat16, requires_grad=True)
    weight = torch.randn(8, requires_grad=True)
    y = group_norm_silu(x, 2, weight)
    y.sum().backward()
    assert (y.dtype, x.grad.dtype, weight.grad.dtype) == (torch.bfloat16,) * 2 + (torch.float32,)
    expected = F.silu(F.group_norm(x.detach().float(), 2, weight, eps=1e-6)).bfloat16()
    assert torch.equal(y, expected)


@pytest.mark.parametrize("backend", ["reference", *["cpu"] * bool(cpu_isas()), "triton"])
def test_the_largest_values_before_silu_are_open_or_closed(backend):
    """Of -1e38 nothing is left, though its exponential overflows."""
    x = torch.randn(1, 4, 3, 3)
    scale, shift = torch.ones(1, 4), torch.tensor([[-1e38, -200.0, 200.0, 1e38]])
    shift.requires_grad_()
    y = group_norm_silu(x, 2, scale=scale, shift=shift, backend=backend)
    (grad,) = torch.autograd.grad(y, shift, torch.ones_like(y))
    closed = y[0, :2]
    torch.testing.assert_close(closed, torch.zeros_like(closed))
    assert (y[0, 3] > 0.9e38).all()
    torch.testing.assert_close(grad, torch.tensor([[0.0, 0.0, 9.0, 9.0]]))


@pytest.mark.skipif(not cpu_isas(), reason="the C++ module was not built here")
def test_only_small_maps_need_no_workspace():
    x = torch.randn(1, 1056, 2, 1)
    sizes, nothing = (1, 1056, 2, 32, 0, 1), [None] * 4
    with pytest.raises(RuntimeError, match=r"group_norm_silu: size or argument"):
        native.cpu.group_norm_silu(
            x, torch.empty_like(x), *sizes, *nothing, 1, 1e-6, None, None, native.FLOAT32, 1
        )
    expected = group_norm_silu(x.double(), 32, backend="reference").float()
    torch.testing.assert_close(group_norm_silu(x, 32, backend="cpu"), expected)
