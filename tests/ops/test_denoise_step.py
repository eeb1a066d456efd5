import pytest
import torch

from bitdance_kernels import denoise_schedule, denoise_step, noise, noise_keys
from bitdance_kernels._dispatch.op import REGISTRY
from bitdance_kernels.denoise.denoise_step import reference
from bitdance_kernels.testing import Call, Invalid, compare, cpu_isa, cpu_isas, cpu_threads

META = torch.device("meta")
EVERY_BACKEND = pytest.mark.parametrize(
    "backend",
    [
        name
        for name in REGISTRY["denoise_step"].backends
        if REGISTRY["denoise_step"].unavailable(name) is None
    ],
)
TABLE, TIMES = denoise_schedule(5)


def _call(name, **changes):
    """A good call, but for `changes`."""
    x = torch.zeros(2, 3, 4)
    good = {"x": x, "x0": x, "table": TABLE, "step": torch.tensor(0), "cfg": None,
            "noise": torch.zeros(2, 3, 4), "keys": None} | changes  # fmt: skip
    positional = tuple(good.pop(key) for key in ("x", "x0", "table", "step"))
    return Call(name, positional, good)


def _keys(*shape, dtype=torch.int64, device=None):
    return torch.zeros(shape, dtype=dtype, device=device)


INVALID = {
    "denoise_step": (
        Invalid("dtype", _call("half state", x=torch.zeros(2, 3, 4).half()), TypeError,
                "denoise_step: x must be float32 or float64, got float16"),
        Invalid("dtype", _call("int prediction", x0=torch.zeros(2, 3, 4).int()), TypeError,
                "denoise_step: x0 must be float32 or .*, got int32"),
        Invalid("dtype", _call("double table", table=TABLE.double()), TypeError,
                "denoise_step: table must be float32, got float64"),
        Invalid("dtype", _call("float step", step=torch.tensor(0.0)), TypeError,
                "denoise_step: step must be int32 or int64, got float32"),
        Invalid("dtype", _call("half noise", noise=torch.zeros(2, 3, 4).half()), TypeError,
                "denoise_step: noise must be float32, got float16"),
        Invalid("dtype", _call("int32 keys", noise=None, keys=_keys(2, 3, dtype=torch.int32)),
                TypeError, "denoise_step: keys must be int64, got int32"),
        Invalid("dtype", _call("int cfg", cfg=torch.tensor(2)), TypeError,
                "denoise_step: cfg must be float32 or float64, got int64"),
        Invalid("rank", _call("no rows", x=torch.zeros(4)), ValueError,
                r"denoise_step: x must be of at least 2 dimensions, got shape \[4\]"),
        Invalid("rank", _call("flat table", table=torch.zeros(18)), ValueError,
                r"denoise_step: table must be of 2 dimensions, got shape \[18\]"),
        Invalid("size", _call("guided, but R rows", cfg=2.0), ValueError,
                r"x0 must be of shape \[2 R, ...\] = \[4, 3, 4\], got \[2, 3, 4\]"),
        Invalid("size", _call("odd rows", cfg=2.0, x0=torch.zeros(3, 3, 4)), ValueError,
                r"denoise_step: x0 must be \[2 R, ...\] when cfg is given, got shape \[3, 3, 4\]"),
        Invalid("size", _call("2 R rows, not guided", x0=torch.zeros(4, 3, 4)), ValueError,
                r"denoise_step: x0 must be of shape \[2, 3, 4\], got \[4, 3, 4\]"),
        Invalid("size", _call("four coefficients", table=torch.zeros(6, 4)), ValueError,
                r"table must be of shape \[S \+ 1, 3\] = \[6, 3\], got \[6, 4\]"),
        Invalid("size", _call("two steps", step=torch.tensor([0, 1])), ValueError,
                r"denoise_step: step must be of one element, got shape \[2\]"),
        Invalid("size", _call("two scales", cfg=torch.ones(2), x0=torch.zeros(4, 3, 4)), ValueError,
                r"denoise_step: cfg must be of one element, got shape \[2\]"),
        Invalid("size", _call("noise for 2 R rows", noise=torch.zeros(4, 3, 4)), ValueError,
                r"denoise_step: noise must be of shape \[2, 3, 4\], got \[4, 3, 4\]"),
        Invalid("size", _call("keys of 3 rows", noise=None, keys=_keys(3, 3)), ValueError,
                r"denoise_step: keys must be of shape \[R, 3\] = \[2, 3\], got \[3, 3\]"),
        Invalid("device", _call("x0", x0=torch.zeros(2, 3, 4, device=META)), ValueError,
                "denoise_step: x0 must be on cpu like x, got meta"),
        Invalid("device", _call("table", table=TABLE.to(META)), ValueError,
                "denoise_step: table must be on cpu like x, got meta"),
        Invalid("device", _call("step", step=torch.tensor(0, device=META)), ValueError,
                "denoise_step: step must be on cpu like x, got meta"),
        Invalid("device", _call("keys", noise=None, keys=_keys(2, 3, device=META)), ValueError,
                "denoise_step: keys must be on cpu like x, got meta"),
        Invalid("device", _call("noise", noise=torch.zeros(2, 3, 4, device=META)), ValueError,
                "denoise_step: noise must be on cpu like x, got meta"),
        Invalid("device", _call("cfg", x0=torch.zeros(4, 3, 4), cfg=torch.ones((), device=META)),
                ValueError, "denoise_step: cfg must be on cpu like x0, got meta"),
        Invalid("value", _call("no noise", noise=None), ValueError,
                "denoise_step: noise or keys must be given, one of the two, got neither"),
        Invalid("value", _call("noise twice", keys=_keys(2, 3)), ValueError,
                "denoise_step: noise or keys must be given, one of the two, got both"),
        Invalid("value", _call("step 6 of 5", step=6), ValueError,
                r"denoise_step: step must be in \[0, 6\), got 6"),
        Invalid("value", _call("step -1", step=-1), ValueError,
                r"denoise_step: step must be in \[0, 6\), got -1"),
        Invalid("value", _call("requires grad", x0=torch.zeros(2, 3, 4, requires_grad=True)),
                RuntimeError, "denoise_step: has no gradient, but x0 requires grad"),
    )
}  # fmt: skip


