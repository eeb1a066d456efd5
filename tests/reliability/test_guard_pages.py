"""C++ kernels between guard pages, a few calls of each; and faults that must be found."""

from random import Random
from unittest import mock

import pytest
import torch

from bitdance_kernels import noise_keys, philox
from bitdance_kernels._shared import native
from bitdance_kernels.testing import cpu_isas
from tests.reliability import guard_pages
from tests.reliability.guarded import GuardPages
from tests.reliability.isolated import run_isolated

pytestmark = pytest.mark.skipif(not cpu_isas(), reason="the C++ module was not built here")


def test_kernels_touch_nothing_beside_their_arrays():
    """Every kernel is among them, or the suite would raise."""
    figures = guard_pages.measure(0.02)
    assert figures[guard_pages.PROMISES[0].name] >= 400


def _pack_rows(note, rows, seed):
    """Pack more rows than the three that are there."""
    x = torch.zeros(3, 64, dtype=torch.float32)
    packed = torch.zeros(3, 8, dtype=torch.uint8)
    with guard_pages.guarded_kernels(GuardPages(), Random(seed)):
        note("pack_signs")
        native.cpu.pack_signs(x, packed, rows, 64, 64, native.FLOAT32, 1)


@pytest.mark.parametrize("rows", [4, 300])
@pytest.mark.parametrize("seed", range(2))
def test_a_row_that_is_not_there_is_found(rows, seed):
    with pytest.raises(AssertionError, match=r"^pack_signs: (SIG|a tensor of .* was written)"):
        run_isolated(_pack_rows, rows, seed)


def _forgets_the_dtype(keys, step, elements):
    normals = torch.empty(keys.shape[0], elements)
    step = torch.tensor([step], dtype=torch.int64, device="cpu")
    native.cpu.noise(keys, keys.shape[0], elements, step, normals, None, 1)
    return normals


def _draw_noise(note, default):
    torch.set_default_dtype(default)
    note("noise")
    with (
        mock.patch.object(philox, "_native_noise", _forgets_the_dtype),
        guard_pages.guarded_kernels(GuardPages(), Random(0)),
    ):
        philox.noise(noise_keys(1, range(4)), 0, 4096, backend="auto")


def test_a_result_of_the_default_dtype_is_found():
    """Half as many bytes as C++ writes; ordinary memory would be corrupted in silence."""
    with pytest.raises(AssertionError, match=r"^noise: SIG"):
        run_isolated(_draw_noise, torch.bfloat16)
