"""Emulated CUDA kernels between guard pages and in random orders, two of them; planted faults."""

from random import Random

import pytest

from tests.emulated import build, needs_compiler, plant
from tests.reliability import emulated_orders
from tests.reliability.guarded import GuardPages
from tests.reliability.isolated import run_isolated
from tests.reliability.ragged import Draw

pytestmark = needs_compiler


def test_kernels_give_the_same_bits_in_every_order(tmp_path):
    names = ("rope_append", "patch_attention")
    calls = 6
    found = run_isolated(emulated_orders.run_kernels, names, calls, str(tmp_path))
    assert found == len(names) * calls * emulated_orders.ORDERS


FAULTS = {
    "a thread too many": (
        "rope_append", "cuda/rope_append/rope_append.cuh", "item < params.items",
        "item <= params.items",
    ),
    "no barrier after the copies": (
        "patch_attention", "cuda/patch_attention/patch_attention.cuh",
        "  wait_for_copies<1>();\n  __syncthreads();\n", "  wait_for_copies<1>();\n",
    ),
}  # fmt: skip


def _check(note, kernel, folder):
    library = build(kernel, folder, folder)
    for seed in range(20):
        note(f"{kernel}, case {seed}")
        random = Random(seed)
        run = emulated_orders.KERNELS[kernel](library, Draw(random))
        emulated_orders.check_orders(run, GuardPages(), random, kernel)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_found(fault, tmp_path):
    kernel, *edit = FAULTS[fault]
    plant(*edit, tmp_path)
    with pytest.raises(AssertionError, match=kernel):
        run_isolated(_check, kernel, tmp_path)
