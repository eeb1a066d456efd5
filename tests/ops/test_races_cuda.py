"""Shared memory of the CUDA kernels: nothing is read and written without a barrier in between."""

import pytest

from tests.emulated import needs_compiler, plant, races

pytestmark = needs_compiler

KERNELS = ("patch_attention", "block_decode_attention", "group_norm_silu")


@pytest.mark.parametrize("kernel", KERNELS)
def test_barriers_order_what_threads_share(kernel, tmp_path):
    assert races(kernel, tmp_path) == ""


@pytest.mark.parametrize("barrier", ["__syncwarp();  // all have read q"])
def test_a_missing_barrier_is_found(barrier, tmp_path):
    """Though lanes exchange values there, and no order of theirs gives another result."""
    plant("cuda/patch_attention/patch_attention.cuh", barrier, "", tmp_path)
    assert "patch_attention_kernel" in races("patch_attention", tmp_path, tmp_path)
