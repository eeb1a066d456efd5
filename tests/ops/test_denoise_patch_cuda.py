"""The CUDA kernel without a card: its device code as C++, on tests/emulated."""

import ctypes
import itertools
import math

import pytest
import torch

from bitdance_kernels import pack_weight
from bitdance_kernels.denoise.denoise_patch import reference
from bitdance_kernels.testing import Call, compare
from tests.cases.denoise_patch import head_call
from tests.emulated import build, build_once, needs_compiler, plant

pytestmark = [needs_compiler, pytest.mark.slow]

BLOCKS = 16
RING, ATTENTION_RING, C, H, HEADS = 8, 10, 128, 256, 2


def attention_of(call):
    """Arguments of the attention, None without."""
    return call.kwargs["attention"] or (None,) * 6


def arguments_of(call):
    """Arguments of the reference for a call."""
    options = call.kwargs
    return (
        *call.args, *attention_of(call), options["num_heads"], options["cfg"], options["noise"],
        options["keys"], options.get("squash", False), 1e-6,
    )  # fmt: skip


class Emulated:
    """The kernel of a compiled library."""

    def __init__(self, library):
        self.function = library.denoise_patch
        self.function.restype = ctypes.c_char_p

    def __call__(self, call, *, seed=0, blocks=BLOCKS, late=True, sleep=True, max_polls=1 << 30):
        """State, status, and what went wrong in the launch."""
        x, modulation, *_ = call.args
        options = call.kwargs
        evaluations, rows, width = modulation.shape
        tokens = x[..., 0].numel()
        y = torch.full(x.shape, math.nan)
        status = torch.zeros(1, dtype=torch.int32)
        attention = options["num_heads"] > 0
        row = (ATTENTION_RING, rows, 3 * C) if attention else (RING, rows, H)
        words = torch.full(row, -1, dtype=torch.int16)
        given = (*call.args, *attention_of(call), options["cfg"], options["noise"], options["keys"],
                 y, status, words)  # fmt: skip
        pointers = [None if t is None else t.data_ptr() for t in given]
        sizes = (
            rows, tokens, tokens // len(x), len(call.args[5]),
            (width // C - 2) // (6 if attention else 3), evaluations, max_polls,
            options.get("squash", False), call.args[3].dtype == torch.float16, C,
        )  # fmt: skip
        message = self.function(
            (ctypes.c_void_p * len(pointers))(*pointers), (ctypes.c_int64 * len(sizes))(*sizes),
            ctypes.c_float(1e-6), ctypes.c_int(blocks), ctypes.c_uint32(seed),
            ctypes.c_int(late), ctypes.c_int(sleep),
        )  # fmt: skip
        return y, int(status), message


@pytest.fixture(scope="module")
def emulated(tmp_path_factory):
    return Emulated(build_once("denoise_patch", tmp_path_factory))


def wide(call):
    return call.map(lambda t: t.double() if t.is_floating_point() else t)


# State, guidance, and how the head and its noise are.
CALLS = (
    ((1, 32), None, {"layers": 3, "projections": 2}),
    ((1, 32), 4.5, {"layers": 2, "keys": False}),
    ((3, 32), 2.0, {"layers": 3, "projections": 3, "squash": True}),
    ((2, 4, 32), None, {"squash": True}),
    ((5, 32), 3.0, {"projections": 3}),
    ((3, 9, 32), None, {"layers": 1, "steps": 1}),
    ((4, 4, 32), 1.5, {"layers": 1, "keys": False, "steps": 1}),
    ((1, 16, 32), 4.5, {"num_heads": HEADS, "steps": 1}),
    ((1, 4, 32), 2.0, {"num_heads": HEADS, "layers": 3, "projections": 2, "steps": 2}),
    ((2, 3, 32), None, {"num_heads": HEADS, "keys": False, "projections": 2, "steps": 2}),
    ((5, 5, 32), None, {"num_heads": HEADS, "layers": 1, "squash": True, "steps": 1}),
    ((7, 1, 32), 1.5, {"num_heads": HEADS, "layers": 1, "steps": 1}),
)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("shape", "cfg", "more"), CALLS)
def test_against_the_formula(emulated, shape, cfg, more, dtype):
    generator = torch.Generator().manual_seed(0)
    more = {"steps": 3, **more}
    call = head_call("", generator, dtype, shape, (C, H), cfg=cfg, **more)
    state, status, message = emulated(call)
    assert (status, message) == (0, None)
    eager, truth = (reference.run(*arguments_of(c))[0] for c in (call, wide(call)))
    compare("staged", state, eager, truth.float(), f"{list(shape)}, cfg {cfg}, {more}")


