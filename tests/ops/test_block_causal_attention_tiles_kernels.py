"""Tiles of the Triton kernels of block_causal_attention: how many, in which order, how loaded."""

import itertools
import json
import math
from unittest import mock

import pytest
import torch

from bitdance_kernels import Ranges, block_causal_attention, block_causal_ranges
from bitdance_kernels.attention.block_causal_attention import config
from bitdance_kernels.testing import Call, check_backend
from tests.cases import all_cases

triton_backend = pytest.importorskip("bitdance_kernels.attention.block_causal_attention.triton")
triton = pytest.importorskip("triton")
tl = pytest.importorskip("triton.language")
TensorDescriptor = pytest.importorskip("triton.tools.tensor_descriptor").TensorDescriptor
interpreter = pytest.importorskip("triton.runtime.interpreter")

CASE = all_cases()["block_causal_attention"]
BUILDER = interpreter.interpreter_builder
KERNELS = ("forward", "query_tile", "key_tile")


def _inputs(B, T, heads, D, dtype=torch.float32):
    H, Hkv = heads
    return [torch.randn(B, T, h, D).to(dtype) for h in (H, Hkv, Hkv)]


def _tiles(queries, keys, *, described=True):
    tile = config.Tile(queries, keys, 4, 1, described)
    return mock.patch.multiple(config, **dict.fromkeys(KERNELS, lambda shape: tile))


def _with_gradients(q, k, v, ranges):
    leaves = [x.detach().requires_grad_() for x in (q, k, v)]
    out = block_causal_attention(*leaves, ranges, backend="triton")
    cotangent = torch.linspace(-1, 1, out.numel()).reshape(out.shape).to(out.dtype)
    return [out.detach(), *torch.autograd.grad(out, leaves, cotangent)]


@pytest.mark.parametrize("described", [True, False])
@pytest.mark.parametrize(("prefix", "pairs"), [(63, 15), (64, 15), (127, 21)])
def test_tiles_begin_with_a_patch(prefix, pairs, described):
    """63 tokens and 16 patches of 16: 1 + 2 + .. + 5 pairs of tiles, two products each.

    Tiles from the first token on would make 19 pairs of them with 63 tokens before the patches.
    """
    ranges = block_causal_ranges(prefix, 16, 16)
    products = []
    original = interpreter.InterpreterBuilder.create_dot

    def create_dot(self, *args):
        products.append(1)
        return original(self, *args)

    with (
        _tiles(64, 64, described=described),
        mock.patch.object(interpreter.InterpreterBuilder, "create_dot", create_dot),
    ):
        block_causal_attention(
            *_inputs(1, prefix + 256, (1, 1), 16, torch.float16), ranges, backend="triton"
        )
    assert len(products) == 2 * pairs


SEQUENCES = {
    "P = 16": (block_causal_ranges(20, 5, 16), (4, 2), 16, torch.float16),
    "odd sizes": (block_causal_ranges(5, 7, 9, tokens=63), (2, 1), 24, torch.float16),
    "one token": (block_causal_ranges(1, 0, 1), (1, 1), 8, torch.float16),
    "sliding": (
        Ranges(torch.arange(70).int(), torch.arange(70).int() + 20), (3, 1), 16, torch.float16
    ),
    "float32": (block_causal_ranges(11, 5, 7), (4, 2), 20, torch.float32),
}  # fmt: skip


