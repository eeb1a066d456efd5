"""The fast head: equal to the published one, in few launches, in memory that does not move."""

import copy
import importlib
import inspect
import pickle

import pytest
import torch

from bitdance.models import diffusion_head
from bitdance.sampling import graphs
from bitdance.sampling.config import use_plans
from bitdance.sampling.flow_sampler import Schedule, sample_patch
from bitdance.sampling.head_runner import HeadRunner, PlainHead
from bitdance.sampling.lru_cache import LRUCache
from bitdance_kernels import noise_keys
from tests.model.helpers.recording import recorded  # noqa: F401  (a fixture)
from tests.model.helpers.tiny import HEADS, PACKABLE, tiny_head, tiny_patch, tiny_sampler

PLANS = ("library", "packed")  # evaluations one by one
LABELS = torch.tensor([1, 3, 0])


def _runner(network, schedule, rows, patch, dtype=torch.float32):
    runner = HeadRunner(network, rows, patch, schedule.times, dtype)
    runner.load()
    return runner


@pytest.mark.parametrize("at_once", [True, False])
@pytest.mark.parametrize("architecture", HEADS)
@pytest.mark.parametrize("plan", PLANS)
@torch.no_grad()
def test_an_evaluation_is_that_of_the_network(plan, architecture, at_once):
    network, patch = tiny_head(architecture, ch_target=16).net.double(), tiny_patch(architecture)
    schedule = Schedule.of(network, 5)
    with use_plans(head=plan, max_table_rows=64 if at_once else 0):
        runner = _runner(network, schedule, 6, patch, torch.float64)
    assert (runner.plan, runner.one_table) == (plan, at_once)
    plain = PlainHead(network, schedule.times)
    shape = (6,) if patch is None else (6, patch)
    for rows in (6, 3):  # halves of their own, and a state for both
        cond = torch.randn(*shape, 24, dtype=torch.float64)
        x = torch.randn(rows, *shape[1:], 16)
        for head in (runner, plain):
            head.begin(cond)
        for i in (0, 3, 5):
            torch.testing.assert_close(runner.predict(i, x), plain.predict(i, x))


@pytest.mark.parametrize("architecture", ["mlp", "transformer"])
@torch.no_grad()
def test_projections_beyond_one_a_block_are_unused(architecture):
    """As in the authors' code: block i has number i, also of five for two blocks."""
    more = tiny_head(architecture, depth_latent=2, depth_adanln=5).net.double()
    least = tiny_head(architecture, depth_latent=2, depth_adanln=2).net.double()
    least.load_state_dict({k: more.state_dict()[k] for k in least.state_dict()})
    patch = tiny_patch(architecture)
    schedule, shape = Schedule.of(more, 3), (4,) if patch is None else (4, patch)
    cond, x = (torch.randn(*shape, width, dtype=torch.float64) for width in (24, 8))
    predicted = []
    for network in (more, least):
        runner = _runner(network, schedule, 4, patch, torch.float64)
        plain = PlainHead(network, schedule.times)
        for head in (runner, plain):
            head.begin(cond)
            predicted.append(head.predict(1, x))
    for found in predicted[:-1]:
        torch.testing.assert_close(found, predicted[-1])


@pytest.mark.parametrize("schedule", ["linear", "constant"])
@pytest.mark.parametrize("cfg", [1.0, 3.0])
@pytest.mark.parametrize("P", [1, 4, 16])
def test_both_modes_give_the_same_tokens(P, cfg, schedule):
    sampler = tiny_sampler(parallel_num=P, diff_layers=2, diff_adanln_layers=2)
    settings = {
        "num_inference_steps": 4,
        "guidance_scale": cfg,
        "guidance_schedule": schedule,
        "seeds": [5, 6, 7],
    }
    fast, plain = (sampler.sample(LABELS, **settings, use_kernels=on) for on in (True, False))
    assert torch.equal(fast, plain)
    assert torch.equal(sampler.sample(LABELS, **settings), fast)