def official_sampler(network, draws, steps, time_shift, cfg, dtype):
    """The published loop, literally: velocities, guidance on them, score, Euler-Maruyama.

    `draws` are the initial state and one noise a step. Times and step widths are float32 numbers,
    as in the official code; everything else is computed in `dtype`.
    """
    grid = torch.linspace(0, 0.95, steps + 1)
    grid = (1 / time_shift) / ((1 / time_shift) + (1 / grid - 1))
    x, time = draws[0].to(dtype), grid[0]

    def velocity(x, t):
        if cfg is None:
            return (network(x, t) - x) / torch.clamp(1 - t, min=0.05)
        both = torch.cat((x, x))
        v = (network(both, t) - both) / torch.clamp(1 - t, min=0.05)
        conditional, unconditional = v.chunk(2)
        return unconditional + cfg * (conditional - unconditional)

    for i in range(steps):
        step_width = grid[i + 1] - grid[i]
        t, dt = time.to(dtype), step_width.to(dtype)
        v = velocity(x, t)
        score = (t * v - x) / (1 - t)
        drift = v + (1 - t) * score
        x = x + drift * dt + torch.sqrt(2 * (1 - t) * dt) * draws[i + 1].to(dtype)
        time = time + step_width
    return x + 0.05 * velocity(x, torch.tensor(0.95).to(dtype))


def smooth_network(rows, channels):
    """A prediction in (-1, 1) that depends on state, time and row.

    It is contracting, with guidance too: where a network magnifies differences, the largest error
    of a loop is that of the one row that came nearest to a watershed.
    """
    generator = torch.Generator().manual_seed(5)
    weight = torch.randn(channels, channels, generator=generator) / (4 * channels**0.5)
    condition = torch.randn(rows, 1, channels, generator=generator)

    def network(x, t):
        return torch.tanh(x @ weight.to(x) + condition.to(x) * (1 + 2 * t.to(x)))

    return network


