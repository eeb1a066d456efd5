"""The CUDA backends up to their launches, on a machine without a card; and the runtime for that."""

import pytest
import torch

import bitdance_kernels as bk
from bitdance_kernels import explain
from bitdance_kernels._shared import native
from tests.cases import all_cases
from tests.launches import NVCC, launches_of, objects, recording

pytestmark = [
    pytest.mark.skipif(NVCC is None, reason="nvcc is not installed"),
    pytest.mark.skipif(native.cuda.unavailable() is not None, reason="no CUDA module"),
    pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a card"),
]
WITH_CUDA = [case for case in all_cases().values() if "cuda" in case.kernel_op.backends]


def test_every_object_of_the_module_is_there():
    names = {path.name for path in objects()}
    assert {"module_cuda.cpp.o", "status.cu.o", "pack_signs.cu.o"} <= names


@pytest.mark.parametrize("case", WITH_CUDA, ids=lambda case: case.name)
def test_every_sample_is_launched_as_a_card_takes_it(case):
    """Grids, threads and shared memory are within the limits; nothing is launched for no rows."""
    launched = 0
    with recording() as launches:
        for call in case.samples(torch.device("cpu")):
            if explain(case.op, *call.args, **call.kwargs)["cuda"] is not None:
                continue
            case.op(*call.args, **call.kwargs, backend="cuda")
            found = launches()
            if all(tensor.numel() for tensor in call.tensors()):
                assert found, call.name
            launched += len(found)
    assert launched


def test_a_launch_tells_its_kernel_and_sizes():
    x = torch.zeros(5, 64, dtype=torch.bfloat16)
    (launch,) = launches_of(lambda: bk.pack_signs(x, backend="cuda"))
    assert "pack_signs_kernel" in launch.kernel
    assert (launch.blocks, launch.cluster, launch.programmatic) == (1, 1, False)
    assert launch.threads >= 40


def test_the_card_is_gone_after_a_recording():
    with recording():
        assert native.cuda.device_count() == 1
    assert native.cuda.device_count() == 0
    assert not torch.cuda.is_available()
