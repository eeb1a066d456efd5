"""The plan that runs all evaluations of an AR step as one op."""

import ctypes

import pytest
import torch

from bitdance.sampling import patch_products
from bitdance.sampling.config import use_plans
from bitdance.sampling.flow_sampler import Schedule, denoise
from bitdance.sampling.head_runner import HeadRunner, PlainHead
from bitdance_kernels import denoise_patch, noise_keys
from bitdance_kernels.testing import compare
from tests.emulated import build, needs_compiler
from tests.emulated.backends import emulated_card
from tests.model.helpers.launches import Launches
from tests.model.helpers.tiny import PACKABLE, tiny_head, tiny_sampler


def _head(**changes):
    return tiny_head("mlp", **{"ch_target": 16, **changes}).net


def _runner(network, schedule, rows, dtype, plan="persistent"):
    runner = HeadRunner(network, rows, None, schedule.times, dtype, plan)
    runner.load()
    return runner


@pytest.mark.parametrize("adaln", [1, 2, 6])
@pytest.mark.parametrize("cfg", [None, 2.5])
@pytest.mark.parametrize("given", [True, False], ids=["noise", "keys"])
@torch.no_grad()
def test_a_patch_is_that_of_the_network(given, cfg, adaln):
    """In float64, as one op and, where each state is asked for, one evaluation after another."""
    network = _head(depth_adanln=adaln).double()
    schedule = Schedule.of(network, 3)
    cond, tokens = torch.randn(6, 24, dtype=torch.float64), 6 if cfg is None else 3
    noise = [torch.randn(tokens, 16) for _ in range(4)] if given else None
    settings = {"cfg": cfg, "noise": noise, "keys": None if given else noise_keys(1, range(tokens))}
    runner, plain = _runner(network, schedule, 6, torch.float64), PlainHead(network, schedule.times)
    expected = denoise(plain, schedule, cond, **settings)
    torch.testing.assert_close(denoise(runner, schedule, cond, **settings), expected)
    seen = []
    final = denoise(
        runner, schedule, cond, **settings, on_step=lambda i, x, x0: seen.append((x, x0))
    )
    torch.testing.assert_close(final, expected)
    assert len(seen) == 4
    runner.check()


@torch.no_grad()
def test_launches_of_a_patch():
    """Any number of evaluations is one launch; another one keeps the status."""
    network = _head()
    names = []
    for steps in (3, 50):
        schedule = Schedule.of(network, steps)
        runner = _runner(network, schedule, 4, torch.float32)
        keys, cfg = noise_keys(0, range(2)), torch.full((), 2.0)
        with Launches() as launches:
            denoise(runner, schedule, torch.randn(4, 24), cfg=cfg, keys=keys)
        names.append(launches.names)
    assert names[0] == names[1]
    assert names[0][-2:] == ["bitdance::denoise_patch", "aten::maximum"]
    own = [name for name in names[0] if name.startswith("bitdance::")]
    # The conditions, and the modulations of all evaluations.
    assert own[-3:] == ["bitdance::linear_out", "bitdance::linear_out", "bitdance::denoise_patch"]
    assert own.count("bitdance::denoise_patch") == 1


def test_tokens_are_those_of_the_library():
    sampler = tiny_sampler(parallel_num=1, **PACKABLE)
    settings = {"num_inference_steps": 4, "guidance_scale": 2.0, "seeds": [5, 6]}
    labels, tokens = torch.tensor([1, 3]), []
    for plan in ("library", "persistent"):
        with use_plans(head=plan):
            tokens.append(sampler.sample(labels, **settings))
    assert torch.equal(*tokens)


def test_a_launch_that_gave_up_is_an_error(monkeypatch):
    """Once an image, before its tokens are used."""

    def stuck(*args, **options):
        state, status = denoise_patch(*args, **options)
        calls.append(status)
        return (state * torch.nan, status + 1) if len(calls) == 2 else (state, status)

    calls = []
    monkeypatch.setattr(patch_products, "denoise_patch", stuck)
    sampler = tiny_sampler(parallel_num=1, **PACKABLE)
    settings = {"num_inference_steps": 2, "guidance_scale": 2.0, "seeds": [5]}
    with use_plans(head="persistent"):
        with pytest.raises(RuntimeError, match="blocks of a launch waited for each other in vain"):
            sampler.sample(torch.tensor([1]), **settings)
        sampler.sample(torch.tensor([1]), **settings)  # the next image is not to blame


@torch.no_grad()
def test_weights_stay_where_they_are_and_follow_their_parameters():
    network = _head().double()
    schedule = Schedule.of(network, 2)
    runner, plain = _runner(network, schedule, 4, torch.float64), PlainHead(network, schedule.times)
    products = runner.products
    stacks = [*products._weights, *products._vectors]
    before = [stack.data_ptr() for stack in stacks]
    assert products._branches[1].fc1.weight.data_ptr() == products._weights[0][1].data_ptr()
    for block in network.res_blocks:
        for parameter in (block.w1.weight, block.w2.bias, block.norm.weight, block.norm.bias):
            parameter.data.mul_(-2)
    runner.load()
    cond, keys = torch.randn(4, 24, dtype=torch.float64), noise_keys(0, range(4))
    found, expected = (denoise(head, schedule, cond, keys=keys) for head in (runner, plain))
    torch.testing.assert_close(found, expected)
    assert [stack.data_ptr() for stack in stacks] == before


@needs_compiler
@torch.no_grad()
def test_a_patch_is_as_exact_as_by_the_library_on_emulated_device_code(tmp_path):
    network = _head(ch_target=32, ch_latent=256, depth_latent=2).bfloat16()
    schedule, cond = Schedule.of(network, 3), torch.randn(6, 24).bfloat16()
    settings = {"cfg": 2.0, "keys": noise_keys(3, range(3))}
    library = build("denoise_patch", tmp_path)
    library.denoise_patch.restype = ctypes.c_char_p
    states = {}
    for plan in ("library", "persistent"):
        runner = _runner(network, schedule, 6, torch.bfloat16, plan)
        with emulated_card({"denoise_patch": library}) as launches:
            states[plan] = denoise(runner, schedule, cond, **settings)
        assert launches == [("denoise_patch", 0)] * (plan == "persistent")
        runner.check()
    plain = PlainHead(network.double(), schedule.times)
    truth = denoise(plain, schedule, cond.double(), **settings)
    compare("staged", states["persistent"], states["library"], truth, "state")
