"""The emulated card finds what it is made for: each adversary a fault planted for it."""

import ctypes
import math

import pytest
import torch

from tests.emulated import build, needs_compiler

pytestmark = needs_compiler

SEEDS = range(60)
INPUT = torch.arange(64.0)
# Of each kernel: what a right run leaves in y, and what alone does not find its fault: the
# adversaries (late stores, sleeping blocks and warps).
KERNELS = {
    "neighbour": ((INPUT + 1) % 64, None),
    "kept": (INPUT % 32, (True, False)),
    "message": (torch.tensor([7.0, 7.0]), (False, True)),
    "handed over": (torch.tensor([7.0, 7.0]), (False, False)),
    "overwritten": (torch.tensor([7.0, 7.0]), (False, False)),
    "not begun": (torch.tensor([3.0, 0, 1, 2, 7, 4, 5, 6]), None),
    "not given": (torch.tensor([3.0, 0, 1, 2, 7, 4, 5, 6]), (False, True)),
    "early": (INPUT, None),
}


@pytest.fixture(scope="module")
def launch(tmp_path_factory):
    function = build("adversaries", tmp_path_factory.mktemp("emulated")).adversary
    function.restype = ctypes.c_char_p

    def run(kernel, *, right, seed, late=True, sleep=True):
        """Message of the launch, and y."""
        y = torch.full((64,), math.nan)
        pointers = [ctypes.c_void_p(x.data_ptr()) for x in (INPUT, y)]
        flags = [ctypes.c_int(right), ctypes.c_uint32(seed), ctypes.c_int(late)]
        message = function(kernel.encode(), *pointers, *flags, ctypes.c_int(sleep))
        return message, y

    return run


def count_right(launch, kernel, **options):
    expected = KERNELS[kernel][0]
    results = [launch(kernel, seed=seed, **options) for seed in SEEDS]
    return sum(not m and torch.equal(y[: len(expected)], expected) for m, y in results)


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_right_kernel_is_right_in_every_order(launch, kernel):
    assert count_right(launch, kernel, right=True) == len(SEEDS)


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_planted_fault_is_found(launch, kernel):
    assert count_right(launch, kernel, right=False) < len(SEEDS) - 5
    late_and_sleep = KERNELS[kernel][1]
    if late_and_sleep is not None:  # by that adversary, and by no other
        late, sleep = late_and_sleep
        assert count_right(launch, kernel, right=False, late=late, sleep=sleep) == len(SEEDS)


def test_an_early_read_is_found_in_every_order(launch):
    """The kernel before ends only when no thread can go on without it."""
    for seed in SEEDS:
        _, y = launch("early", right=False, seed=seed)
        assert y.isnan().nonzero().tolist() == [[40]]
    assert torch.equal(INPUT, torch.arange(64.0)), "the input is itself again"


@pytest.mark.parametrize("right", [True, False], ids=["flag", "barrier"])
def test_a_launch_that_never_ends_says_so(launch, right):
    assert launch("stuck", right=right, seed=0)[0] == b"hung"


def test_a_seed_repeats_its_order(launch):
    def bits(seed):
        y = launch("neighbour", right=False, seed=seed)[1]
        return y.isnan().tolist()

    assert bits(1) == bits(1)
    assert len({tuple(bits(seed)) for seed in SEEDS}) > len(SEEDS) / 2
