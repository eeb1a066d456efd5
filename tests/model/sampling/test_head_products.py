"""Launches of an evaluation of the head, counted from the runner's own list."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from bitdance.sampling import ar_sampler as generation
from bitdance.sampling import head_runner
from bitdance.sampling.flow_sampler import Schedule
from bitdance.sampling.head_runner import HeadRunner
from bitdance_kernels import noise_keys
from tests.model.helpers.tiny import tiny_head, tiny_patch


def _runner(network, schedule, rows, patch, dtype=torch.float32):
    runner = HeadRunner(network, rows, patch, schedule.times, dtype)
    runner.load()
    return runner


def _cond(rows, patch, **options):
    return torch.randn(rows, *([] if patch is None else [patch]), 24, **options)


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


# Of six layers: all that is launched for an evaluation and its step where the modulations
# of all are one product.
_LAUNCHES = {
    "mlp": {
        "bitdance::adaln_norm": 1,
        "bitdance::gated_residual_adaln": 6,
        "bitdance::swiglu": 6,
        "bitdance::denoise_step": 1,
        "bitdance::linear_out": 14,
        "aten::copy_": 1,
    },
    "transformer": {
        "bitdance::adaln_norm": 1,
        "bitdance::gated_residual_adaln": 12,
        "bitdance::swiglu": 6,
        "bitdance::patch_attention": 6,
        "bitdance::denoise_step": 1,
        "bitdance::linear_out": 26,
        "aten::copy_": 1,
    },
}
_MAX = {"mlp": 32, "transformer": 56}


@pytest.mark.parametrize("architecture", _LAUNCHES)
@pytest.mark.parametrize("one_table", [True, False])
@torch.no_grad()
def test_launches_of_an_evaluation(architecture, one_table, monkeypatch):
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
        runner = _runner(network, schedule, 4, patch)
        keys, cfg = noise_keys(0, range(2)), torch.full((), 2.0)
        with _Launches() as launches:
            generation.denoise(runner, schedule, _cond(4, patch), cfg=cfg, keys=keys)
        counts.append(launches.names)
    more = list(counts[1])
    for name in counts[0]:
        more.remove(name)  # what is left is one evaluation and its step
    expected = dict(_LAUNCHES[architecture])
    if not one_table:
        expected["bitdance::linear_out"] = expected.get("bitdance::linear_out", 0) + 1
        expected |= {"aten::add": 1, "aten::silu_": 1}
    assert {name: more.count(name) for name in more} == expected
    assert len(more) <= _MAX[architecture]