def test_the_memory_of_a_run_stays_where_it_is(monkeypatch):
    """What one image was made in serves the next: no tensor of the runner moves."""
    monkeypatch.setattr(graphs, "CALLS_BEFORE_CAPTURE", 0)  # which makes memory
    sampler = tiny_sampler()

    def addresses():
        (run,) = sampler.workspaces.idle[0].runs.values()
        return [t.data_ptr() for t in _tensors(run)]

    sampler.sample(LABELS, num_inference_steps=3, guidance_scale=2.0, seeds=[0, 1, 2])
    before = addresses()
    assert len(before) > 30
    sampler.sample(LABELS, num_inference_steps=3, guidance_scale=2.0, seeds=[3, 4, 5])
    assert addresses() == before
    sampler.sample(LABELS, num_inference_steps=4, guidance_scale=2.0, seeds=[3, 4, 5])
    assert len(sampler.workspaces.idle[0].runs) == 2


def _tensors(value, seen=None):
    """All tensors that an object holds."""
    seen = set() if seen is None else seen
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, (list, tuple)):
        children = list(value)
    elif isinstance(value, dict):
        children = list(value.values())
    elif hasattr(value, "__dict__") and not isinstance(value, torch.nn.Module):
        children = list(vars(value).values())
    else:
        return []
    if id(value) in seen:
        return []
    seen.add(id(value))
    return [tensor for child in children for tensor in _tensors(child, seen)]


@torch.no_grad()
def test_changed_weights_are_seen():
    """In place, as an optimizer does, also behind autograd's back; and moved, as ``to`` does."""
    sampler = tiny_sampler()
    model = sampler.model
    settings = {"num_inference_steps": 2, "guidance_scale": 2.0, "seeds": [0, 1, 2]}
    sampler.sample(LABELS, **settings)
    head = model.head.net
    for parameter in (
        head.ada_ln_blocks[0].weight,
        head.time_embed.mlp[0].weight,
        head.res_blocks[0].w1.weight,
        head.cond_embed.bias,
    ):
        parameter.data.mul_(-3)
        tokens = sampler.sample(LABELS, **settings)
        assert torch.equal(tokens, sampler.sample(LABELS, **settings, use_kernels=False))
    model.load_state_dict(
        {k: v.clone() for k, v in tiny_sampler(1).model.state_dict().items()}, assign=True
    )
    expected = tiny_sampler(1).sample(LABELS, **settings)
    assert torch.equal(sampler.sample(LABELS, **settings), expected)
    assert len(sampler.workspaces.idle[0].runs) == 1  # those whose memory is gone were dropped


def test_a_sampler_that_has_sampled_can_be_copied_and_saved():
    sampler = tiny_sampler()
    settings = {"num_inference_steps": 2, "guidance_scale": 2.0, "seeds": [0, 1, 2]}
    tokens = sampler.sample(LABELS, **settings)
    assert len(sampler.workspaces.idle[0].runs) == 1
    for other in (copy.deepcopy(sampler), pickle.loads(pickle.dumps(sampler))):
        assert other.workspaces.idle == []
        assert torch.equal(other.sample(LABELS, **settings), tokens)


def test_few_runs_are_kept():
    kept = LRUCache(2)
    made = []

    def get(key, owner=0):
        return kept.get(owner, key, lambda: made.append(key) or key)

    for key in "abacab":
        assert get(key) == key
    assert made == list("abcb")
    assert len(kept) == 2
    get("a", owner=1)
    assert len(kept) == 1


