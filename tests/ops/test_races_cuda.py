"""Shared memory of the CUDA kernels: nothing is read and written without a barrier in between."""

import pytest

from tests.emulated import needs_compiler, plant, races

pytestmark = [needs_compiler, pytest.mark.slow]

KERNELS = ("patch_attention", "denoise_step_linear")
SLOW = ("block_decode_attention", "group_norm_silu", "skinny_product")


@pytest.mark.parametrize(
    "kernel", [*KERNELS, *(pytest.param(name, marks=pytest.mark.nightly) for name in SLOW)]
)
def test_barriers_order_what_threads_share(kernel, tmp_path):
    assert races(kernel, tmp_path) == ""


BARRIERS = {
    "patch_attention": (
        "cuda/patch_attention/patch_attention.cuh", "__syncwarp();  // all have read q",
        "patch_attention_kernel",
    ),
    "skinny_product": (
        "cuda/common/skinny_product_sm90.cuh", "__syncthreads();  // all have read the squares",
        "finish_head",
    ),
}  # fmt: skip


@pytest.mark.parametrize(
    "kernel", ["patch_attention", pytest.param("skinny_product", marks=pytest.mark.nightly)]
)
def test_a_missing_barrier_is_found(kernel, tmp_path):
    """Though lanes exchange values there, and no order of theirs gives another result."""
    header, barrier, function = BARRIERS[kernel]
    plant(header, barrier, "", tmp_path)
    assert function in races(kernel, tmp_path, tmp_path)