@pytest.mark.parametrize("name", SEQUENCES)
def test_described_tiles(name):
    """Outputs and gradients as close to float64 as the formulas, for heads wider than D too."""
    ranges, heads, D, dtype = SEQUENCES[name]
    inputs = _inputs(2, len(ranges.start), heads, D, dtype)
    with _tiles(32, 16):
        check_backend(CASE, Call(name, (*inputs, ranges)), "triton")


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_described_tiles_hide_what_is_not_seen(dtype):
    """Tiles are loaded whole; NaN in keys and values that no query of a tile sees stays out."""
    # Keys 10 .. 14 and 40 .. 44 are seen by none, queries 3 and 20 see nothing.
    start = torch.tensor([0] * 3 + [10] * 9 + [15] * 8 + [40] + [45] * 12, dtype=torch.int32)
    end = torch.tensor([10] * 12 + [40] * 9 + [60] * 12, dtype=torch.int32)
    ranges = Ranges(start, end, keys=70)
    q = torch.randn(1, 33, 2, 16).to(dtype)
    k, v = (torch.randn(1, 70, 1, 16).to(dtype) for _ in range(2))
    dirty = [x.clone() for x in (q, k, v)]
    unseen = [*range(10, 15), *range(40, 45), *range(60, 70)]
    dirty[1][:, unseen], dirty[2][:, unseen] = math.nan, math.inf
    blind = (start >= end).nonzero().flatten()
    assert len(blind) > 1
    dirty[0][:, blind] = math.nan
    with _tiles(16, 16):
        clean, found = _with_gradients(q, k, v, ranges), _with_gradients(*dirty, ranges)
    for a, b in zip(clean, found, strict=True):
        assert b.isfinite().all()
        assert torch.equal(a, b)


@pytest.mark.parametrize("described", [True, False])
def test_any_order_of_programs_gives_the_same_bits(described):
    ranges = block_causal_ranges(7, 4, 8)
    inputs = _inputs(2, 39, (4, 2), 16, torch.float16)
    original = BUILDER.set_grid_idx

    def shuffled(x, y, z):
        count = BUILDER.grid_dim[0]
        order = torch.randperm(count, generator=torch.Generator().manual_seed(count)).tolist()
        original(order[x], y, z)

    with _tiles(16, 16, described=described):
        plain = _with_gradients(*inputs, ranges)
        with mock.patch.object(BUILDER, "set_grid_idx", shuffled):
            permuted = _with_gradients(*inputs, ranges)
    for a, b in zip(plain, permuted, strict=True):
        assert torch.equal(a, b)


def _parts(data):
    """Three bfloat16 parts of float32 values, each the rest's nearest."""
    rest, parts = torch.from_numpy(data.copy()), []
    for _ in range(3):
        parts.append(rest.bfloat16().float())
        rest = rest - parts[-1]
    return parts


@pytest.mark.parametrize("D", [16, 64])
def test_float32_as_six_products_keeps_the_rule_of_errors(D):
    """Products as "bf16x6" computes them: small ones first, those of the largest parts last."""
    calls = []

    def six_products(self, a, b, d, *_):
        assert a.dtype.scalar == b.dtype.scalar == interpreter.tl.float32
        calls.append(1)
        left, right = _parts(a.data), _parts(b.data)
        total = torch.zeros(left[0].shape[0], right[0].shape[1])
        for i, j in ((1, 1), (2, 0), (0, 2), (1, 0), (0, 1), (0, 0)):
            total = total + left[i] @ right[j]
        return interpreter.TensorHandle(total.numpy() + d.data, d.dtype.scalar)

    ranges = block_causal_ranges(15, 8, 16)
    inputs = _inputs(2, 143, (2, 1), D)
    with mock.patch.object(interpreter.InterpreterBuilder, "create_dot", six_products):
        check_backend(CASE, Call("six products", (*inputs, ranges)), "triton")
    assert calls


def test_layouts_that_a_descriptor_takes():
    whole = torch.zeros(2, 10, 3, 4, 16, dtype=torch.bfloat16)
    describable = triton_backend._describable
    assert describable(whole[:, :, 0])
    assert describable(whole[:, 3:, 1])
    assert describable(torch.zeros(3, 2, 1, 5, dtype=torch.float16)[:1, :1])
    for no, why in (
        (whole[:, :, 0].float(), "float32"),
        (whole[..., 1:9][:, :, 0], "an address that is not a multiple of 16 bytes"),
        (torch.zeros(2, 10, 3, 20, dtype=torch.float16)[..., :16], "strides of 40 bytes"),
        (whole[:1, :, 0].expand(2, -1, -1, -1), "no stride"),
        (whole[:, :0, 0], "nothing"),
    ):
        assert not describable(no), why


