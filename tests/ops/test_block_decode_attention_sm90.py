"""Decode attention in clusters without a card: device code on the CPU, launches, machine code."""

import ctypes
import math

import pytest
import torch

from bitdance_kernels import block_decode_attention, overlapping_launches
from bitdance_kernels._shared import native
from bitdance_kernels.attention.block_decode_attention import reference
from bitdance_kernels.testing import compare
from tests import sass
from tests.emulated import build, drivers, needs_compiler, plant
from tests.launches import NVCC, objects, recording
from tests.offline_sm90 import CODE

pytestmark = pytest.mark.slow

NAME = "block_decode_attention_sm90"
HEADER = f"cuda/block_decode_attention/{NAME}.cuh"
needs_module = pytest.mark.skipif(
    NVCC is None or native.cuda.unavailable() is not None or torch.cuda.is_available(),
    reason="needs nvcc and the CUDA module, and no card",
)


def _load(folder, changed=None):
    library = build(NAME, folder, changed)
    library.decode.restype = ctypes.c_char_p
    return library


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    return _load(tmp_path_factory.mktemp("emulated"))


def _inputs(P, heads, D, lengths, dtype, Tmax=150):
    q = torch.randn(len(lengths), P, heads[0], D, dtype=dtype)
    k, v = torch.randn(2, len(lengths), Tmax, heads[1], D, dtype=dtype)
    return q, k, v, torch.tensor(lengths, dtype=torch.int32)


CALLS = [
    # P, (H, Hkv), D, lengths, splits
    (1, (1, 1), 32, (0, 150), 1),
    (1, (3, 1), 64, (150, 65), 2),
    (5, (2, 2), 48, (150, 40), 3),
    (16, (1, 1), 64, (150,), 8),  # more splits than tiles
    (9, (4, 2), 56, (150,), 3),  # 18 rows: warps side by side
    (1, (2, 1), 24, (-3, 200), 2),  # lengths outside of the cache
]


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("P", "heads", "D", "lengths", "splits"), CALLS)
def test_against_the_formula(library, P, heads, D, lengths, splits, dtype):
    """In two orders of threads and stores, which give the same bits."""
    q, k, v, n = _inputs(P, heads, D, lengths, dtype)
    truth = reference.attend(q.double(), k.double(), v.double(), n, 0.125)
    plain = reference.attend(q, k, v, n, 0.125)
    for b, length in enumerate(lengths):
        k[b, max(length, 0) :] = math.nan
        v[b, max(length, 0) :] = math.inf
    out, message = drivers.decode_sm90(library, q, k, v, n, 0.125, splits, 1)
    assert message is None
    compare("staged", out, plain, truth, f"{splits} splits")
    assert torch.equal(drivers.decode_sm90(library, q, k, v, n, 0.125, splits, 2)[0], out)


@needs_compiler
def test_scores_of_minus_infinity(library):
    """The first splits see nothing but masked keys."""
    q, k, v, n = _inputs(1, (1, 1), 32, (150,), torch.float16)
    q = q.abs() + 0.5
    k[:, :140] = -math.inf
    out, _ = drivers.decode_sm90(library, q, k, v, n, 0.2, 3, 1)
    k, v, n = k[:, 140:], v[:, 140:], n - 140
    plain = reference.attend(q, k, v, n, 0.2)
    truth = reference.attend(q.double(), k.double(), v.double(), n, 0.2)
    compare("staged", out, plain, truth, "out")


FAULTS = {
    "no barrier before the parts are read": ("  cluster_sync();\n", ""),
    "no wait for the kernel before": ("  wait_for_previous();", "  "),
}


@needs_compiler
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.nightly
def test_a_planted_fault_is_found(library, tmp_path, fault):
    plant(HEADER, *FAULTS[fault], tmp_path)
    wrong = _load(tmp_path, tmp_path)
    call = (*_inputs(1, (2, 1), 32, (150,), torch.float16), 0.125, 3)
    right = drivers.decode_sm90(library, *call, 0)[0]
    assert any(
        not torch.equal(drivers.decode_sm90(wrong, *call, seed)[0], right) for seed in range(4)
    )


@needs_module
def test_nothing_is_read_or_stored_before_the_wait():
    (path,) = objects(f"csrc/**/{NAME}.cu.o")
    kernels = sass.kernels(path, CODE)
    assert len(kernels) == 16
    for name, instructions in kernels.items():
        assert sass.faults(instructions, 0) == [], sass.short_name(name)
        early = sass.instructions_before_wait(instructions)
        assert not any(i.opcode.startswith("LDG") for i in early), sass.short_name(name)


@needs_module
@pytest.mark.parametrize(
    ("B", "P", "heads", "Tmax", "cluster"),
    [(2, 1, (12, 12), 384, 1), (2, 16, (12, 12), 1024, 8), (1, 64, (40, 8), 4096, 7)],
)
def test_one_launch_that_may_begin_early(B, P, heads, Tmax, cluster):
    q, k, v, n = _inputs(P, heads, 128, (Tmax,) * B, torch.bfloat16, Tmax)
    with recording() as taken, overlapping_launches():
        for _ in range(2):
            block_decode_attention(q, k, v, n, backend="cuda")
        first, second = taken()
    assert (first.cluster, first.programmatic, second.programmatic) == (cluster, False, True)
    assert first.blocks % cluster == 0


@needs_module
def test_long_caches_take_more_splits_in_two_launches():
    q, k, v, n = _inputs(1, (2, 2), 64, (8192,), torch.bfloat16, 8192)
    with recording() as taken:
        block_decode_attention(q, k, v, n, backend="cuda")
        assert [launch.cluster for launch in taken()] == [1, 1]
