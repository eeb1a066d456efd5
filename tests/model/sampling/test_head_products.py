"""The three ways to do a head's products: the same results, in fewer and fewer launches."""

from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.model import head
from bitdance.sampling import ar_sampler as generation
from bitdance.sampling import head_products, head_runner
from bitdance.sampling.flow_sampler import Schedule
from bitdance.sampling.head_products import PLANS
from bitdance.sampling.head_runner import HeadRunner, PlainHead
from bitdance_kernels import noise_keys, use_backend
from tests.model.helpers.tiny import HEADS, tiny_config, tiny_head, tiny_patch, tiny_sampler

ALL = pytest.mark.parametrize("products", PLANS)


def _runner(network, schedule, rows, patch, products, dtype=torch.float32):
    runner = HeadRunner(network, rows, patch, schedule.times, dtype, products)
    runner.load()
    return runner


def _cond(rows, patch, **options):
    return torch.randn(rows, *([] if patch is None else [patch]), 24, **options)


@ALL
@pytest.mark.parametrize("one_table", [True, False])
@pytest.mark.parametrize("architecture", HEADS)
@torch.no_grad()
def test_evaluations_and_steps_are_those_of_the_network(
    architecture, one_table, products, monkeypatch
):
    """In float64; with guidance, whose halves share the state, and without."""
    if not one_table:
        monkeypatch.setattr(head_runner, "MAX_TABLE_ROWS", 0)
    network, patch = tiny_head(architecture).net.double(), tiny_patch(architecture)
    schedule = Schedule.of(network, 3)
    runner = _runner(network, schedule, 6, patch, products, torch.float64)
    plain = PlainHead(network, schedule.times)
    cond = _cond(6, patch, dtype=torch.float64)
    for rows, cfg in ((6, None), (3, 2.0)):
        seen = {runner: [], plain: []}
        for way, results in seen.items():
            settings = {"cfg": cfg, "keys": noise_keys(0, range(rows))}

            def keep(i, state, prediction, results=results):
                results += [state, prediction]

            generation.denoise(way, schedule, cond, **settings, on_step=keep)
        assert len(seen[plain]) == 8
        for one, other in zip(*seen.values(), strict=True):
            torch.testing.assert_close(one, other)
        # Out of turn nothing of the evaluation before may be used.
        x = torch.randn(rows, *cond.shape[1:-1], 8)
        torch.testing.assert_close(runner.predict(2, x), plain.predict(2, x))


@ALL
@pytest.mark.parametrize("cfg", [1.0, 3.0])
@pytest.mark.parametrize("P", [1, 4])
def test_all_give_the_tokens_of_the_plain_path(P, cfg, products, monkeypatch):
    monkeypatch.setattr(head_products, "FASTEST", ((0, products),))
    sampler = tiny_sampler(parallel_num=P, diff_layers=2, diff_adanln_layers=2)
    settings = {
        "num_inference_steps": 4,
        "guidance_scale": cfg,
        "guidance_schedule": "linear",
        "seeds": [5, 6, 7],
    }
    labels = torch.tensor([1, 3, 0])
    tokens = sampler.sample(labels, **settings)
    (run,) = sampler.workspaces.idle[0].runs.values()
    assert type(run.head.products) is PLANS[products]
    assert torch.equal(tokens, sampler.sample(labels, **settings, use_kernels=False))


@pytest.mark.parametrize("products", ["fused", "skinny"])
@pytest.mark.parametrize("architecture", ["mlp", "transformer"])
@torch.no_grad()
def test_kernels_agree_with_the_network(architecture, products, monkeypatch):
    """A step and the last one, by the Triton kernels."""
    network = tiny_head(architecture, depth_latent=1, depth_adanln=1).net
    patch = tiny_patch(architecture)
    monkeypatch.setattr(head_runner, "MAX_TABLE_ROWS", 0 if products == "fused" else 64)
    schedule = Schedule.of(network, 1)
    cond = _cond(4, patch)
    settings = {"cfg": 2.0, "keys": noise_keys(0, range(2))}
    plain = generation.denoise(PlainHead(network, schedule.times), schedule, cond, **settings)
    runner = _runner(network, schedule, 4, patch, products)
    with use_backend("triton"):
        actual = generation.denoise(runner, schedule, cond, **settings)
    torch.testing.assert_close(actual, plain, rtol=1e-4, atol=1e-5)


def test_an_unknown_plan_is_refused():
    network = tiny_head().net
    with pytest.raises(ValueError, match=r"products must be one of auto, library, .*, got 'own'"):
        HeadRunner(network, 2, 4, Schedule.of(network, 2).times, torch.float32, "own")


def test_auto_takes_the_plan_of_the_table(monkeypatch):
    monkeypatch.setattr(head_products, "FASTEST", ((0, "skinny"), (65, "library"), (512, "fused")))
    names = [head_products.plan("auto", tokens) for tokens in (1, 64, 65, 511, 512)]
    assert names == [PLANS[n] for n in ("skinny", "skinny", "library", "library", "fused")]


