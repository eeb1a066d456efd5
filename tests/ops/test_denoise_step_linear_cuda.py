"""The CUDA kernel without a card: its device code as C++, on tests/emulated."""

import ctypes
import math

import pytest
import torch

from bitdance_kernels import denoise_schedule, noise_keys, pack_weight
from bitdance_kernels._shared import native
from bitdance_kernels.denoise.denoise_step_linear import reference
from bitdance_kernels.testing import compare
from tests.emulated import build, build_once, needs_compiler, plant

pytestmark = [needs_compiler, pytest.mark.slow]

HEADER = "cuda/denoise_step_linear/denoise_step_linear_sm90.cuh"
BOTH = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    return loaded(build_once("denoise_step_linear", tmp_path_factory))


def loaded(library):
    library.denoise_step_linear.restype = ctypes.c_char_p
    return library


class Case:
    def __init__(self, rows, patch, bits, features, *, cfg=None, drawn=True, squash=False,
                 step=1, dtype=torch.bfloat16):  # fmt: skip
        g = torch.Generator().manual_seed(rows)
        halves = 1 if cfg is None else 2
        self.x = torch.randn(rows, patch, bits, generator=g)
        self.x0 = torch.randn(halves * rows, patch, bits, generator=g).to(dtype)
        self.table, _ = denoise_schedule(3)
        self.step = torch.tensor([step])
        self.weight = (torch.randn(features, bits, generator=g) * bits**-0.5).to(dtype)
        self.bias = torch.randn(features, generator=g).to(dtype)
        self.cfg = None if cfg is None else torch.tensor(cfg)
        self.keys = noise_keys(7, range(rows)) if drawn else None
        self.noise = None if drawn else torch.randn(self.x.shape, generator=g)
        self.squash = squash

    def run(self, library, seed=0):
        rows, patch, bits = self.x.shape
        features, dtype = len(self.weight), self.weight.dtype
        state = torch.full_like(self.x, math.nan)
        stream = torch.full((*self.x0.shape[:-1], features), math.nan, dtype=dtype)
        moments = torch.full((*self.x0.shape[:-1], features // 16, 2), math.nan)
        tensors = [self.x, self.x0, self.table, self.step, self.cfg, self.noise, self.keys,
                   pack_weight(self.weight), self.bias, state, stream, moments]  # fmt: skip
        pointers = [0 if t is None else t.data_ptr() for t in tensors]
        late = [t.nbytes if i in (0, 1) else 0 for i, t in enumerate(tensors)]
        sizes = (rows * patch, patch, bits, features, self.squash, self.step.element_size())
        message = library.denoise_step_linear(
            (ctypes.c_void_p * 12)(*pointers), (ctypes.c_int64 * 6)(*sizes),
            ctypes.c_int(dtype == torch.float16), (ctypes.c_int64 * 12)(*late),
            ctypes.c_uint32(seed),
        )  # fmt: skip
        assert message is None, message
        return state, stream, moments

    def reference(self, weight_dtype, state_dtype):
        wide = {"dtype": weight_dtype}
        return reference.run(
            self.x.to(state_dtype), self.x0.to(**wide), self.table.to(state_dtype), self.step,
            self.weight.to(**wide), self.bias.to(**wide), self.cfg,
            None if self.noise is None else self.noise.to(state_dtype), self.keys, self.squash,
        )  # fmt: skip


SHAPES = [(1, 1, 32, 64), (3, 4, 16, 32), (2, 16, 32, 80), (1, 64, 48, 16), (5, 9, 128, 32)]
SHAPES += [(128, 1, 32, 16)]


@BOTH
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_against_the_reference(library, shape, dtype):
    """The state is the reference's to float32's rounding; the stream is that of the state."""
    rows, patch = shape[:2]
    for cfg, drawn, squash, step in ((None, True, False, 0), (2.5, True, True, 2),
                                     (3.0, False, False, 3), (None, False, True, 1)):  # fmt: skip
        if cfg is not None and rows * patch > 64:
            continue
        case = Case(*shape, cfg=cfg, drawn=drawn, squash=squash, step=step, dtype=dtype)
        actual = case.run(library)
        plain = case.reference(dtype, torch.float32)
        where = f"{shape}, cfg {cfg}, drawn {drawn}, squash {squash}"
        torch.testing.assert_close(actual[0], plain[0], rtol=1e-5, atol=2e-6, msg=where)
        rounded = actual[0].to(dtype)
        halves = 1 if cfg is None else 2
        product, truth = (
            torch.nn.functional.linear(rounded.to(d), case.weight.to(d), case.bias.to(d)).repeat(
                halves, 1, 1
            )
            for d in (dtype, torch.float64)
        )
        compare("staged", actual[1], product, truth, where)
        torch.testing.assert_close(actual[2], moments_of(actual[1]), rtol=1e-4, atol=1e-5)


def moments_of(x):
    groups = x.float().unflatten(-1, (-1, 16))
    mean = groups.mean(-1)
    return torch.stack([mean, (groups - mean[..., None]).square().sum(-1)], -1)


def test_every_order_of_threads_gives_the_same_bits(library):
    case = Case(2, 16, 32, 48, cfg=2.0)
    first = case.run(library)
    for seed in range(1, 200):
        for one, other in zip(case.run(library, seed), first, strict=True):
            assert torch.equal(one, other), f"seed {seed}"


FAULTS = {
    "predictions read before the wait": (
        "    wait_for_previous();\n", "    advance(threadIdx.x, normals[0]);\n"
        "    wait_for_previous();\n    if (threadIdx.x < 1) return;\n",
    ),
    "states read before they are there": ("    __syncthreads();\n", ""),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_found(fault, library, tmp_path):
    plant(HEADER, *FAULTS[fault], tmp_path)
    wrong = loaded(build("denoise_step_linear", tmp_path, changed=tmp_path))
    case = Case(2, 16, 32, 48, cfg=2.0)
    right = case.run(library)
    for seed in range(50):
        try:
            actual = case.run(wrong, seed)
        except AssertionError:
            return
        if not all(torch.equal(a, b) for a, b in zip(actual, right, strict=True)):
            return
    raise AssertionError("no order of the threads shows the fault")


@pytest.mark.skipif(
    native.cuda.unavailable("denoise_step_linear") is not None,
    reason="the CUDA module was not built here",
)
def test_c_function_checks_before_it_launches():
    def call(*, tokens=4, patch=2, bits=32, features=64, dtype=native.BFLOAT16, noise=0, keys=8):
        native.cuda.denoise_step_linear(
            0, 0, 0, 0, 8, 0, noise, keys, 0, 0, 0, 0, 0, 0, tokens, patch, bits, features, dtype,
            0, 0, 0,
        )  # fmt: skip

    wrong = [{"tokens": 129}, {"tokens": -1}, {"tokens": 3}, {"bits": 24}, {"bits": 144}]
    wrong += [{"features": 24}, {"features": 0}, {"keys": 0}, {"noise": 8}]
    for sizes in wrong:
        with pytest.raises(RuntimeError, match="size or argument out of range"):
            call(**sizes)
    with pytest.raises(RuntimeError, match="dtype code not handled"):
        call(dtype=native.FLOAT32)
    call(tokens=0)  # nothing to launch, on any machine
