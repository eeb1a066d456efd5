"""Bounds of whole images on a card, against the same sums by hand."""

import pytest

from benchmarks.model import bound
from bitdance.models.config import PRESETS


def _head_by_hand(width, blocks, modulations, patch, batch):
    """Microseconds of an evaluation at 4.3 TB/s, 790 TFLOP/s, 5.5 TB/s from 50 MB, 0.8 us a stage.

    From the sizes of the layers, stage by stage.
    """
    hidden, rows = int(1.5 * width), 2 * patch * batch
    layers = [2 * hidden * width, width * hidden]
    layers += [3 * width * width, width * width] if patch > 1 else []
    megabytes = 2 * blocks * sum(layers) / 1e6
    held = min(megabytes, 50.0)
    us_a_byte = (held / 5.5 + (megabytes - held) / 4.3) / megabytes / 1e6
    total = 0.0
    for weights in layers:
        arithmetic, traffic = 2 * rows * weights / 790e6, 2 * weights * us_a_byte
        total += blocks * max(0.8, arithmetic, traffic)
    chunks = 6 if patch > 1 else 3
    weights = (modulations * chunks + 2) * width * width
    return total + max(2 * 101 * rows * weights / 790e6, 2 * weights / 4.3e6, 0.8) / 101


def _trunk_by_hand(width, layers, patch, batch):
    """Microseconds of a whole batch: every token's products, and the cache that each step reads."""
    hidden = {768: 2048, 1024: 2816, 1280: 3584}[width]
    products = [3 * width * width, width * width, 2 * hidden * width, width * hidden]

    def step(rows):
        times = (max(0.8, 2 * rows * w / 790e6, 2 * w / 4.3e6) for w in products)
        return layers * sum(times)

    prefix, steps = 64 + patch - 1, 256 // patch
    cached = sum(prefix + patch * i for i in range(steps))
    cache = 2 * batch * 2 * 2 * width * layers * cached  # both halves, keys and values
    return step(2 * batch * prefix) + (steps - 1) * step(2 * batch * patch) + cache / 4.3e6


@pytest.mark.parametrize("batch", [1, 8, 64, 384])
@pytest.mark.parametrize("name", ["B-1x", "B-4x", "B-16x", "L-1x", "H-1x"])
def test_bounds_of_whole_images(name, batch):
    limits = bound.Limits(copy=4.3e12, matrix=790e12, l2=5.5e12, stage=0.8e-6)
    found = bound.seconds(PRESETS[name], batch, limits)
    patch = int(name.rstrip("x").split("-")[1])
    sizes = {"B": (768, 6, 2), "L": (1024, 8, 2), "H": (1280, 12, 3)}[name[0]]
    evaluation = _head_by_hand(*sizes, patch, batch)
    assert found["head"] == pytest.approx(256 / patch * 101 * evaluation / 1e6)
    width, depth = sizes[0], {"B": 24, "L": 32, "H": 40}[name[0]]
    assert found["trunk"] == pytest.approx(_trunk_by_hand(width, depth, patch, batch) / 1e6)
    assert found["whole"] == pytest.approx(found["trunk"] + found["head"] + found["decoder"])


def test_a_stage_counts_at_every_number_of_rows():
    """At 128 rows, too, an evaluation of B-1x is a chain of short stages."""
    card = {"copy": 2.4e12, "matrix": 780e12, "l2": 7.4e12}
    for batch in (1, 32, 64):
        slow, fast = (
            bound.seconds(PRESETS["B-1x"], batch, bound.Limits(**card, stage=stage))
            for stage in (2e-6, 1e-6)
        )
        assert slow["head"] > 1.7 * fast["head"]
        assert slow["trunk"] > fast["trunk"]
