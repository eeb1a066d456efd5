"""Triton kernels between guard pages and in other orders, a few; and faults that must be found."""

from random import Random

import pytest
import torch

pytest.importorskip("triton")

import triton
import triton.language as tl

from tests.reliability import interpreter_order
from tests.reliability.isolated import run_isolated

SIZE = 40
BLOCK = 16


@triton.jit
def _add_one(x, y, size, READ: tl.constexpr, BLOCK: tl.constexpr):
    """y = x + 1; READ elements are read, `size` are written."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    values = tl.load(x + at, mask=at < READ, other=0.0)
    tl.store(y + at, values + 1.0, mask=at < size)


@triton.jit
def _running_sum(x, y, size, BLOCK: tl.constexpr):
    """Each program adds the last result of the one before: right only if that one has run."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    before = tl.load(y + tl.program_id(0) * BLOCK - 1, mask=tl.program_id(0) > 0, other=0.0)
    tl.store(y + at, tl.load(x + at, mask=at < size, other=0.0) + before, mask=at < size)


@triton.jit
def _overlapping(x, y, size, BLOCK: tl.constexpr):
    """Programs write an element of the next one too."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, 2 * BLOCK)
    mask = (at <= (tl.program_id(0) + 1) * BLOCK) & (at < size)
    tl.store(y + at, tl.load(x + at, mask=mask) + tl.program_id(0), mask=mask)


def _run(kernel, *constants):
    x = torch.arange(SIZE, dtype=torch.float32, device="cpu")
    y = torch.zeros_like(x)
    kernel[(triton.cdiv(SIZE, BLOCK),)](x, y, SIZE, *constants, BLOCK=BLOCK)
    return {"y": y}


KERNELS = {
    "right": (_add_one, SIZE),
    "one past the end": (_add_one, SIZE + 1),
    "its neighbour's result": (_running_sum,),
    "its neighbour's memory": (_overlapping,),
}


def _check(note, name, seed):
    note(name)
    found = interpreter_order.check_orders(lambda: _run(*KERNELS[name]), Random(seed), name)
    return found["y"].tolist()


def test_a_right_kernel_passes():
    assert _check(lambda _: None, "right", 0) == [i + 1.0 for i in range(SIZE)]


def test_a_read_past_the_end_ends_the_process():
    with pytest.raises(AssertionError, match=r"^one past the end: SIGSEGV"):
        run_isolated(_check, "one past the end", 0)


@pytest.mark.parametrize("name", ["its neighbour's result", "its neighbour's memory"])
def test_a_kernel_that_needs_an_order_is_found(name):
    with pytest.raises(AssertionError, match=f"{name}, (reverse|shuffled): .* elements of y diff"):
        _check(lambda _: None, name, 0)


def test_samples_give_the_same_bits_in_every_order():
    runs = interpreter_order.measure(0.04)[interpreter_order.PROMISES[0].name]
    assert runs >= 0.04 * interpreter_order.PROMISES[0].goal
