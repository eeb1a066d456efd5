"""The clock of the benchmark of serving, and what both ways draw."""

import itertools
import statistics

import pytest

from benchmarks import tables
from benchmarks.model import serving
from bitdance import BitDancePipeline
from bitdance.sampling.slot_sequences import ClassSlots
from bitdance.sampling.slots import SlotDecoder
from tests.model.helpers.tiny import tiny_model


@pytest.fixture
def tiny(monkeypatch):
    pipeline = BitDancePipeline(tiny_model(num_classes=10), [""] * 10, num_inference_steps=1)
    pipeline.set_progress_bar_config(disable=True)
    monkeypatch.setattr(serving.BitDancePipeline, "from_pretrained", lambda _: pipeline)
    return pipeline


def test_arrivals_are_random_with_the_mean_that_is_asked_for():
    requests = serving.arrivals(2000, 0.5, seed=1)
    gaps = [b.arrival - a.arrival for a, b in itertools.pairwise(requests)]
    assert min(gaps) >= 0
    assert abs(statistics.mean(gaps) - 0.5) < 0.05
    assert requests == serving.arrivals(2000, 0.5, seed=1)
    assert requests != serving.arrivals(2000, 0.5, seed=2)


@pytest.fixture
def one_second_a_call(monkeypatch):
    """A clock by which what runs takes a second."""
    ticks = itertools.count()
    monkeypatch.setattr(serving.time, "process_time", lambda: float(next(ticks)))


def test_a_batch_holds_those_that_wait(tiny, one_second_a_call):
    requests = [serving.Request(at, i) for i, at in enumerate((10.0, 10.5, 10.6, 30.0))]
    latencies = serving.batches(tiny, requests, 16)
    assert latencies == {0: 1.0, 1: pytest.approx(1.5), 2: pytest.approx(1.4), 3: 1.0}
    latencies = serving.batches(tiny, requests, 1)
    assert latencies == {0: 1.0, 1: 1.5, 2: pytest.approx(2.4), 3: 1.0}


def test_slots_take_those_that_wait_after_a_step(tiny, one_second_a_call):
    decoder = SlotDecoder(ClassSlots(tiny.model), guided=True, num_inference_steps=1, slots=2)
    requests = [serving.Request(at, i) for i, at in enumerate((10.0, 10.5, 10.6, 30.0))]
    latencies, bits = serving.slots(tiny, decoder, requests)
    # Four AR steps and the decoding; the second enters after a step, the third when one leaves.
    assert latencies == {0: 5.0, 1: 6.5, 2: pytest.approx(10.4), 3: 5.0}
    assert sorted(bits) == [0, 1, 2, 3]


def test_what_is_measured_becomes_a_table(tiny):
    found = serving.measure(serving.Amounts(requests=4, loads=(0.5,), slots=(1, 2), turns=1))
    for row in found["serving"]["rows"]:
        assert row["slots_ms"] > 0
        assert row["ratio"][0] == pytest.approx(row["slots_ms"] / row["batches_ms"])
    table = tables.serving(found)
    assert "| 4 requests, load 0.5, slots: 2 |" in table
    assert "at most 0.6" in table
