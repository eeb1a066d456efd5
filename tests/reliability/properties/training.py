"""Properties of training: draws, order, packs, rates and averages."""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np
import torch
from hypothesis import strategies as st

from bitdance.data.packing import DocumentPacker
from bitdance.data.shuffle import ShuffledBatches
from bitdance.training.draws import Draws, Purpose
from bitdance.training.optim_config import OptimConfig
from tests.reliability.properties._for_all import SEEDS, for_all

__all__ = ["PROPERTIES"]


@for_all(
    seed=st.integers(0, 2**64 - 1), step=st.integers(0, 2**32 - 1), count=st.integers(1, 40),
    items=st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=12), cut=st.integers(0, 12),
    purpose=st.sampled_from(Purpose), draw=st.sampled_from(("normal", "uniform", "seeds")),
)  # fmt: skip
def draws_belong_to_their_item(
    seed: int, step: int, count: int, items: list[int], cut: int, purpose: Purpose, draw: str
) -> None:
    """However a batch is divided among processes or accumulated parts."""
    shape = () if draw == "seeds" else (count,)
    whole, *parts = (
        getattr(Draws(seed, step, part), draw)(purpose, *shape)
        for part in (items, items[:cut], items[cut:])
    )
    assert torch.equal(whole, torch.cat(parts))
    if draw == "uniform":
        assert bool(((whole > 0) & (whole < 1)).all())


@for_all(
    size=st.integers(1, 60), batch=st.integers(1, 9), world=st.integers(1, 4), seed=SEEDS,
    epoch=st.integers(0, 3), drop=st.booleans(),
)  # fmt: skip
def epochs_are_permutations_that_ranks_divide(
    size: int, batch: int, world: int, seed: int, epoch: int, drop: bool
) -> None:
    if drop:
        size = max(size, batch * world)
    ranks = [
        ShuffledBatches(size, batch, seed=seed, rank=r, world_size=world, drop_last=drop)
        for r in range(world)
    ]
    alone = ShuffledBatches(size, batch * world, seed=seed, drop_last=drop)
    count = alone.per_epoch
    seen = []
    for i in range(epoch * count, (epoch + 1) * count):
        shares = [rank.batch(i) for rank in ranks]
        assert np.array_equal(np.concatenate(shares), alone.batch(i))
        assert max(map(len, shares)) - min(map(len, shares)) <= 1
        assert alone.position(i) == (epoch, i - epoch * count)
        seen.append(alone.batch(i))
    items = np.concatenate(seen)
    assert len(np.unique(items)) == len(items)
    assert len(items) == (size // (batch * world) * batch * world if drop else size)


@for_all(
    lengths=st.lists(st.integers(1, 200), min_size=1, max_size=40), room=st.integers(0, 300),
    seed=SEEDS, epoch=st.integers(0, 3),
)  # fmt: skip
def packs_hold_every_document_once(lengths: list[int], room: int, seed: int, epoch: int) -> None:
    """Within the budget, in as many packs in each epoch, found in any order."""
    budget = max(lengths) + room
    packer = DocumentPacker(lengths, budget, seed=seed)
    numbers = range(len(packer))
    packs = [packer.pack(epoch, number) for number in numbers]
    assert sorted(np.concatenate(packs).tolist()) == list(range(len(lengths)))
    assert all(sum(lengths[i] for i in pack) <= budget for pack in packs)
    again = DocumentPacker(lengths, budget, seed=seed)
    again.pack(epoch + 1, 0)
    for number in reversed(numbers):
        assert np.array_equal(again.pack(epoch, number), packs[number])


@for_all(
    steps=st.integers(2, 120), warmup=st.integers(0, 100), start=st.integers(0, 100),
    lr=st.floats(1e-6, 1.0), end=st.floats(0, 1.0), decay=st.floats(0, 0.99999),
    averaged=st.booleans(), schedule=st.sampled_from(("cosine", "constant")),
)  # fmt: skip
def rates_rise_and_fall_and_averages_are_convex(
    steps: int,
    warmup: int,
    start: int,
    lr: float,
    end: float,
    decay: float,
    averaged: bool,
    schedule: Literal["cosine", "constant"],
) -> None:
    """The rate rises to its peak and falls to its end; the average's weights sum up to one."""
    warmup = min(warmup, steps - 1)
    start = 0 if start == 0 else min(max(start, warmup), steps - 1)
    only_cosine: dict[str, Any] = {}
    if schedule == "cosine":
        only_cosine = {"lr_end": lr * end, "decay_start": start}
    config = OptimConfig(
        steps=steps, warmup=warmup, lr=lr, ema_decay=decay, ema_warmup=averaged,
        schedule=schedule, **only_cosine,
    )  # fmt: skip
    rates = [config.learning_rate(step) for step in range(steps)]
    assert rates[:warmup] == sorted(rates[:warmup])
    assert rates[warmup:] == sorted(rates[warmup:], reverse=True)
    assert math.isclose(max(rates), lr)
    assert math.isclose(rates[max(warmup - 1, 0)], lr)
    assert min(rates) >= (min(config.lr_end, rates[0]) if schedule == "cosine" else rates[0])
    decays = [config.average_decay(step) for step in range(1, steps + 1)]
    assert decays == sorted(decays)
    assert all(0 <= d <= decay for d in decays)
    # What the average takes of each step's weights, as the trainer sums them up.
    share = torch.eye(steps + 1, dtype=torch.float64, device="cpu")
    average = share[0]
    for step, d in enumerate(decays, 1):
        average = torch.lerp(average, share[step], 1 - d)
    assert bool((average >= 0).all())
    torch.testing.assert_close(average.sum(), torch.ones_like(average[0]))


PROPERTIES = (
    draws_belong_to_their_item,
    epochs_are_permutations_that_ranks_divide,
    packs_hold_every_document_once,
    rates_rise_and_fall_and_averages_are_convex,
)
