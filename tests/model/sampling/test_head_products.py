"""The plans of the head: the same results, in fewer launches with packed weights."""

import contextlib
import copy

import pytest
import torch

from bitdance.sampling import flow_sampler
from bitdance.sampling import head_runner as runners
from bitdance.sampling.config import use_plans
from bitdance.sampling.flow_sampler import Schedule
from bitdance.sampling.head_runner import HeadRunner, PlainHead
from bitdance_kernels import noise_keys
from bitdance_kernels.testing import compare
from tests.model.helpers.launches import Launches
from tests.model.helpers.tiny import HEADS, PACKABLE, tiny_head, tiny_patch, tiny_sampler

PLANS = ("library", "packed")  # evaluations one by one
ALL = pytest.mark.parametrize("plan", PLANS)
TABLES = pytest.mark.parametrize("one_table", [True, False])


def _head(architecture, **changes):
    """A head whose weights can be packed."""
    return tiny_head(architecture, ch_target=16, **changes).net


def _runner(network, schedule, rows, patch, plan, one_table=True, dtype=torch.float32):
    with use_plans(max_table_rows=128 if one_table else 0):
        runner = HeadRunner(network, rows, patch, schedule.times, dtype, plan)
    runner.load()
    assert (runner.plan, runner.one_table) == (plan, one_table)
    return runner


def _cond(rows, patch, **options):
    return torch.randn(rows, *([] if patch is None else [patch]), 24, **options)


@ALL
@TABLES
@pytest.mark.parametrize("architecture", HEADS)
@torch.no_grad()
def test_evaluations_and_steps_are_those_of_the_network(architecture, one_table, plan):
    """In float64; with guidance, whose halves share the state, and without."""
    network, patch = _head(architecture).double(), tiny_patch(architecture)
    schedule = Schedule.of(network, 3)
    runner = _runner(network, schedule, 6, patch, plan, one_table, torch.float64)
    plain = PlainHead(network, schedule.times)
    cond = _cond(6, patch, dtype=torch.float64)
    for rows, cfg in ((6, None), (3, 2.0)):
        seen = {runner: [], plain: []}
        for way, results in seen.items():
            settings = {"cfg": cfg, "keys": noise_keys(0, range(rows))}

            def keep(i, state, prediction, results=results):
                results += [state, prediction]

            final = flow_sampler.denoise(way, schedule, cond, **settings, on_step=keep)
            results.append(final)
        assert len(seen[plain]) == 9
        for one, other in zip(*seen.values(), strict=True):
            torch.testing.assert_close(one, other)
        # Out of turn nothing of the evaluation before may be used.
        x = torch.randn(rows, *cond.shape[1:-1], 16)
        torch.testing.assert_close(runner.predict(2, x), plain.predict(2, x))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("architecture", HEADS)
@torch.no_grad()
def test_errors_in_half_precision_are_those_of_the_library(architecture, dtype):
    """After eleven evaluations, against float64; at most 2% of the bits differ from the library's.

    These networks are random, so many predictions are near 0.
    """
    network, patch = _head(architecture, depth_latent=2).to(dtype), tiny_patch(architecture)
    schedule, cond = Schedule.of(network, 10), _cond(32, patch).to(dtype)
    settings = {"cfg": 3.0, "keys": noise_keys(0, range(16))}
    found = [
        flow_sampler.denoise(_runner(network, schedule, 32, patch, plan, dtype=dtype), schedule,
                             cond, **settings)
        for plan in PLANS
    ]  # fmt: skip
    exact = copy.deepcopy(network).double()
    plain = PlainHead(exact, schedule.times)
    truth = flow_sampler.denoise(plain, schedule, cond.double(), **settings)
    library, packed = found
    compare("staged", packed, library, truth, "final state")
    assert (packed.sign() != library.sign()).double().mean() < 0.02


@torch.no_grad()
def test_a_state_that_is_replaced_between_two_steps_is_not_taken_from_the_step_before():
    network = _head("mlp").double()
    schedule, cond, noise = Schedule.of(network, 3), _cond(4, None), torch.randn(4, 16)
    table, steps = schedule.table, schedule.steps
    states = []
    for way in (
        _runner(network, schedule, 4, None, "packed", dtype=torch.float64),
        PlainHead(network, schedule.times),
    ):
        way.begin(cond.double())
        way.advance(0, noise, runners.Step(table, steps[0], None, noise))
        states.append(way.advance(1, 2 * noise, runners.Step(table, steps[1], None, noise)))
    torch.testing.assert_close(*states)


@ALL
@pytest.mark.parametrize("cfg", [1.0, 3.0])
@pytest.mark.parametrize("P", [1, 4])
def test_all_give_the_tokens_of_the_plain_path(P, cfg, plan):
    sampler = tiny_sampler(parallel_num=P, diff_layers=2, diff_adanln_layers=2, **PACKABLE)
    settings = {
        "num_inference_steps": 4,
        "guidance_scale": cfg,
        "guidance_schedule": "linear",
        "seeds": [5, 6, 7],
    }
    labels = torch.tensor([1, 3, 0])
    with use_plans(head=plan):
        tokens = sampler.sample(labels, **settings)
    (run,) = sampler.workspaces.idle[0].runs.values()
    assert run.head.plan == plan
    assert torch.equal(tokens, sampler.sample(labels, **settings, use_kernels=False))


