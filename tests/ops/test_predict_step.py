import importlib

import pytest
import torch
import torch.nn.functional as F

from bitdance_kernels import adaln_norm, denoise_schedule, denoise_step, noise_keys, predict_step
from bitdance_kernels.testing import Call, Invalid, check_backend
from tests.cases.predict_step import CASES

TABLE = denoise_schedule(4)[0]
H, W, IN = torch.zeros(3, 2, 16), torch.zeros(8, 16), torch.zeros(16, 8)
X, B, NB = torch.zeros(3, 2, 8), torch.zeros(8), torch.zeros(16)


def _call(name, *, cfg=None, noise=X, keys=None, **changes):
    arguments = {
        "h": H, "scale": H, "shift": H, "weight": W, "bias": B, "x": X, "table": TABLE, "step": 1,
        "in_weight": IN, "in_bias": NB, "time": None, "cond": None, **changes,
    }  # fmt: skip
    return Call(name, tuple(arguments.values()), {"cfg": cfg, "noise": noise, "keys": keys})


INVALID = {
    "predict_step": (
        Invalid("dtype", _call("int", h=H.int()), TypeError, "h must be float32 .* got int32"),
        Invalid("dtype", _call("state", x=X.half()), TypeError, "x must be float32 or float64"),
        Invalid("dtype", _call("layer", in_weight=IN.half()), TypeError,
                "in_weight must be float32, got float16"),
        Invalid("rank", _call("rank", x=X[0, 0]), ValueError, "x must be of at least 2 dimensions"),
        Invalid("size", _call("half of the rows", cfg=2.0), ValueError,
                r"h must be \[2 R, ...\] when cfg is given"),
        Invalid("size", _call("rows", h=H[:2], scale=H[:2], shift=H[:2]), ValueError,
                r"h must be of shape \[R or 2 R, ..., C\] = \[3, 2, 16\], got \[2, 2, 16\]"),
        Invalid("size", _call("scale", scale=H[:2]), ValueError,
                r"scale must be of shape that of h = \[3, 2, 16\]"),
        Invalid("size", _call("weight", weight=W[:4]), ValueError,
                r"weight must be of shape \[D, C\] = \[8, 16\], got \[4, 16\]"),
        Invalid("size", _call("time", time=torch.zeros(4, 16), cond=H), ValueError,
                r"time must be of shape \[S \+ 1, C\] = \[5, 16\], got \[4, 16\]"),
        Invalid("value", _call("time alone", time=torch.zeros(5, 16)), ValueError,
                "time and cond must be given both or neither"),
        Invalid("value", _call("no noise", noise=None), ValueError, "noise or keys must be given"),
        Invalid("value", _call("step", step=5), ValueError, r"step must be in \[0, 5\), got 5"),
        Invalid("device", _call("elsewhere", bias=B.to("meta")), ValueError,
                "bias must be on cpu like h, got meta"),
    )
}  # fmt: skip


@pytest.mark.parametrize("squash", [False, True])
@pytest.mark.parametrize("cfg", [None, 2.5])
def test_is_what_it_replaces(cfg, squash):
    rows = 3 if cfg is None else 6
    h, scale, shift, cond = (torch.randn(rows, 2, 16) for _ in range(4))
    weight, bias, in_weight, in_bias, time = (
        torch.randn(size) for size in ((8, 16), (8,), (16, 8), (16,), (5, 16))
    )
    x, keys = torch.randn(3, 2, 8), noise_keys(0, range(3))
    x0, state, stream, y = predict_step(
        h, scale, shift, weight, bias, x, TABLE, 2, in_weight, in_bias, time, cond, cfg=cfg,
        keys=keys, squash=squash,
    )  # fmt: skip
    wanted = F.linear(adaln_norm(h, scale, shift), weight, bias)
    wanted = 2 * torch.sigmoid(wanted) - 1 if squash else wanted
    torch.testing.assert_close(x0, wanted)
    assert torch.equal(
        state, denoise_step(x, x0, TABLE, 2, cfg=cfg, keys=keys, backend="reference")
    )
    both = state if cfg is None else torch.cat([state, state])
    torch.testing.assert_close(stream, F.linear(both, in_weight, in_bias))
    torch.testing.assert_close(y, F.silu(time[3] + cond))


def test_after_the_last_step_there_is_no_further_time():
    time, cond = torch.randn(5, 16), torch.randn(3, 2, 16)
    for backend in ("reference", "triton"):
        call = _call("", step=4, time=time, cond=cond)
        _, _, _, y = predict_step(*call.args, **call.kwargs, backend=backend)
        torch.testing.assert_close(y, F.silu(time[4] + cond))
        call = _call("", step=4)
        assert predict_step(*call.args, **call.kwargs, backend=backend)[3].numel() == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("tokens", [1, 5, 50])
def test_small_integers_are_exact(tokens, dtype):
    """Pairs of +1 and -1: the norm of a row is the row itself, and all that follows is integer."""
    signs = torch.randint(2, (2 * tokens, 2, 32, 1)) * 2.0 - 1
    h = torch.cat([signs, -signs], dim=-1).flatten(-2)
    scale, shift = torch.randint(0, 2, h.shape), torch.randint(-1, 2, h.shape)
    weight, bias = torch.randint(-1, 2, (12, 64)), torch.randint(-8, 9, (12,))
    in_weight, in_bias = torch.randint(-1, 2, (64, 12)), torch.randint(-8, 9, (64,))
    x, noise = (torch.randint(-8, 9, (tokens, 2, 12)).float() for _ in range(2))
    table = torch.tensor([[0.0, 0.0, 0.0], [2.0, 1.0, 3.0]])
    layers = [t.to(dtype) for t in (h, scale, shift, weight, bias)]
    ends = [t.to(dtype) for t in (in_weight, in_bias)]
    x0, state, stream, _ = predict_step(
        *layers, x, table, 1, *ends, cfg=2.0, noise=noise, eps=1e-9, backend="triton"
    )
    exact = F.linear((h * (1 + scale) + shift).double(), weight.double(), bias.double())
    assert torch.equal(x0, exact.to(dtype))
    first, second = exact.chunk(2)
    wanted = 2 * x + (second + 2 * (first - second)) + 3 * noise
    assert torch.equal(state, wanted.float())
    exact = F.linear(wanted, in_weight.double(), in_bias.double())
    assert torch.equal(stream, torch.cat([exact, exact]).to(dtype))


def test_has_no_gradient():
    call = _call("", h=H.clone().requires_grad_())
    with pytest.raises(RuntimeError, match="predict_step: has no gradient, but h requires grad"):
        predict_step(*call.args, **call.kwargs)


@pytest.mark.parametrize("width", [64, 192, 768, 1024, 1280, 5120])
def test_widths_of_the_models(width, monkeypatch):
    if width > 192:  # a program for all: slices repeat much, which takes the interpreter long
        module = importlib.import_module("bitdance_kernels.denoise.predict_step.triton")
        monkeypatch.setattr(module, "_MAX_SLICES", 1)
    h, scale, shift = torch.randn(3, 4, width).half()
    weight, in_weight = (torch.randn(32, width) / width**0.5).half(), torch.randn(width, 32).half()
    bias, in_bias = torch.randn(32).half(), torch.randn(width).half()
    x, cfg = torch.randn(2, 32), torch.tensor(2.0)
    arguments = (h, scale, shift, weight, bias, x, TABLE, 1, in_weight, in_bias)
    call = Call(f"{width}", arguments, {"cfg": cfg, "keys": noise_keys(0, range(2))})
    check_backend(CASES[0], call, "triton")
