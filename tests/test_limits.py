"""The loops that measure this machine's limits do what they are timed for."""

import numpy as np
import pytest
import torch

from benchmarks import limits
from bitdance_kernels._shared import native
from bitdance_kernels.testing import cpu_isa, cpu_isas


def _aligned(count):
    memory = torch.randint(256, (count + 64,), dtype=torch.uint8)
    start = -memory.data_ptr() % 64
    return memory[start : start + count]


@pytest.mark.parametrize("isa", cpu_isas())
@pytest.mark.parametrize("streaming", [0, 1])
@pytest.mark.parametrize("sizes", [(4096, 1024), (512, 2048), (2304, 2304), (1024, 0), (0, 768)])
def test_bytes_are_copied_read_and_written(isa, streaming, sizes):
    read, written = sizes
    source, target, words = _aligned(read), _aligned(written), torch.zeros(1, dtype=torch.int64)
    with cpu_isa(isa):
        native.cpu.limit_memory(source, read, target, written, streaming, words)
    both = min(read, written)
    rest = source[both:].numpy().view(np.int64)
    assert words.item() == np.bitwise_xor.reduce(rest)
    assert torch.equal(target[:both], source[:both])
    assert not target[both:].any()


@pytest.mark.parametrize("isa", cpu_isas())
@pytest.mark.parametrize(("factor", "term", "each"), [(1.0, 1.0, 7.0), (2.0, 1.0, 127.0)])
def test_multiply_adds_are_counted(isa, factor, term, each):
    total, operations = torch.zeros(1), torch.zeros(1, dtype=torch.int64)
    with cpu_isa(isa):
        native.cpu.limit_multiply_add(7, factor, term, total, operations)
    assert operations.item() > 0
    assert total.item() == each * operations.item() / (2 * 7)


@pytest.mark.skipif(not cpu_isas(), reason="the C++ module was not built here")
def test_sizes_and_addresses_that_do_not_fit_are_refused():
    memory, words = _aligned(512), torch.zeros(1, dtype=torch.int64)
    for arguments in (
        (memory, 100, memory, 0), (memory, -256, memory, 0), (memory[1:], 256, memory, 0),
        (memory, 0, memory[1:], 256),
    ):  # fmt: skip
        with pytest.raises(RuntimeError, match="limit_memory: size or argument out of range"):
            native.cpu.limit_memory(*arguments, 0, words)
    with pytest.raises(RuntimeError, match="limit_multiply_add: size or argument out of range"):
        native.cpu.limit_multiply_add(-1, 1.0, 1.0, torch.zeros(1), words)


@pytest.mark.skipif(not cpu_isas(), reason="the C++ module was not built here")
def test_what_takes_longer_bounds_a_call():
    """A teraflop takes longer than a line of memory, and a loop stands for many as long."""
    arithmetic = limits.of(100, 100, 1e12)
    assert arithmetic.by == "multiply-adds"
    assert arithmetic.scale > 1e3
    assert limits.of(2**24, 2**20, 1.0).by == "memory"
    assert limits.of(100, 0, 0.0).by == "memory"


@pytest.mark.skipif(not cpu_isas(), reason="the C++ module was not built here")
def test_the_loop_reads_what_the_call_reads():
    """If it is most of all: 1024 of 1100 bytes, of 4000 not."""
    x = torch.randn(256)
    most, little = limits.memory(1100, 256, [x]), limits.memory(4000, 256, [x])
    assert most.run.args[0] is x
    assert most.scale == 1100 / 1024
    assert little.run.args[0] is not x
    assert little.scale == 1


def test_without_the_module_nothing_is_measured(monkeypatch):
    monkeypatch.setattr(limits, "unavailable", lambda: "it was not built")
    assert limits.measure() == {}
