"""The emulated card finds what it is made for: each adversary a fault planted for it."""

import ctypes
import math
import os

import pytest
import torch

from tests import emulated
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


@pytest.fixture
def compiler(tmp_path, monkeypatch):
    """A program in place of the compiler, and the list of what it has compiled."""
    log = tmp_path / "log"
    script = tmp_path / "c++"
    script.write_text(
        f"""#!/bin/sh
if [ "$1" = --version ]; then echo "some compiler 1"; exit; fi
echo "$@" >> {log}
for output; do :; done
echo "made by $$" > "$output"
"""
    )
    script.chmod(0o755)
    monkeypatch.setattr(emulated, "CXX", str(script))
    monkeypatch.setattr(emulated, "MADE", tmp_path / "made")
    emulated._version.cache_clear()
    yield lambda: log.read_text().splitlines() if log.exists() else []
    emulated._version.cache_clear()


def test_a_program_is_compiled_again_only_after_a_change(tmp_path, compiler):
    program = emulated.HERE / "exchange.cpp"
    header = "cuda/flip_bits/flip_bits_config.h"
    outputs = []
    for i, changed in enumerate((None, None, "first", "first", "second")):
        folder = tmp_path / str(i)
        folder.mkdir()
        if changed:  # the folder of a planted fault is another one each time
            (folder / header).parent.mkdir(parents=True)
            (folder / header).write_text(changed)
        emulated._compile(["-shared", *emulated._first(folder if changed else None), program],
                          folder / "x.so")  # fmt: skip
        outputs.append((folder / "x.so").read_text())
    assert len(compiler()) == 3
    assert outputs[0] == outputs[1]
    assert outputs[2] == outputs[3]
    assert len(set(outputs)) == 3
    emulated._compile(["-shared", "-g", program], tmp_path / "y.so")
    assert len(compiler()) == 4  # other arguments


def test_programs_of_old_are_forgotten(tmp_path):
    for i in range(5):
        path = tmp_path / str(i)
        path.touch()
        os.utime(path, (i, i))
    emulated._forget(tmp_path, 2)
    assert {path.name for path in tmp_path.iterdir()} == {"3", "4"}