def test_descriptors_cover_a_head_alone():
    """So what is outside of a head is 0, and not a neighbour; coordinates fit 32 bits."""
    x = torch.zeros(2, 10, 3, 40, dtype=torch.float16)[..., :24]
    described = triton_backend._descriptor(x, 16)
    assert described.shape == [2, 3, 10, 24]
    assert described.strides == [1200, 40, 120, 1]
    assert described.block_shape == [1, 1, 16, 32]


SHAPES = [
    config.Shape(width, size, keys, capability, size == 2 and capability >= 90)
    for width, size, keys, capability in itertools.product(
        (16, 64, 128), (2, 4), (319, 16384), (0, 80, 89, 90, 100, 120)
    )
]


@pytest.mark.parametrize("kernel", KERNELS)
def test_rule_for_tiles(kernel):
    """A tile is described only where it can be, and is the first of the candidates."""
    choose = getattr(config, kernel)
    for shape in SHAPES:
        tile, plain = choose(shape), choose(shape._replace(describable=False))
        assert not plain.described
        assert tile.described <= shape.describable
        assert config.candidates(kernel, shape)[0] == tile
        assert len(set(config.candidates(kernel, shape))) == len(config.candidates(kernel, shape))
        assert tile.precision == "ieee" or shape.capability >= 80
    described = SHAPES[0]._replace(capability=90, describable=True)
    assert choose(described).described


@pytest.fixture
def measured(tmp_path, monkeypatch):
    """Takes the content of the table."""
    file = tmp_path / "measured.json"
    monkeypatch.setattr(config, "MEASURED", file)
    config.measured.cache_clear()
    yield lambda content: file.write_bytes(
        content if isinstance(content, bytes) else json.dumps(content).encode()
    )
    config.measured.cache_clear()


ENTRY = {"kernel": "forward", "width": 64, "size": 2, "long": True,
         "tile": [128, 32, 8, 4, True, "ieee"]}  # fmt: skip


def test_a_measured_tile_is_for_its_card_and_shape(measured):
    measured({"card": [ENTRY]})
    shape = config.Shape(64, 2, 4096, 90, True, "card")
    assert config.forward(shape) == config.Tile(128, 32, 8, 4, True)
    assert config.query_tile(shape) == config._query_tile(shape)
    for other in (
        shape._replace(card="other"), shape._replace(keys=319), shape._replace(width=128),
        shape._replace(describable=False),
    ):  # fmt: skip
        assert config.forward(other) == config._forward(other)


@pytest.mark.parametrize(
    "content",
    [{"card": [3]}, {"card": [{"kernel": "forward"}]}, [ENTRY], b"\xff", b"[" * 100_000, b"{"],
    ids=range(6),
)
def test_a_table_that_is_not_as_it_must_be(measured, content):
    measured(content)
    with pytest.raises(ValueError, match=r"measured.json: card must be a list of objects"):
        config.forward(config.Shape(64, 2, 4096, 90, True, "card"))


@triton.jit
def _load_kernel(x, out, row):
    tl.store(out + tl.arange(0, 16), tl.sum(x.load([row, 0]), axis=1))


def test_the_tests_refuse_a_tile_before_the_first_row():
    """As a card does, and the interpreter would not."""
    x, out = torch.randn(40, 16), torch.empty(16)
    described = TensorDescriptor(x, [40, 16], [16, 1], [16, 16])
    _load_kernel[(1,)](described, out, 30)  # past the last row a tile is 0
    torch.testing.assert_close(out[:10], x[30:].sum(1))
    with pytest.raises(interpreter.InterpreterError, match="negative coordinates"):
        _load_kernel[(1,)](described, out, -1)