@pytest.mark.parametrize(("steps", "time_shift"), [(100, 1.0), (50, 1.0), (20, 2.5), (20, 0.6)])
@pytest.mark.parametrize("cfg", [None, 4.55])
def test_the_whole_loop_is_the_published_sampler(steps, time_shift, cfg):
    """All steps together, in float32, stay within what one op is allowed."""
    rows, tokens, channels = 256, 4, 32
    network = smooth_network(rows if cfg is None else 2 * rows, channels)
    draws = torch.randn(steps + 1, rows, tokens, channels)
    table, times = denoise_schedule(steps, time_shift=time_shift)
    x = draws[0]
    for i, t in enumerate(times):
        x0 = network(x if cfg is None else torch.cat((x, x)), t)
        x = denoise_step(x, x0, table, i, cfg=cfg, noise=draws[min(i + 1, steps)])
    truth = official_sampler(network, draws, steps, time_shift, cfg, torch.float64)
    compare("rounded", x, x, truth, "final state")


@pytest.mark.parametrize("step", [0, 2, 5])
def test_keys_are_the_noise_at_the_next_counter(step):
    x, x0 = torch.randn(2, 3, 4, 9)
    keys = noise_keys(77, [4, 0, 9], ar_step=6)
    drawn = noise(keys, step + 1, 36).reshape(3, 4, 9)
    inside = denoise_step(x, x0, TABLE, step, keys=keys, backend="reference")
    given = denoise_step(x, x0, TABLE, step, noise=drawn, backend="reference")
    assert torch.equal(inside, given)
    if step < 5:  # the last step has no noise
        other = noise(keys, step, 36).reshape(3, 4, 9)
        assert not torch.equal(inside, denoise_step(x, x0, TABLE, step, noise=other))


def test_a_sample_takes_the_same_way_in_every_batch():
    """Whatever the batch's size and order, with a network that treats each row by itself."""
    keys = noise_keys([3, 3, 3, 3, 8], [0, 1, 2, 3, 0])

    def sample(keys):
        x = noise(keys, 0, 6 * 10).reshape(-1, 6, 10)
        for i, t in enumerate(TIMES):
            x0 = torch.cat((torch.tanh(3 * x + t), torch.tanh(x)))
            x = denoise_step(x, x0, TABLE, i, cfg=2.0, keys=keys)
        return x

    every = sample(keys)
    assert torch.unique(every, dim=0).shape[0] == 5
    order = torch.tensor([4, 2, 0])
    assert torch.equal(sample(keys[order]), every[order])
    for i in range(5):
        assert torch.equal(sample(keys[i : i + 1])[0], every[i])


def test_the_next_steps_draw_independent_noise():
    keys = noise_keys(1, range(64))
    zero = torch.zeros(64, 512)
    table = TABLE.clone()
    table[:, 2] = 1
    draws = torch.stack([denoise_step(zero, zero, table, i, keys=keys) for i in range(6)])
    correlation = torch.corrcoef(torch.cat((noise(keys, 0, 512)[None], draws)).flatten(1))
    assert (correlation - torch.eye(7)).abs().max() < 5 / (64 * 512) ** 0.5


def _backend(backend, *inputs):
    return torch.ops.bitdance.denoise_step(*inputs, backend)


@EVERY_BACKEND
@pytest.mark.parametrize("elements", [1, 3, 4, 28, 32, 250, 516])
def test_normals_are_those_of_the_definition(backend, elements):
    """The step alone, x' = eps: an element's words are the documented ones on every backend."""
    keys = noise_keys([0, 2**64 - 1, 12345], [0, 2**32 - 1, 6], ar_step=2**31 - 1, stream=1)
    table = torch.tensor([[0.0, 0.0, 1.0]]).repeat(3, 1)
    zero = torch.zeros(3, elements)
    run = _backend(backend, zero, zero, table, torch.tensor(2), None, None, keys)
    drawn = noise(keys, 3, elements)
    truth = noise(keys, 3, elements, dtype=torch.float64)
    compare("rounded", run, drawn, truth, backend)
    # A wrong word is far away everywhere, not only in the mean.
    radius = truth.abs().clamp_min(1e-3)
    assert ((run - truth).abs() / radius).max() < 1e-3


