"""adaLN projections one after the other, in the same memory: equal results, less memory."""

import pytest
import torch

from bitdance.sampling.config import MIN_TURN_ROWS, use_plans
from bitdance.sampling.flow_sampler import Schedule, denoise
from bitdance.sampling.head_runner import HeadRunner
from bitdance_kernels import CpuGraph, noise_keys
from tests.model.helpers.tiny import HEADS, tiny_head, tiny_patch

DEPTHS = pytest.mark.parametrize(("blocks", "projections"), [(3, 1), (4, 2), (5, 3), (3, 3)])
EVERY = pytest.mark.parametrize("architecture", HEADS)


def _runner(network, schedule, patch, min_turn_rows, plan="library", rows=6):
    with use_plans(max_table_rows=0, min_turn_rows=min_turn_rows):
        runner = HeadRunner(network, rows, patch, schedule.times, torch.float32, plan)
    runner.load()
    return runner


def _head(architecture, **changes):
    network = tiny_head(architecture, ch_target=16, **changes).net
    with torch.no_grad():
        for layer in network.ada_ln_blocks:
            layer.weight.normal_(std=0.2)
    return network


@EVERY
@DEPTHS
@torch.no_grad()
def test_results_are_those_of_one_product(architecture, blocks, projections):
    network = _head(architecture, depth_latent=blocks, depth_adanln=projections)
    schedule, patch = Schedule.of(network, 3), tiny_patch(architecture)
    cond = torch.randn(6, *([] if patch is None else [patch]), 24)
    finals = []
    for in_turn in (True, False):
        runner = _runner(network, schedule, patch, 0 if in_turn else MIN_TURN_ROWS)
        assert runner.in_turn == in_turn
        # Twice: what an evaluation has left is not taken for the next one's.
        for _ in range(2):
            keys = noise_keys(0, range(3))
            finals.append(denoise(runner, schedule, cond, cfg=2.0, keys=keys))
    for final in finals[1:]:
        assert torch.equal(final, finals[0])


@EVERY
@torch.no_grad()
def test_memory_is_that_of_one_projection(architecture):
    network = _head(architecture, depth_latent=4, depth_adanln=4)
    schedule, patch = Schedule.of(network, 3), tiny_patch(architecture)
    runner = _runner(network, schedule, patch, 0)
    rows, width = 6 * (patch or 1), network.config.ch_latent
    assert runner.ada_ln._memory.numel() == rows * network.ada_ln_blocks[0].out_features
    assert runner.ada_ln._last_gate.shape == (rows, width)


@pytest.mark.skipif(CpuGraph.unavailable() is not None, reason=str(CpuGraph.unavailable()))
@torch.no_grad()
def test_a_replay_computes_them_anew():
    network = _head("mlp", depth_latent=4, depth_adanln=2)
    schedule = Schedule.of(network, 2)
    runner, other = (_runner(network, schedule, None, rows) for rows in (0, MIN_TURN_ROWS))
    cond, x, graph = torch.randn(6, 24), torch.randn(6, 16), CpuGraph()

    def step():
        runner.begin(cond)
        return runner.predict(1, x)

    found = graph.capture(step)
    cond.normal_()
    graph.replay()
    other.begin(cond)
    assert torch.equal(found, other.predict(1, x))


@pytest.mark.parametrize("plan", ["library", "packed"])
def test_they_are_not_in_turn_by_default_nor_with_overlapping_kernels(plan):
    network = _head("mlp")
    schedule = Schedule.of(network, 2)
    with use_plans(max_table_rows=0):
        assert not HeadRunner(network, 6, None, schedule.times, torch.float32, plan).in_turn
    assert _runner(network, schedule, None, 0, plan).in_turn == (plan == "library")
    assert not _runner(network, schedule, None, 7).in_turn