def test_weights_are_cast_once_for_autocast():
    """Under autocast all is as if the head had been cast, and the masters are still float32."""
    network = tiny_head().net
    schedule = Schedule.of(network, 3)
    cond, keys = torch.randn(4, 4, 24), noise_keys(0, range(2))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        mixed = sample_patch(network, schedule, cond, cfg=2.0, keys=keys)
    assert network.input_proj.weight.dtype == torch.float32
    cast = copy.deepcopy(network).to(torch.bfloat16)
    with torch.no_grad():
        # Norms keep float32 weights under autocast.
        for block, original in zip(cast.res_blocks, network.res_blocks, strict=True):
            block.norm1, block.norm2 = original.norm1, original.norm2
        wanted = sample_patch(cast, schedule, cond.bfloat16(), cfg=2.0, keys=keys)
    assert torch.equal(mixed, wanted)


@pytest.mark.parametrize(
    ("schedule", "plan"),
    [("linear", "library"), ("constant", "library"), ("linear", "packed"), ("constant", "packed")],
)
@pytest.mark.parametrize("P", [1, 4])
def test_replays_follow_their_inputs(P, schedule, plan, recorded):  # noqa: F811
    """Labels, seeds, guidance, step and cache reach a recorded step through memory alone.

    The recording repeats each kernel with the tensors it had, as a graph does; so a Python number
    that differs between AR steps or images, or a tensor made outside, would show.
    """
    sampler = tiny_sampler(parallel_num=P, **PACKABLE)
    settings = {"num_inference_steps": 3, "guidance_schedule": schedule}
    runs = [
        {"labels": LABELS, "seeds": [0, 1, 2], "guidance_scale": 3.0},
        {"labels": LABELS.flip(0), "seeds": [7, 8, 9], "guidance_scale": 5.0},
        {
            "labels": LABELS + 1,
            "seeds": [7, 2**63, 9],
            "guidance_scale": 1.5,
            "sample_ids": [1, 2, 3],
        },
    ]
    for run in runs:
        results, wanted = [], []
        with use_plans(head=plan, trunk=plan):
            tokens = sampler.sample(**run, **settings, on_step=results.append)
        plain = tiny_sampler(parallel_num=P, **PACKABLE)
        plain_tokens = plain.sample(**run, **settings, on_step=wanted.append, use_kernels=False)
        assert torch.equal(tokens, plain_tokens)
        for result, of_plain in zip(results, wanted, strict=True):
            assert torch.equal(result.packed, of_plain.packed)
            torch.testing.assert_close(result.hidden, of_plain.hidden)
    first, later = recorded
    assert first.replays == 2  # of three images
    assert later.replays == 3 * (sampler.model.config.ar_steps - 1) - 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("architecture", HEADS)
def test_gradients_of_the_loss_are_those_of_plain_formulas(architecture, dtype, monkeypatch):
    """The ops, with the gradients they register, against autograd through plain PyTorch."""
    head, patch = tiny_head(architecture).to(dtype), tiny_patch(architecture)
    shape = (3,) if patch is None else (3, patch)
    x = torch.randn(*shape, 8).sign()
    cond = torch.randn(*shape, 24, dtype=dtype, requires_grad=True)
    draws = {"time_draw": torch.rand(3), "noise": torch.randn(*shape, 8)}

    def gradients():
        loss = head.loss(x, cond, **draws).mean()
        return loss, *torch.autograd.grad(loss, [cond, *head.parameters()])

    fused = gradients()
    for name in ("adaln_norm", "gated_residual", "swiglu", "patch_attention"):
        room = importlib.import_module(f"bitdance_kernels.denoise.{name}.reference")
        monkeypatch.setattr(diffusion_head, name, _plainly(room.run))
        if name == "gated_residual":
            monkeypatch.setattr(diffusion_head, f"{name}_adaln", _plainly(room.run_adaln))
    plain = gradients()
    assert all(gradient.any() for gradient in plain)
    for one, other in zip(fused, plain, strict=True):
        # The loss is float32 whatever the head is.
        torch.testing.assert_close(one.float(), other.float())


def _plainly(run):
    """A reference with the arguments of its public op."""

    def op(*args, eps=None):
        if eps is None:
            return run(*args)
        missing = len(inspect.signature(run).parameters) - 1 - len(args)
        return run(*args, *[None] * missing, eps)

    return op