# Of six layers: all that is launched for an evaluation and its step where the modulations of all
# are one product. The state's projection is a product for each half; on a card, a copy and one.
_LAUNCHES = {
    ("library", "mlp"): {
        "bitdance::adaln_norm": 1,
        "bitdance::gated_residual_adaln": 6,
        "bitdance::swiglu": 6,
        "bitdance::denoise_step": 1,
        "bitdance::linear_out": 15,
    },
    ("library", "transformer"): {
        "bitdance::adaln_norm": 1,
        "bitdance::gated_residual_adaln": 12,
        "bitdance::swiglu": 6,
        "bitdance::patch_attention": 6,
        "bitdance::denoise_step": 1,
        "bitdance::linear_out": 27,
    },
    ("packed", "mlp"): {
        "bitdance::adaln_linear_swiglu": 6,
        "bitdance::linear_gated_residual_moments": 6,
        "bitdance::adaln_linear": 1,
        "bitdance::denoise_step_linear": 1,
    },
    ("packed", "transformer"): {
        "bitdance::adaln_linear": 7,
        "bitdance::patch_attention": 6,
        "bitdance::adaln_linear_swiglu": 6,
        "bitdance::linear_gated_residual_moments": 12,
        "bitdance::denoise_step_linear": 1,
    },
}
_MAX = {
    ("library", "mlp"): 29, ("library", "transformer"): 53,
    ("packed", "mlp"): 14, ("packed", "transformer"): 32,
}  # fmt: skip


@pytest.mark.parametrize(("plan", "architecture"), _LAUNCHES)
@TABLES
@torch.no_grad()
def test_launches_of_an_evaluation(plan, architecture, one_table, monkeypatch):
    """Six layers with guidance; a product of modulations an evaluation is three launches more.

    With packed weights there is no launch of PyTorch.
    """
    # As on a card, which has no panels.
    monkeypatch.setattr("bitdance.sampling.weights.takes_panels", lambda *_: False)
    network, patch = _head(architecture, depth_latent=6), tiny_patch(architecture)
    counts = []
    for steps in (3, 4):
        schedule = Schedule.of(network, steps)
        runner = _runner(network, schedule, 4, patch, plan, one_table)
        keys, cfg = noise_keys(0, range(2)), torch.full((), 2.0)
        with Launches() as launches:
            flow_sampler.denoise(runner, schedule, _cond(4, patch), cfg=cfg, keys=keys)
        counts.append(launches.names)
    more = list(counts[1])
    for name in counts[0]:
        more.remove(name)  # what is left is one evaluation and its step
    expected = dict(_LAUNCHES[plan, architecture])
    assert sum(expected.values()) == _MAX[plan, architecture]
    if not one_table:
        expected["bitdance::linear_out"] = expected.get("bitdance::linear_out", 0) + 1
        expected |= {"aten::add": 1, "aten::silu_": 1}
    assert {name: more.count(name) for name in more} == expected
    assert len(more) == _MAX[plan, architecture] + (0 if one_table else 3)


@TABLES
@torch.no_grad()
def test_launches_overlap_while_no_modulation_is_written(one_table, monkeypatch):
    """One context for an AR step, or one for each evaluation, after its modulations."""
    events = []

    @contextlib.contextmanager
    def recorded():
        events.append("begin")
        yield
        events.append("end")

    def modulated(runner, time):
        events.append("modulations")
        modulate(runner, time)

    modulate = HeadRunner._modulate
    monkeypatch.setattr(runners, "overlapping_launches", recorded)
    monkeypatch.setattr(HeadRunner, "_modulate", modulated)
    network = _head("mlp")
    schedule = Schedule.of(network, 2)
    for plan in PLANS:
        runner = _runner(network, schedule, 4, None, plan, one_table)
        flow_sampler.denoise(runner, schedule, _cond(4, None), keys=noise_keys(0, range(4)))
        times = 1 if one_table else 3
        assert events == ["modulations", *["begin", "end"] * (plan == "packed")] * times
        events.clear()


@torch.no_grad()
def test_packed_weights_stay_where_they_are_and_follow_their_parameters():
    network = _head("transformer").double()
    schedule = Schedule.of(network, 2)
    runner = _runner(network, schedule, 4, 4, "packed", dtype=torch.float64)
    plain = PlainHead(network, schedule.times)
    packed = [branch.fc1.weight for branch in runner.products._branches]
    before = [weight.data_ptr() for weight in packed]
    cond, x = _cond(4, 4, dtype=torch.float64), torch.randn(4, 4, 16)
    for block in network.res_blocks:
        for parameter in (block.attn.wqkv.weight, block.attn.wo.bias, block.norm1.weight):
            parameter.data.mul_(-2)
        block.w1.weight.data.add_(0.1)
    runner.load()
    for way in (runner, plain):
        way.begin(cond)
    torch.testing.assert_close(runner.predict(1, x), plain.predict(1, x))
    assert [weight.data_ptr() for weight in packed] == before
