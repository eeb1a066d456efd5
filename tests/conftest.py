import collections
import contextlib
import os

# Before anything imports Triton: its kernels run in the interpreter, on the CPU.
os.environ.setdefault("TRITON_INTERPRET", "1")
# Results are judged by the errors of plain PyTorch, and the golden vectors were made by the generic
# code of MKL. So that a pass here is a pass everywhere, the libraries take the same code on every
# x86 machine, whatever instructions it has on top; our own kernels take the best of the machine.
os.environ.setdefault("MKL_CBWR", "COMPATIBLE")
os.environ.setdefault("ATEN_CPU_CAPABILITY", "avx2")
os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX2")
os.environ.setdefault("OPENBLAS_CORETYPE", "Haswell")
os.environ.setdefault("NPY_DISABLE_CPU_FEATURES", "X86_V4 AVX512_ICL AVX512_SPR")

# Where workers share the cores, threads that wait for each other cost more than they bring: a test
# of threads asks for them.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

from tests import hidden_tools, profiles
from tests.interpreter import quicken, refuse_negative_coordinates

profiles.register()
quicken()
refuse_negative_coordinates()


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture
def every_isa(request):
    """The C++ kernels use each of the instruction sets of this machine in turn."""
    from bitdance_kernels.testing import cpu_isa

    with cpu_isa(request.param) if request.param else contextlib.nullcontext():
        yield


def pytest_generate_tests(metafunc):
    if "every_isa" in metafunc.fixturenames:
        from bitdance_kernels.testing import cpu_isas  # planted faults come before the library

        metafunc.parametrize("every_isa", cpu_isas() or (None,), indirect=True)


def pytest_addoption(parser):
    help = "run what can end otherwise where this tool is hidden"
    parser.addoption("--without", choices=hidden_tools.TOOLS, help=help)
    help = "run tests with the marker nightly too, as those that are named by ::"
    parser.addoption("--nightly", action="store_true", help=help)


def pytest_ignore_collect(collection_path, config):
    tool = config.getoption("--without", None)
    is_test = collection_path.name.startswith("test_") and collection_path.suffix == ".py"
    return True if tool and is_test and hidden_tools.leaves_out(tool, collection_path) else None


def pytest_collection_modifyitems(config, items):
    """Files with slow tests begin, then those with many, so that none is left over at the end."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    count = collections.Counter(item.path for item in items)
    named = any("::" in argument for argument in config.args)
    if not (named or config.getoption("--nightly", False)):
        _deselect(config, items, [item for item in items if item.get_closest_marker("nightly")])
    if config.getoption("--without", None):
        left_out = hidden_tools.left_out([item.nodeid for item in items])
        _deselect(config, items, [item for item in items if item.nodeid in left_out])
    items.sort(key=lambda item: (item.path not in slow, -count[item.path], item.path))


def _deselect(config, items, some):
    left_out = set(some)
    config.hook.pytest_deselected(items=some)
    items[:] = [item for item in items if item not in left_out]
