"""Guarded memory finds what it is made for."""

import ctypes
import mmap
from random import Random

import pytest
import torch

from tests.reliability.guarded import FILL, GuardError, GuardPages, Heap, Placed, bits
from tests.reliability.isolated import run_isolated

SEEDS = range(40)


def _placed(tensors, seed, memory=None, unit=None):
    return Placed(memory or GuardPages(), tensors, Random(seed), unit)


@pytest.mark.parametrize("kind", [GuardPages, Heap])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.uint8, torch.int64])
def test_values_go_there_and_changes_come_back(kind, dtype):
    memory = kind()
    for seed in SEEDS:
        x = torch.arange(24).to(dtype).view(4, 6)[:, 1:5]
        row = torch.arange(6).to(dtype)
        placed = _placed([x, row, row[:0]], seed, memory)
        a, b, _ = placed.tensors
        assert torch.equal(a, x)
        assert torch.equal(b, row)
        assert a.stride() == x.stride()
        assert a.data_ptr() % dtype.itemsize == 0
        a += 1
        before = x.clone()
        placed.restore()
        assert torch.equal(x, before + 1)


def test_the_ends_of_a_buffer_are_flush_with_the_pages():
    memory, page, near = GuardPages(), 4096, {"begin": set(), "end": set()}
    for seed in range(400):
        buffer = memory.take(100, Random(seed), 4, 0)
        assert (buffer.end - buffer.first) % page == 0
        near["begin"].add(buffer.address - buffer.first)
        near["end"].add(buffer.end - buffer.address - buffer.size)
        memory.give(buffer)
    for distances in near.values():
        assert {*range(0, 64, 4)} <= distances


def test_an_address_keeps_its_residue():
    for seed in SEEDS:
        memory = torch.zeros(32, dtype=torch.float32)
        x = memory[1:10]
        placed = _placed([x], seed, unit=16)
        assert placed.tensors[0].data_ptr() % 16 == x.data_ptr() % 16
        placed.restore()


def test_what_lies_between_rows_is_nan_and_must_stay():
    wide = torch.zeros(3, 8, dtype=torch.float32)
    placed = _placed([wide[:, :5]], 0)
    (rows,) = placed.tensors
    gap = rows.as_strided((2, 3), (8, 1), 5)
    assert gap.isnan().all()
    gap[1, 2] = 0.0
    with pytest.raises(GuardError, match=r"between the rows of a tensor \[3, 5\] was written"):
        placed.restore()


@pytest.mark.parametrize("side", ["past its end", "before its begin"])
def test_a_write_beside_a_tensor_is_found(side):
    found = 0
    for seed in SEEDS:
        placed = _placed([torch.zeros(10, dtype=torch.uint8)], seed)
        (buffer,) = [group.buffer for group in placed._groups]
        at = buffer.address + (buffer.size if side == "past its end" else -1)
        if not buffer.first <= at < buffer.end:
            continue  # on a page that nobody may touch
        ctypes.memset(at, FILL - 1, 1)
        found += 1
        with pytest.raises(GuardError, match=rf"10 bytes was written \d bytes {side}"):
            placed.restore()
    assert found > len(SEEDS) // 2


def test_tensors_that_share_elements_stay_together():
    memory = torch.arange(12, dtype=torch.float32)
    rows = memory.view(2, 6)
    halves = rows[:, :3], rows[:, 3:]
    placed = _placed([memory, rows[0], *halves], 0)
    whole, first, *_ = placed.tensors
    whole[2] = 50
    assert first[2] == 50
    placed.restore()
    assert memory[2] == 50
    apart = _placed(halves, 0)  # beside each other in every row, without a common element
    assert len(apart._groups) == 2
    apart.restore()


def test_repeated_elements_are_placed_once():
    x = torch.arange(4, dtype=torch.float32)[None].expand(5, 4)
    placed = _placed([x], 0)
    assert torch.equal(placed.tensors[0], x)
    placed.restore()


def test_bits_tell_nans_apart():
    nan = torch.tensor([0x7FC00000, 0x7FC00001], dtype=torch.int32)
    assert torch.equal(bits(nan.view(torch.float32)), nan)


def _touch(note, side, distance, write):
    """Access a byte of the page beside a buffer that is flush with it."""
    memory = GuardPages(side, offsets=False)
    placed = Placed(memory, [torch.zeros(100, dtype=torch.uint8)], Random(0))
    address = placed.tensors[0].data_ptr()
    note(f"byte {distance}")
    value = ctypes.c_uint8.from_address(address + distance)
    if write:
        value.value = 0
    return value.value


@pytest.mark.parametrize(("side", "distance"), [
    ("end", 100), ("end", 100 + mmap.PAGESIZE - 1), ("begin", -1), ("begin", -mmap.PAGESIZE),
])  # fmt: skip
@pytest.mark.parametrize("write", [True, False], ids=["write", "read"])
def test_an_access_to_a_page_ends_the_process(side, distance, write):
    with pytest.raises(AssertionError, match=rf"^byte {distance}: SIG(SEGV|BUS)$"):
        run_isolated(_touch, side, distance, write)


def _echo(note, value):
    note("echo")
    if isinstance(value, Exception):
        raise value
    return value


def test_a_process_returns_or_tells_what_it_raised():
    assert run_isolated(_echo, [1, "a"]) == [1, "a"]
    with pytest.raises(AssertionError, match=r"^echo: wrong bits$"):
        run_isolated(_echo, AssertionError("wrong bits"))
    with pytest.raises(RuntimeError, match=r"^echo: KeyError: 'x'$"):
        run_isolated(_echo, KeyError("x"))
