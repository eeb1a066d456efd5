"""Kernels for sm_90 as they are built: no spills, weights before the wait, launches that fit."""

import json

import pytest
import torch

from bitdance_kernels._shared import native
from tests import offline_sm90, sass
from tests.launches import NVCC, Launch
from tests.offline_sm90 import (
    ARCHS,
    CODE,
    RECORD,
    blocks_per_multiprocessor,
    code,
    faults,
    kernels,
    launches,
)

needs_module = pytest.mark.skipif(
    NVCC is None or native.cuda.unavailable() is not None or torch.cuda.is_available(),
    reason="needs nvcc and the CUDA module, and no card",
)


@needs_module
def test_kernels_and_launches_are_those_of_the_record():
    """After a change on purpose: python -m tests.offline_sm90."""
    record, found = json.loads(RECORD.read_text()), offline_sm90.record()
    assert offline_sm90.CODE in found["kernels"]
    record["kernels"] = {arch: record["kernels"][arch] for arch in found["kernels"]}
    assert found["launches"].keys() == record["launches"].keys()
    if found["nvcc"] == record["nvcc"]:  # another compiler takes other registers
        assert found == record


@needs_module
@pytest.mark.parametrize("arch", ARCHS)
def test_no_kernel_spills(arch):
    if arch not in offline_sm90.built():
        pytest.skip(f"the module was not compiled for {arch}")
    assert kernels(arch)
    assert [name for name, used in kernels(arch).items() if used["spilled"]] == []


@needs_module
def test_weights_are_fetched_before_the_wait_and_nothing_is_stored():
    found = faults()
    assert found
    assert {name: wrong for name, wrong in found.items() if wrong} == {}


@needs_module
def test_blocks_that_run_at_once_exchange_whole_words():
    """A word that is its own flag is stored and read at once, and wiped behind a fence."""
    every = [launch for launched in launches().values() for launch in launched]
    together = {launch.kernel for launch in every if launch.cooperative}
    assert together
    for name in together:
        opcodes = [i.opcode for i in code(CODE)[name]]
        strong = {opcode for opcode in opcodes if ".STRONG." in opcode}
        assert strong == {"LDG.E.128.STRONG.GPU", "STG.E.128.STRONG.GPU"}, sass.short_name(name)
        assert any(opcode.startswith("MEMBAR.") for opcode in opcodes), sass.short_name(name)


@needs_module
def test_only_kernels_that_wait_begin_early():
    """The first one of a chain never does."""
    for label, launched in launches().items():
        early = [launch.programmatic for launch in launched]
        if launched[0].cooperative:
            assert early == [False, False], label
        else:
            assert early == [False, True], label
            assert all(kernels(CODE)[launch.kernel]["waits"] for launch in launched), label


@needs_module
@pytest.mark.parametrize("arch", ARCHS)
def test_every_launch_fits_a_multiprocessor(arch):
    if arch not in offline_sm90.built():
        pytest.skip(f"the module was not compiled for {arch}")
    for label, launched in launches().items():
        for launch in launched:
            used = kernels(arch)[launch.kernel]
            assert launch.threads <= (used["max_threads"] or 1024), label
            fitting = blocks_per_multiprocessor(used, launch)
            assert fitting >= 1, label
            if launch.cooperative:  # its blocks wait for each other
                assert launch.blocks <= fitting * 132, label


@pytest.mark.parametrize(
    ("registers", "static", "threads", "shared", "blocks"),
    [
        (32, 0, 256, 0, 8),  # by threads
        (32, 0, 32, 0, 32),  # by blocks
        (128, 0, 256, 0, 2),  # by registers
        (129, 0, 256, 0, 1),  # which are allotted eight at a time
        (255, 0, 288, 0, 0),
        (32, 0, 256, 100 * 1024, 2),  # by shared memory, with 1 KB for the system
        (32, 1024, 256, 113 * 1024, 2),
        (32, 2048, 256, 113 * 1024, 1),
    ],
)
def test_blocks_of_a_multiprocessor(registers, static, threads, shared, blocks):
    launch = Launch("", 1, threads, shared, 1, programmatic=False, cooperative=False)
    used = {"registers": registers, "shared": static}
    assert blocks_per_multiprocessor(used, launch) == blocks
