"""Random numbers of training belong to items: whatever else is in their batch."""

import numpy as np
import pytest
import torch

from bitdance.models.perturbation import perturb
from bitdance.training.draws import Draws, Purpose
from bitdance_kernels import flip_signs

ITEMS = np.array([7, 0, 2**32 - 1, 3])


@pytest.mark.parametrize("seed", [0, 2**64 - 1])
@pytest.mark.parametrize("kind", ["normal", "uniform"])
def test_an_item_has_the_same_numbers_in_every_batch(seed, kind):
    draw = getattr(Draws(seed, 5, ITEMS), kind)
    whole = draw(Purpose.NOISE, 3, 5)
    assert whole.shape == (4, 3, 5)
    assert whole.dtype == torch.float32
    for i, item in enumerate(ITEMS):
        alone = getattr(Draws(seed, 5, [item]), kind)(Purpose.NOISE, 3, 5)
        assert torch.equal(alone[0], whole[i])


def test_numbers_differ_by_seed_step_item_and_purpose():
    base = (1, 2, [3], Purpose.TIME)
    others = [(0, 2, [3], Purpose.TIME), (1, 3, [3], Purpose.TIME), (1, 2, [4], Purpose.TIME)]
    others += [(1, 2, [3], purpose) for purpose in Purpose if purpose != Purpose.TIME]
    found = {tuple(Draws(*a).uniform(p, 8).flatten().tolist()) for *a, p in [base, *others]}
    assert len(found) == len(others) + 1
    assert len({int(Draws(*a).seeds(p)) for *a, p in [base, *others]}) == len(others) + 1


def test_numbers_are_distributed_as_they_say():
    draws = Draws(3, 0, range(64))
    normal, uniform = (
        draws.normal(Purpose.NOISE, 1024).double(), draws.uniform(Purpose.DROP, 1024).double()
    )  # fmt: skip
    assert abs(float(normal.mean())) < 0.02
    assert abs(float(normal.std()) - 1) < 0.02
    assert abs(float(uniform.mean()) - 0.5) < 0.01
    assert 0 < float(uniform.min()) < 1e-3
    assert 1 - 1e-3 < float(uniform.max()) < 1


def test_flips_by_seed_are_the_op_on_each_row():
    tokens = torch.where(torch.rand(4, 5, 12) < 0.5, -1.0, 1.0)  # 60 bits: not whole bytes
    seeds = Draws(0, 0, ITEMS).seeds(Purpose.FLIPS)
    flipped = perturb(tokens, 0.5, seeds)
    for row, seed, found in zip(tokens, seeds, flipped, strict=True):
        padded = torch.cat([row.flatten(), torch.zeros(4)])
        expected = flip_signs(padded, 0.5, seed=int(seed) % 2**64)[:60].view(5, 12)
        assert torch.equal(found, expected)
    assert 0.1 < float((flipped != tokens).float().mean()) < 0.4
    with pytest.raises(ValueError, match=r"draws must be \[B\] = \[4\], got \[3\]"):
        perturb(tokens, 0.5, seeds[:3])
