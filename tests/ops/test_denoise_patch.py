import pytest
import torch
import torch.nn.functional as F

from bitdance_kernels import (
    adaln_norm,
    check_denoise_status,
    denoise_patch,
    denoise_step,
    gated_residual,
    patch_attention,
    swiglu,
    unpack_weight,
)
from bitdance_kernels.testing import Call, Invalid
from tests.cases.denoise_patch import head_call

NAMES = (
    "x", "modulation", "table", "in_weight", "in_bias", "norm_weight", "norm_bias", "weight1",
    "bias1", "weight2", "bias2", "out_weight", "out_bias",
)  # fmt: skip


def _call(name, **changes):
    generator = torch.Generator().manual_seed(0)
    call = head_call("", generator, torch.float32, (2, 4, 16), (32, 48), cfg=3.0, **{})
    arguments = dict(zip(NAMES, call.args, strict=True))
    options = {k: changes.pop(k) for k in list(changes) if k in call.kwargs}
    for key, change in changes.items():
        arguments[key] = change(arguments[key])
    return Call(name, tuple(arguments.values()), {**call.kwargs, **options})


INVALID = {
    "denoise_patch": (
        Invalid("dtype", _call("state", x=lambda t: t.half()), TypeError,
                "x must be float32 or float64, got float16"),
        Invalid("dtype", _call("layer", bias2=lambda t: t.half()), TypeError,
                "bias2 must be float32, got float16"),
        Invalid("dtype", _call("int", in_weight=lambda t: t.int()), TypeError, "in_weight must be"),
        Invalid("rank", _call("rank", x=lambda t: t[0, 0]), ValueError,
                "x must be of at least 2 dimensions"),
        Invalid("rank", _call("one layer", weight1=lambda t: t[0]), ValueError,
                "weight1 must be of 3 dimensions"),
        Invalid("size", _call("rows", modulation=lambda t: t[:, :5]), ValueError,
                r"modulation must be of shape \[S \+ 1, M, \(3 A \+ 2\) C\] = \[3, 16, 160\]"),
        Invalid("size", _call("chunks", modulation=lambda t: t[..., :70]), ValueError,
                r"modulation must be of shape .* = \[3, 16, 160\], got \[3, 16, 70\]"),
        Invalid("size", _call("weight2", weight2=lambda t: t[:, :1]), ValueError,
                r"weight2 must be of shape \[2, 2, 3, 32, 8\], got \[2, 1, 3, 32, 8\]"),
        Invalid("size", _call("norm", norm_bias=lambda t: t[:1]), ValueError,
                r"norm_bias must be of shape \[2, 32\], got \[1, 32\]"),
        Invalid("size", _call("guidance", cfg=torch.ones(2)), ValueError,
                "cfg must be of one element"),
        Invalid("value", _call("no noise", keys=None), ValueError, "noise or keys must be given"),
        Invalid("value", _call("heads alone", num_heads=2), ValueError,
                "attention and num_heads must be given both or neither, got 2"),
        Invalid("device", _call("elsewhere", out_bias=lambda t: t.to("meta")), ValueError,
                "out_bias must be on cpu like x, got meta"),
    )
}  # fmt: skip


@pytest.mark.parametrize("num_heads", [0, 4])
@pytest.mark.parametrize("cfg", [None, 2.5])
@pytest.mark.parametrize("squash", [False, True])
def test_is_the_ops_in_a_loop(cfg, squash, num_heads):
    generator = torch.Generator().manual_seed(0)
    call = head_call(
        "", generator, torch.float32, (3, 4, 16), (32, 48), layers=3, projections=2, steps=4,
        cfg=cfg, squash=squash, num_heads=num_heads,
    ).map(lambda t: t.double() if t.is_floating_point() else t)  # fmt: skip
    state, status = denoise_patch(*call.args, **call.kwargs)
    x, modulation, table, w_in, b_in, norm, norm_b, w1, b1, w2, b2, w_out, b_out = call.args
    attention, guidance = call.kwargs["attention"], call.kwargs["cfg"]
    each = 6 if num_heads else 3
    for i in range(5):
        chunks = modulation[i].view(-1, 4, modulation.shape[-1]).chunk(2 * each + 2, dim=-1)
        h = F.linear(x, unpack_weight(w_in), b_in)
        h = h if cfg is None else torch.cat([h, h])
        for layer, at in enumerate((0, 0, each)):
            *of_attention, scale, shift, gate = chunks[at : at + each]
            if num_heads:
                n_w, n_b, qkv_w, qkv_b, o_w, o_b = (part[layer] for part in attention)
                n = adaln_norm(h, of_attention[0], of_attention[1], n_w, n_b, eps=1e-6)
                n = patch_attention(F.linear(n, unpack_weight(qkv_w), qkv_b), num_heads)
                h = gated_residual(h, F.linear(n, unpack_weight(o_w), o_b), of_attention[2])
            n = adaln_norm(h, scale, shift, norm[layer], norm_b[layer], eps=1e-6)
            u = swiglu(F.linear(n, unpack_weight(w1[layer], "swiglu"), b1[layer]))
            h = gated_residual(h, F.linear(u, unpack_weight(w2[layer]), b2[layer]), gate)
        x0 = F.linear(adaln_norm(h, *chunks[-2:], eps=1e-6), unpack_weight(w_out), b_out)
        x0 = 2 * torch.sigmoid(x0) - 1 if squash else x0
        x = denoise_step(x, x0, table, i, cfg=guidance, keys=call.kwargs["keys"])
    torch.testing.assert_close(state, x)
    assert status.tolist() == [0]


def test_status_becomes_an_error():
    check_denoise_status(torch.zeros(1, dtype=torch.int32))
    with pytest.raises(RuntimeError, match="denoise_patch: the blocks of a launch waited"):
        check_denoise_status(torch.ones(1, dtype=torch.int32))
    with pytest.raises(TypeError, match="check_denoise_status: status must be a torch"):
        check_denoise_status(0)


def test_refuses_part_of_an_attention():
    call = _call("")
    with pytest.raises(ValueError, match=r"attention must be \(norm_weight, .*got 2"):
        denoise_patch(*call.args, **{**call.kwargs, "attention": (None, None), "num_heads": 2})
