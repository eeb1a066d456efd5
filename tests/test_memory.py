"""The pool for large results on the CPU."""

import mmap
import threading

import pytest
import torch

from bitdance_kernels import CpuGraph, swiglu, unpack_signs
from bitdance_kernels._shared import pool
from bitdance_kernels._shared.memory import empty
from bitdance_kernels._shared.pool import unused
from tests.forked import READY

LARGE = (1 << 23) + 5  # float32 values: 33.6 MB

pytestmark = pytest.mark.skipif(
    not hasattr(mmap, "MADV_FREE"), reason="this system has no memory on loan"
)


@pytest.fixture(autouse=True)
def nothing_unused(monkeypatch):
    monkeypatch.setattr(unused, "_mappings", [])


def test_it_is_aligned_and_ends_with_its_storage():
    y = empty((5, 4, 1 << 20), torch.float16)
    assert y.shape == (5, 4, 1 << 20)
    assert y.dtype == torch.float16
    assert y.is_contiguous()
    assert y.data_ptr() % (2 << 20) == 0
    assert y.storage_offset() == 0
    assert y.untyped_storage().nbytes() == 2 * y.numel()


def test_it_is_used_again_when_the_last_view_is_gone():
    first = empty((LARGE,), torch.float32)
    address, view = first.data_ptr(), first[1:].view(2, -1)
    del first
    second = empty((LARGE,), torch.float32)
    assert second.data_ptr() != address
    del view
    assert len(unused.sizes) == 1
    other_size = empty((2 * LARGE,), torch.float32)
    assert len(unused.sizes) == 1
    third = empty((LARGE,), torch.int32)
    assert third.data_ptr() == address
    assert unused.sizes == []
    del other_size


def test_what_lies_unused_is_limited(monkeypatch):
    monkeypatch.setattr(pool, "_MAX_UNUSED_BYTES", 100 << 20)
    results = [empty((LARGE + i,), torch.float32) for i in range(3)]
    sizes = [4 * (LARGE + i) + (2 << 20) for i in range(3)]
    del results[0], results[0], results[0]
    assert unused.sizes == sizes[1:]
    too_large = empty((120 << 20,), torch.uint8)
    del too_large
    assert unused.sizes == sizes[1:]


def test_small_results_are_none_of_its():
    small = empty((1 << 20,), torch.float32)
    del small
    assert unused.sizes == []


def test_threads_do_not_get_the_same():
    wrong = []

    def work(mark: int) -> None:
        for _ in range(30):
            y = empty((LARGE,), torch.float32)
            y[::65536] = mark
            if not (y[::65536] == mark).all():
                wrong.append(mark)

    threads = [threading.Thread(target=work, args=(mark,)) for mark in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert 1 <= len(unused.sizes) <= 8  # a thread holds its last result while it asks for the next


def test_new_memory_is_filled_where_pytorch_fills_it():
    empty((LARGE,), torch.float32).zero_()
    torch.use_deterministic_algorithms(True)
    try:
        assert empty((LARGE,), torch.float32).isnan().all()
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.skipif(CpuGraph.unavailable() is not None, reason="captures need the compiled module")
def test_a_captured_step_keeps_its_own():
    packed = torch.randint(256, (LARGE // 8 + 1, 1), dtype=torch.uint8)
    graph = CpuGraph()
    y = graph.capture(lambda: unpack_signs(packed).mul(2.0))
    assert unused.sizes == []
    packed.random_(256)
    graph.replay()
    assert torch.equal(y, 2 * unpack_signs(packed, backend="reference"))


@pytest.mark.skipif(CpuGraph.unavailable() is not None, reason="captures need the compiled module")
def test_what_cannot_be_allocated_raises_what_pytorch_raises():
    """And results larger than any memory; small results still work."""
    sizes = READY.SimpleQueue()
    process = READY.Process(target=_with_little_memory, args=(sizes,))
    process.start()
    process.join()
    assert process.exitcode == 0
    kept, results = sizes.get(), [sizes.get() for _ in range(5)]
    assert kept == [LARGE * 4 + (2 << 20)]
    for result in results[:3]:
        assert result.startswith("RuntimeError: "), result
        assert "allocate" in result or "size" in result, result
    assert results[3:] == ["(1, 4)", "(1, 12582912)"]  # the second reuses unused memory


def _with_little_memory(said):
    import resource

    def attempt(call):
        try:
            said.put(str(tuple(call().shape)))
        except Exception as error:
            said.put(f"{type(error).__name__}: {error}")

    large = empty((LARGE,), torch.float32)
    del large
    said.put(unused.sizes)
    packed = torch.zeros(1, dtype=torch.uint8)
    with open("/proc/self/statm") as statm:
        used = int(statm.read().split()[0]) * mmap.PAGESIZE
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + (24 << 20), hard))
    attempt(lambda: unpack_signs(packed.expand(1 << 27, 1)))
    attempt(lambda: empty((1 << 62,), torch.float32))
    attempt(lambda: CpuGraph().capture(lambda: unpack_signs(packed.expand(1 << 27, 1))))
    attempt(lambda: swiglu(torch.zeros(1, 8)))
    attempt(lambda: empty((1, 12 << 20), torch.float32))
