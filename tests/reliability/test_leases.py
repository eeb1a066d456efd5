"""Pipelines and slot decoders in threads, a few calls; and a pool that lends to two at a time."""

import contextlib

import pytest

from bitdance.sampling.workspace import Pool
from tests.reliability import leases


def test_calls_in_threads_have_the_bits_that_they_have_alone():
    assert leases.stress(24, seed=0) == 24


def test_a_pool_that_lends_twice_is_found(monkeypatch):
    @contextlib.contextmanager
    def lease(self):
        if not self.idle:
            self.idle.append(self._make())
        yield self.idle[0]

    monkeypatch.setattr(Pool, "lease", lease)
    with pytest.raises(AssertionError, match=r"leases seed 1: .* (gave other bits|raised)"):
        leases.stress(60, seed=1)
