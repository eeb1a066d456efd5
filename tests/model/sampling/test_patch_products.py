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
from tests.emulated import build_once, needs_compiler
from tests.emulated.backends import emulated_card
from tests.model.helpers.launches import Launches
from tests.model.helpers.tiny import PACKABLE, tiny_head, tiny_sampler

PATCHES = {"mlp": (), "transformer": (4,)}


def _head(architecture="mlp", **changes):
    return tiny_head(architecture, **{"ch_target": 16, **changes}).net


def _runner(network, schedule, rows, dtype, plan="persistent"):
    (patch,) = PATCHES[network.config.architecture] or (None,)
    runner = HeadRunner(network, rows, patch, schedule.times, dtype, plan)
    runner.load()
    return runner


@pytest.mark.parametrize("architecture", PATCHES)
@pytest.mark.parametrize("adaln", [1, 2, 6])
@pytest.mark.parametrize("cfg", [None, 2.5])
@pytest.mark.parametrize("given", [True, False], ids=["noise", "keys"])
@torch.no_grad()
def test_a_patch_is_that_of_the_network(given, cfg, adaln, architecture):
    """In float64, as one op and, where each state is asked for, one evaluation after another."""
    network = _head(architecture, depth_adanln=adaln).double()
    schedule, patch = Schedule.of(network, 3), PATCHES[architecture]
    cond, tokens = torch.randn(6, *patch, 24, dtype=torch.float64), 6 if cfg is None else 3
    noise = [torch.randn(tokens, *patch, 16) for _ in range(4)] if given else None
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


@pytest.mark.parametrize("architecture", PATCHES)
@torch.no_grad()
def test_launches_of_a_patch(architecture):
    """Any number of evaluations is one launch; another one keeps the status."""
    network, patch = _head(architecture), PATCHES[architecture]
    names = []
    for steps in (3, 50):
        schedule = Schedule.of(network, steps)
        runner = _runner(network, schedule, 4, torch.float32)
        keys, cfg = noise_keys(0, range(2)), torch.full((), 2.0)
        with Launches() as launches:
            denoise(runner, schedule, torch.randn(4, *patch, 24), cfg=cfg, keys=keys)
        names.append(launches.names)
    assert names[0] == names[1]
    assert names[0][-2:] == ["bitdance::denoise_patch", "aten::maximum"]
    own = [name for name in names[0] if name.startswith("bitdance::")]
    # The conditions, and the modulations of all evaluations.
    assert own[-3:] == ["bitdance::linear_out", "bitdance::linear_out", "bitdance::denoise_patch"]
    assert own.count("bitdance::denoise_patch") == 1


@pytest.mark.parametrize("P", [1, 4])
def test_tokens_are_those_of_the_library(P):
    sampler = tiny_sampler(parallel_num=P, **PACKABLE)
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


@pytest.mark.parametrize("architecture", PATCHES)
@torch.no_grad()
def test_weights_stay_where_they_are_and_follow_their_parameters(architecture):
    network, patch = _head(architecture).double(), PATCHES[architecture]
    schedule = Schedule.of(network, 2)
    runner, plain = _runner(network, schedule, 4, torch.float64), PlainHead(network, schedule.times)
    products = runner.products
    stacks = [stack for layers in products._layers.values() for stack in layers.arguments]
    assert len(stacks) == (6 if architecture == "mlp" else 12)
    before = [stack.data_ptr() for stack in stacks]
    second_w1 = products._branches[1 if architecture == "mlp" else 3].fc1.weight
    assert second_w1.data_ptr() == products._layers["swiglu"].arguments[2][1].data_ptr()
    for parameter in network.res_blocks.parameters():
        parameter.data.mul_(-2)
    runner.load()
    cond, keys = torch.randn(4, *patch, 24, dtype=torch.float64), noise_keys(0, range(4))
    found, expected = (denoise(head, schedule, cond, keys=keys) for head in (runner, plain))
    torch.testing.assert_close(found, expected)
    assert [stack.data_ptr() for stack in stacks] == before


@needs_compiler
@pytest.mark.parametrize(("architecture", "rows"), [("mlp", 6), ("transformer", 2)])
@torch.no_grad()
def test_a_patch_is_as_exact_as_by_the_library_on_emulated_device_code(
    architecture, rows, tmp_path_factory
):
    network = _head(architecture, ch_target=32, ch_latent=256, depth_latent=2).bfloat16()
    cond = torch.randn(rows, *PATCHES[architecture], 24).bfloat16()
    schedule = Schedule.of(network, 3)
    settings = {"cfg": 2.0, "keys": noise_keys(3, range(rows // 2))}
    library = build_once("denoise_patch", tmp_path_factory)
    library.denoise_patch.restype = ctypes.c_char_p
    states = {}
    for plan in ("library", "persistent"):
        runner = _runner(network, schedule, rows, torch.bfloat16, plan)
        with emulated_card({"denoise_patch": library}) as launches:
            states[plan] = denoise(runner, schedule, cond, **settings)
        assert launches == [("denoise_patch", 0)] * (plan == "persistent")
        runner.check()
    plain = PlainHead(network.double(), schedule.times)
    truth = denoise(plain, schedule, cond.double(), **settings)
    compare("staged", states["persistent"], states["library"], truth, "state")
