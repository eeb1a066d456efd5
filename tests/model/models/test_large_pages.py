"""Memory on large pages: tensors of it share nothing but their storage, and leave with it."""

import gc
import itertools
import mmap
import threading

import pytest
import torch

from bitdance.models import large_pages

pytestmark = pytest.mark.skipif(
    not hasattr(mmap, "MADV_HUGEPAGE"), reason="this system has no large pages"
)
PAGE = 2**21


def _ranges(tensors):
    return sorted((t.data_ptr(), t.data_ptr() + t.nbytes) for t in tensors)


def test_tensors_of_all_sizes_do_not_overlap():
    sizes = (1, 100, 3 * 2**20, 5, 2**24, 2**22, 7, 0)
    tensors = [large_pages.empty((size,), torch.float32) for size in sizes]
    ranges = [pair for pair in _ranges(tensors) if pair[0] < pair[1]]
    assert all(end <= begin for (_, end), (begin, _) in itertools.pairwise(ranges))
    for i, tensor in enumerate(tensors):
        tensor.fill_(i)
    for i, (size, tensor) in enumerate(zip(sizes, tensors, strict=True)):
        assert tensor.shape == (size,)
        assert tensor.dtype == torch.float32
        assert tensor.data_ptr() % 64 == 0
        assert tensor.eq(i).all()


def test_a_large_one_begins_a_page_and_leaves_small_ones_their_chunk():
    memory = large_pages._Memory()
    first = memory.take(100)
    large = memory.take(5 * PAGE)
    second = memory.take(100)
    assert first.data_ptr() % PAGE == large.data_ptr() % PAGE == 0
    assert second.data_ptr() == first.data_ptr() + 128


def test_what_is_made_in_inference_mode_can_be_written_outside_of_it():
    with torch.inference_mode():
        x = large_pages.empty((2**22, 3), torch.float16)
    assert not x.is_inference()
    x[0].fill_(1)


def test_memory_is_freed_with_its_last_tensor():
    memory = large_pages._Memory()
    tensors = [memory.take(PAGE) for _ in range(40)]
    for tensor in tensors:
        tensor.fill_(1)

    def resident():
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * mmap.PAGESIZE

    before = resident()
    del tensors, tensor
    gc.collect()
    assert resident() < before - 20 * PAGE


def test_threads_take_memory_of_their_own():
    memory, taken = large_pages._Memory(), []
    threads = [
        threading.Thread(target=lambda: taken.extend(memory.take(640) for _ in range(500)))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({t.data_ptr() for t in taken}) == 2000