class _Launches(TorchDispatchMode):
    """Names of all that would be a kernel: ops that return or write memory, views left out.

    What the reference of one of our ops is made of does not count: its kernel is one launch.
    """

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.is_view or func in (
            torch.ops.aten.empty.memory_format,
            torch.ops.aten.detach.default,
        ):
            return func(*args, **(kwargs or {}))
        self.names.append(func._schema.name)
        return func(*args, **(kwargs or {}))


# Of six layers, by plan: all that is launched for an evaluation and its step where the modulations
# of all are one product.
_LAUNCHES = {
    ("library", "mlp"): {
        "bitdance::adaln_norm": 1,
        "bitdance::gated_residual_adaln": 6,
        "bitdance::swiglu": 6,
        "bitdance::denoise_step": 1,
        "bitdance::linear_out": 14,
        "aten::copy_": 1,
    },
    ("library", "transformer"): {
        "bitdance::adaln_norm": 1,
        "bitdance::gated_residual_adaln": 12,
        "bitdance::swiglu": 6,
        "bitdance::patch_attention": 6,
        "bitdance::denoise_step": 1,
        "bitdance::linear_out": 26,
        "aten::copy_": 1,
    },
    ("fused", "mlp"): {
        "bitdance::adaln_norm": 6,
        "bitdance::linear_swiglu": 6,
        "bitdance::linear_gated_residual": 6,
        "bitdance::predict_step": 1,
    },
    ("fused", "transformer"): {
        "bitdance::adaln_norm": 12,
        "bitdance::linear_out": 6,
        "bitdance::patch_attention": 6,
        "bitdance::linear_swiglu": 6,
        "bitdance::linear_gated_residual": 12,
        "bitdance::predict_step": 1,
    },
    ("skinny", "mlp"): {
        "bitdance::adaln_linear_swiglu": 6,
        "bitdance::linear_gated_residual": 6,
        "bitdance::predict_step": 1,
    },
    ("skinny", "transformer"): {
        "bitdance::adaln_linear": 6,
        "bitdance::patch_attention": 6,
        "bitdance::adaln_linear_swiglu": 6,
        "bitdance::linear_gated_residual": 12,
        "bitdance::predict_step": 1,
    },
}
_MOST = {
    ("library", "mlp"): 32, ("library", "transformer"): 56,
    ("fused", "mlp"): 26, ("fused", "transformer"): 44,
    ("skinny", "mlp"): 18, ("skinny", "transformer"): 32,
}  # fmt: skip


@pytest.mark.parametrize(("products", "architecture"), _LAUNCHES)
@pytest.mark.parametrize("one_table", [True, False])
@torch.no_grad()
def test_launches_of_an_evaluation(products, architecture, one_table, monkeypatch):
    """Six layers with guidance; with a product of modulations an evaluation it is one more.

    The library's products need three passes besides: the state for both halves, and what the
    modulations are made of. The others have no launch of PyTorch but products.
    """
    if not one_table:
        monkeypatch.setattr(head_runner, "MAX_TABLE_ROWS", 0)
    network, patch = tiny_head(architecture, depth_latent=6).net, tiny_patch(architecture)
    counts = []
    for steps in (3, 4):
        schedule = Schedule.of(network, steps)
        runner = _runner(network, schedule, 4, patch, products)
        keys, cfg = noise_keys(0, range(2)), torch.full((), 2.0)
        with _Launches() as launches:
            generation.denoise(runner, schedule, _cond(4, patch), cfg=cfg, keys=keys)
        counts.append(launches.names)
    more = list(counts[1])
    for name in counts[0]:
        more.remove(name)  # what is left is one evaluation and its step
    expected = dict(_LAUNCHES[products, architecture])
    if not one_table:
        expected["bitdance::linear_out"] = expected.get("bitdance::linear_out", 0) + 1
        if products == "library":
            expected |= {"aten::add": 1, "aten::silu_": 1}
    assert {name: more.count(name) for name in more} == expected
    assert len(more) <= _MOST[products, architecture]


def test_plans_are_compared(monkeypatch):
    config = replace(tiny_config(), parallel_num=4)
    monkeypatch.setitem(head.PRESETS, "B-16x", config)
    with torch.no_grad():
        plans = head.plans(["B-16x"], [1, 2], steps=1, rounds=1)["plans"]
        figures = head.sampling(images=1, steps=1, rounds=1)
    assert [row["tokens"] for row in plans] == [8, 16]
    assert all(set(row["seconds"]) == set(PLANS) for row in plans)
    assert set(figures["seconds"]) == {"runner", "plain", "products"}
    assert min(figures["runner / products"], figures["plain / runner"]) > 0
