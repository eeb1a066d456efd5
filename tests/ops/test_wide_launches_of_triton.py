"""Triton kernels past 2^31 and 2^32, without tensors of that size."""

import contextlib

import pytest
import torch
import triton
import triton.language as tl

from bitdance_kernels._shared import philox_triton, triton_support
from bitdance_kernels.binary.flip_bits.triton import _flips
from bitdance_kernels.denoise.denoise_step import triton as denoise_step
from tests.ops.test_flip_bits import FIRSTS, expected_flips

META = torch.device("meta")


class _Launches:
    """Stands in for a kernel and keeps the grid and the arguments of its launches."""

    def __init__(self):
        self.seen = []

    def __getitem__(self, grid):
        return lambda *args, **options: self.seen.append((grid, options))


@pytest.fixture(autouse=True)
def _no_card(monkeypatch):
    monkeypatch.setattr(triton_support, "on_device", lambda *_: contextlib.nullcontext())


@pytest.mark.parametrize("drawn", [True, False])
@pytest.mark.parametrize("elements", [1024, 1026])
def test_denoise_step_counts_in_64_bits_where_it_must(drawn, elements, monkeypatch):
    launches = _Launches()
    monkeypatch.setattr(denoise_step, "_denoise_step_kernel", launches)
    row_blocks = -(-elements // 4)
    most = 2**31 - 1 - denoise_step._BLOCK  # blocks that 32 bits count, with those past the end
    for blocks, wide in ((most - row_blocks, False), (most + row_blocks + 1, True), (2**33, True)):
        rows = blocks // row_blocks
        x = torch.empty(rows, elements, device=META, dtype=torch.float32)
        keys = torch.empty(rows, 3, device=META, dtype=torch.int64) if drawn else None
        table, step = torch.empty(5, 3, device=META), torch.empty((), device=META)
        denoise_step.run(x, x, table, step, None, None if drawn else x, keys)
        (grid,), options = launches.seen.pop()
        made = rows * row_blocks if drawn else -(-rows * elements // 4)
        assert grid == -(-made // denoise_step._BLOCK)
        assert options["WIDE"] is (made + denoise_step._BLOCK >= 2**31)
        if drawn:
            assert options["WIDE"] is wide


def test_noise_counts_in_64_bits_where_it_must(monkeypatch):
    launches = _Launches()
    monkeypatch.setattr(philox_triton, "_noise_kernel", launches)
    most = 2**31 - 1 - philox_triton._BLOCK
    for blocks, wide in ((most, False), (most + 1, True), (2**32, True)):
        keys = torch.empty(1, 3, device=META, dtype=torch.int64)
        philox_triton.noise(keys, torch.empty((), device=META), 4 * blocks)
        assert launches.seen.pop()[1]["WIDE"] is wide


@triton.jit
def _flips_kernel(flips_ptr, key_ptr, first, threshold, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    tl.store(flips_ptr + i, _flips(key_ptr, first + i.to(tl.int64), threshold))


@pytest.mark.parametrize("first", FIRSTS)
def test_bytes_past_2_to_the_32_flip_by_words_of_their_own(first):
    flips = torch.empty(64, dtype=torch.int32)
    _flips_kernel[(1,)](flips, torch.tensor([2**40 + 7, 5]), first, 2**14, BLOCK=64)
    assert torch.equal(flips.to(torch.uint8), expected_flips(first, 64, 2**40 + 7, 5, 2**14))