@pytest.mark.usefixtures("every_isa")
@EVERY_BACKEND
def test_guidance_is_exact_where_the_step_is_the_prediction(backend):
    """(a, b, s) = (0, 1, 0): the bits of u + cfg (c - u), rounded operation by operation."""
    table, _ = denoise_schedule(1)
    conditional, unconditional = torch.randn(2, 40, 36)
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        x0 = torch.cat((conditional, 1.3 / 0.3 * conditional + unconditional / 64)).to(dtype)
        cfg = torch.tensor(1.3)
        if backend == "triton" and dtype == torch.bfloat16:
            continue  # which its interpreter computes wrongly
        x = torch.zeros(40, 36)
        step = _backend(backend, x, x0, table, torch.tensor(1), cfg, x, None)
        c, u = x0.float().chunk(2)
        difference = c - u
        product = cfg * difference
        assert torch.equal(step, u + product)


@pytest.mark.skipif(not cpu_isas(), reason="the C++ module was not built here")
@pytest.mark.parametrize("isa", cpu_isas())
def test_threads_and_tiles_do_not_change_the_noise(isa):
    """A row of many tiles equals its beginning alone, on one thread and on two."""
    keys = noise_keys(3, range(40))
    x, x0 = torch.randn(2, 40, 1030)
    with cpu_isa(isa), cpu_threads(1):
        long = denoise_step(x, x0, TABLE, 1, keys=keys, backend="cpu")
        short = denoise_step(x[:, :30], x0[:, :30], TABLE, 1, keys=keys, backend="cpu")
        with cpu_threads(2):
            again = denoise_step(x, x0, TABLE, 1, keys=keys, backend="cpu")
    assert torch.equal(long[:, :30], short)
    assert torch.equal(long, again)


def test_numbers_and_tensors_are_the_same():
    x, eps = torch.randn(2, 2, 3, 4)
    x0 = torch.randn(4, 3, 4)
    expected = denoise_step(x, x0, TABLE, 3, cfg=0.1, noise=eps)
    for dtype in (torch.int32, torch.int64):
        for shape in ((), (1,)):
            step = torch.full(shape, 3, dtype=dtype)
            cfg = torch.full(shape, 0.1)
            assert torch.equal(denoise_step(x, x0, TABLE, step, cfg=cfg, noise=eps), expected)


def test_a_step_outside_the_table_is_an_error_on_the_cpu():
    x = torch.zeros(2, 3)
    for step in (6, -1):
        for dtype in (torch.int32, torch.int64):
            with pytest.raises(IndexError):
                denoise_step(x, x, TABLE, torch.tensor(step, dtype=dtype), noise=x)


def test_the_inputs_are_left_alone():
    x, x0 = torch.randn(2, 3, 8)
    keys = noise_keys(0, range(3))
    before = x.clone(), x0.clone(), keys.clone()
    denoise_step(x, x0, TABLE, 1, keys=keys)
    assert all(torch.equal(a, b) for a, b in zip((x, x0, keys), before, strict=True))


def test_no_value_is_read_on_the_host():
    """The reference itself compiles into one graph, which a read of a value would break."""
    torch._dynamo.reset()
    compiled = torch.compile(reference.run, fullgraph=True, backend="aot_eager")
    x, x0 = torch.randn(3, 4, 8), torch.randn(6, 4, 8)
    arguments = (x, x0, TABLE, torch.tensor(2), torch.tensor(3.0), None, noise_keys(0, range(3)))
    assert torch.equal(compiled(*arguments), reference.run(*arguments))