# State, guidance and heads of attention; the last kind has more heads of patches than blocks.
KINDS = {
    "mlp": ((1, 32), 3.0, 0),
    "attention": ((1, 2, 32), 3.0, HEADS),
    "attention of many": ((BLOCKS // HEADS + 1, 1, 32), None, HEADS),
}


def small_call(kind="mlp", steps=4):
    """One layer for few tokens; more stages than the ring has."""
    generator, (shape, cfg, heads) = torch.Generator().manual_seed(0), KINDS[kind]
    return head_call(
        "", generator, torch.bfloat16, shape, (C, H), layers=1, steps=steps, cfg=cfg,
        num_heads=heads,
    )  # fmt: skip


def is_right(kernel, call, expected, seed):
    """Every other time no block sleeps: while it does, late stores are no longer late."""
    state, status, message = kernel(call, seed=seed, sleep=seed % 2)
    return status == 0 and message is None and torch.equal(state, expected)


@pytest.mark.parametrize("first", range(0, 40, 20))
@pytest.mark.parametrize("kind", ["mlp", "attention"])
@pytest.mark.nightly
def test_every_order_gives_the_same_bits(emulated, kind, first):
    """Of threads, of stores that others see late, and with blocks that sleep."""
    call = small_call(kind, steps=4 if kind == "mlp" else 2)
    expected = emulated(call, late=False, sleep=False)[0]
    for seed in range(first, first + 20):
        assert is_right(emulated, call, expected, seed), seed


EXCHANGE = "cuda/denoise_patch/exchange_sm90.cuh"
BLOCK = "cuda/denoise_patch/denoise_patch_block_sm90.cuh"
KERNEL = "cuda/denoise_patch/denoise_patch_sm90.cuh"
ATTENTION = "cuda/denoise_patch/denoise_patch_attention_sm90.cuh"
AHEAD = "kAhead = kAttention ? 5 : 4"
FAULTS = {
    "no fence": ("mlp", EXCHANGE, "const { fence_gpu(); }", "const {}"),
    "ring too short": ("mlp", EXCHANGE, "attention ? 10 : 8", "attention ? 10 : 6"),
    "wiped too early": ("mlp", EXCHANGE, AHEAD, "kAhead = 6"),
    "wiped in the stage itself": ("mlp", EXCHANGE, AHEAD, "kAhead = 0"),
    "part of a word is enough": (
        "mlp", EXCHANGE, " && word.y != kNotThere && word.z != kNotThere", ""
    ),
    "stream not waited for": ("mlp", BLOCK, "if (!kLocal) exchange.wait(row, word, x[q]);", ""),
    "rows not waited for": ("mlp", BLOCK, "exchange.wait(from(i).row, from(i).word, seen[q]);", ""),
    "no barrier before the sum": (
        "mlp", KERNEL, "    __syncthreads();\n    if (reduces)", "    if (reduces)"
    ),
    "attention, no fence": ("attention", EXCHANGE, "const { fence_gpu(); }", "const {}"),
    "attention, ring of an MLP": ("attention", EXCHANGE, "attention ? 10 : 8", "attention ? 8 : 8"),
    "attention, wiped too early": ("attention", EXCHANGE, AHEAD, "kAhead = 8"),
    "attention, wiped in the stage itself": ("attention", EXCHANGE, AHEAD, "kAhead = 0"),
    "attention, no barrier after a head": (
        "attention of many", ATTENTION, "      __syncthreads();  // s.n is free again\n", ""
    ),
    "attention, no barrier before a head": (
        "attention", ATTENTION, "if (!block.all_here()) return false;", ""
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.nightly
def test_a_planted_fault_is_found(emulated, fault, tmp_path):
    kind, *edit = FAULTS[fault]
    plant(*edit, tmp_path)
    broken = Emulated(build("denoise_patch", tmp_path, tmp_path))
    call = small_call(kind, steps=6 if kind == "mlp" else 3)
    expected = emulated(call)[0]
    wrong = (seed for seed in range(60) if not is_right(broken, call, expected, seed))
    assert len(list(itertools.islice(wrong, 2))) == 2


def test_blocks_without_a_tile_are_too_many(emulated):
    """Nobody waits for a block that reads and does not write: it may be left behind."""
    call = small_call(steps=6)
    hung = (seed for seed in range(40) if emulated(call, seed=seed, blocks=40)[2] == b"hung")
    assert next(hung, None) is not None


def test_a_launch_that_waits_in_vain_ends_and_says_so(emulated):
    """A block that two tiles of the first product belong to is not there."""
    state, status, message = emulated(small_call(), blocks=BLOCKS - 1, max_polls=200)
    assert (status, message) == (1, None)
    assert state.isnan().all()


def test_a_head_of_integers_is_exact(emulated):
    """The norm of +-1 with mean 0 is exact, and so is silu(64): no result is rounded."""
    generator = torch.Generator().manual_seed(0)
    call = head_call(
        "", generator, torch.bfloat16, (4, 32), (C, H), projections=2, steps=1, packed=False,
        keys=False,
    )  # fmt: skip

    x, modulation, table, w_in, b_in, norm, norm_b, w1, b1, w2, b2, w_out, b_out = call.args
    for zero in (modulation, w_in, norm_b, w1, b1, w2, b2, b_out):
        zero.zero_()
    norm.fill_(1)
    b_in.copy_(1 - 2 * (torch.randperm(C, generator=generator) % 2))  # the stream, +-1
    b1[:, :H] = 64  # the hidden rows are 64 times what the second half of W1 gives
    for layer in range(2):
        modulation[:, :, (3 * layer + 2) * C : (3 * layer + 3) * C] = 1  # gates
        hidden = torch.randperm(H, generator=generator)[:C]  # where each channel goes and returns
        w1[layer, H + hidden, range(C)] = 1
        w2[layer, range(C), hidden] = 1 / 64
    w_out.copy_(torch.randint(-2, 3, w_out.shape, generator=generator))
    for integers in (x, table, call.kwargs["noise"]):
        integers.copy_(torch.randint(-3, 4, integers.shape, generator=generator))
    packed = [*call.args]
    packed[3], packed[11] = pack_weight(w_in), pack_weight(w_out)
    packed[7] = torch.stack([pack_weight(w, "swiglu") for w in w1])
    packed[9] = torch.stack([pack_weight(w) for w in w2])
    expected = reference.run(*arguments_of(call))[0]
    assert torch.equal(expected, expected.round())
    assert expected.unique().numel() > 50
    state, _, message = emulated(Call("", tuple(packed), call.kwargs))
    assert message is None
    compare("exact", state, expected, expected, "integers")
