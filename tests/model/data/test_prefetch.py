"""Batches that are loaded beside the step before."""

import threading

import pytest

from bitdance.data.prefetch import Prefetcher


def _threads():
    return [t for t in threading.enumerate() if t.name.startswith("bitdance-prefetch")]


def test_batches_come_in_order_and_none_is_loaded_twice_or_too_early():
    loaded = []
    with Prefetcher(lambda i: loaded.append(i) or 10 * i, stop=5) as batches:
        assert [batches.get(i) for i in range(2, 5)] == [20, 30, 40]
    assert loaded == [2, 3, 4]
    assert not _threads()


def test_the_next_batch_is_loaded_while_one_is_used():
    begun, used = threading.Event(), threading.Event()

    def load(i):
        if i == 1:
            begun.set()
            assert used.wait(60)
        return i, threading.current_thread()

    with Prefetcher(load) as batches:
        first, thread = batches.get(0)
        assert begun.wait(60)  # batch 1, though nobody has asked for it
        used.set()
        assert (first, batches.get(1)[0]) == (0, 1)
    assert thread is not threading.current_thread()
    assert not thread.is_alive()


def test_another_batch_than_the_next_can_be_asked_for():
    with Prefetcher(lambda i: i) as batches:
        assert [batches.get(i) for i in (3, 7, 7, 0)] == [3, 7, 7, 0]


def test_an_error_is_raised_where_its_batch_is_asked_for():
    def load(i):
        if i == 2:
            raise OSError("photo.png: cannot be read")
        return i

    with Prefetcher(load) as batches:
        assert [batches.get(0), batches.get(1)] == [0, 1]
        with pytest.raises(OSError, match=r"photo\.png: cannot be read"):
            batches.get(2)
        assert batches.get(3) == 3
    assert not _threads()


def test_the_thread_ends_where_the_step_fails():
    failed = pytest.raises(ValueError, match="the step")
    with failed, Prefetcher(lambda i: i) as batches:
        batches.get(0)
        raise ValueError("the step")
    assert not _threads()
