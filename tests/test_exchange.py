"""Exchanges between blocks that `python -m benchmarks gpu --only decide` times, emulated."""

import ctypes

import pytest
import torch

from benchmarks.gpu.decide import exchange
from tests.emulated import build, needs_compiler
from tests.launches import NVCC

RING, THREADS, SEEDS = 8, 256, range(2)


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    found = build("exchange", tmp_path_factory.mktemp("emulated"))
    for name in ("words", "cluster", "chain"):
        getattr(found, name).restype = ctypes.c_char_p
    return found


def _pointer(tensor):
    return ctypes.c_void_p(tensor.data_ptr())


@needs_compiler
@pytest.mark.parametrize(("blocks", "count"), [(3, 7), (2, 300)])
def test_words_arrive_whole_in_every_order(library, blocks, count):
    """In more rounds than the ring has slots, so that every slot is wiped and used again."""
    for seed in SEEDS:
        memory = torch.full((RING * count * 4,), -1, dtype=torch.int32)
        faults = torch.zeros(2, dtype=torch.int32)
        message = library.words(
            blocks,
            count,
            RING + 5,
            10**6,
            ctypes.c_uint32(seed),
            _pointer(memory),
            _pointer(faults),
        )
        assert (message, faults.tolist()) == (None, [0, 0]), seed


@needs_compiler
def test_a_word_that_is_not_what_it_should_be_ends_the_exchange(library):
    memory = torch.full((RING * 5 * 4,), -1, dtype=torch.int32)
    memory.view(RING, 5, 4)[2, 4] = 99  # of round 2, until its block comes there
    wrong = 0
    for seed in range(12):
        faults = torch.zeros(2, dtype=torch.int32)
        stale = memory.clone()
        library.words(3, 5, 4, 100, ctypes.c_uint32(seed), _pointer(stale), _pointer(faults))
        wrong += faults[1].item()
    assert wrong > 2


@needs_compiler
@pytest.mark.parametrize("size", [2, 5])
def test_clusters_exchange_what_each_block_gives(library, size):
    for seed in SEEDS:
        faults = torch.zeros(2, dtype=torch.int32)
        message = library.cluster(size, 5, ctypes.c_uint32(seed), _pointer(faults))
        assert (message, faults.tolist()) == (None, [0, 0]), seed


@needs_compiler
def test_a_kernel_of_a_chain_adds_to_what_the_one_before_has_left(library):
    counters = torch.arange(2 * THREADS, dtype=torch.int32)
    assert library.chain(2, ctypes.c_uint32(0), _pointer(counters)) is None
    assert torch.equal(counters, torch.arange(2 * THREADS, dtype=torch.int32) + 1)


@pytest.mark.skipif(NVCC is None, reason="nvcc is not installed")
def test_the_library_compiles_without_warnings(tmp_path):
    path = exchange.build(tmp_path, "sm_90", strict=True)
    library = ctypes.CDLL(str(path))
    for name in ("exchange_words", "exchange_counter", "exchange_cluster", "exchange_chain"):
        assert hasattr(library, name)


def test_a_status_becomes_a_note():
    assert exchange.note(0) is None
    assert exchange.note(700) == "CUDA error 700"
    assert exchange.note(-1) == "a block waited for a word in vain"
    assert exchange.note(-2) == "a block received what was not sent"
