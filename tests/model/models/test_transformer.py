"""The transformer's parts against definitions written out here, and its cache."""

import math

import pytest
import torch

from bitdance.models.config import PRESETS
from bitdance.models.kv_cache import KVCache
from bitdance.models.token_order import generation_order
from bitdance.models.transformer import Transformer, TransformerBlock, cell_centers, rope_table_2d
from bitdance_kernels import block_causal_ranges

DIM, HEADS = 24, 3
HEAD_DIM = DIM // HEADS
LAYOUTS = pytest.mark.parametrize(
    ("cls", "P", "side"), [(3, 1, 3), (1, 4, 4), (5, 4, 4), (2, 16, 8), (4, 64, 16), (2, 9, 3)]
)


def _layout(cls, P, side):
    """Rotations (in float64, from the definition) and mask of a training sequence."""
    order = generation_order((side, side), P, "patch").tolist()
    position = [(0.0, 0.0)] * (cls + P - 1)
    position += [(k % side + 1.5, k // side + 1.5) for k in order[: side * side - P]]
    quarter = HEAD_DIM // 4
    angles = [
        [place * 10000 ** (-2 * i / (HEAD_DIM / 2)) for place in xy for i in range(quarter)]
        for xy in position
    ]
    angles = torch.tensor(angles, dtype=torch.float64)
    freqs = torch.stack([angles.cos(), angles.sin()], dim=-1)
    return freqs, block_causal_ranges(cls - 1, side * side // P, P)


def _transformer(depth=2):
    torch.manual_seed(0)
    layers = Transformer(depth, DIM, HEADS).double()
    with torch.no_grad():
        for parameter in layers.parameters():
            parameter.normal_(std=0.3)
    return layers


def _cache(rows, tokens, depth=2, dtype=torch.float64):
    return KVCache.allocate(depth, rows, tokens, HEADS, HEAD_DIM, dtype=dtype, device="cpu")


def _sees(i, j, cls, P):
    """Whether position i may look at position j: causal before the last class token, then blocks.

    The first block is the last class token and all P - 1 queries.
    """
    block_of = [n if n < cls - 1 else cls - 1 + (n - cls + 1) // P for n in (i, j)]
    return block_of[1] <= block_of[0]


def _naive_block(block, x, freqs, cls, P):
    """A block from its definition, head by head and with a dense mask."""
    T = len(freqs)
    mask = torch.tensor([[_sees(i, j, cls, P) for j in range(T)] for i in range(T)])
    turns = torch.view_as_complex(freqs)

    def norm(x, weight):
        return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * weight

    def rotate(x):
        pairs = torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous())
        return torch.view_as_real(pairs * turns).flatten(-2)

    q, k, v = (norm(x, block.attention_norm.weight) @ block.attention.wqkv.weight.T).chunk(3, -1)
    heads = []
    for h in range(HEADS):
        part = slice(h * HEAD_DIM, (h + 1) * HEAD_DIM)
        scores = rotate(q[..., part]) @ rotate(k[..., part]).mT / math.sqrt(HEAD_DIM)
        heads.append(scores.masked_fill(~mask, -torch.inf).softmax(-1) @ v[..., part])
    x = x + torch.cat(heads, dim=-1) @ block.attention.wo.weight.T
    h1, h2 = (norm(x, block.ffn_norm.weight) @ block.feed_forward.w1.weight.T).chunk(2, -1)
    return x + (h1 * torch.sigmoid(h1) * h2) @ block.feed_forward.w2.weight.T


@LAYOUTS
def test_a_block_is_what_its_definition_says(cls, P, side):
    (block,) = _transformer(depth=1)
    freqs, ranges = _layout(cls, P, side)
    x = torch.randn(2, len(freqs), DIM, dtype=torch.float64, requires_grad=True)
    grad = torch.randn_like(x)
    expected, actual = _naive_block(block, x, freqs, cls, P), block(x, freqs, ranges)
    torch.testing.assert_close(actual, expected)
    inputs = [x, *block.parameters()]
    torch.testing.assert_close(
        torch.autograd.grad(actual, inputs, grad), torch.autograd.grad(expected, inputs, grad)
    )


@LAYOUTS
def test_rotations_of_a_sequence(cls, P, side):
    order = generation_order((side, side), P, "patch")
    fed = cell_centers(side, side)[order[: side * side - P]]
    table = rope_table_2d(fed, HEAD_DIM, cls + P - 1)
    assert table.dtype == torch.float32
    torch.testing.assert_close(table, _layout(cls, P, side)[0].float())
    unrotated = torch.tensor([1.0, 0.0]).expand(cls + P - 1, HEAD_DIM // 2, 2)
    assert torch.equal(table[: cls + P - 1], unrotated)


@LAYOUTS
def test_steps_with_the_cache_equal_one_pass(cls, P, side):
    layers = _transformer()
    freqs, ranges = _layout(cls, P, side)
    x = torch.randn(3, len(freqs), DIM, dtype=torch.float64)
    cache = _cache(3, len(freqs))
    for keys, values in cache.layers:  # what an earlier run left behind
        keys.fill_(torch.nan)
        values.fill_(torch.nan)
    prefix = cls + P - 1
    with torch.no_grad():
        steps = [layers.decode(x[:, :prefix], freqs, cache, block_causal_ranges(cls - 1, 1, P))]
        steps += [layers.decode(part, freqs, cache) for part in x[:, prefix:].split(P, dim=1)]
        whole = layers(x, freqs, ranges)
    assert cache.lengths.tolist() == [len(freqs)] * 3
    torch.testing.assert_close(torch.cat(steps, dim=1), whole)


def test_rows_of_different_lengths_share_a_step():
    """Each row is continued as it would be alone."""
    layers = _transformer()
    freqs, _ = _layout(2, 4, 8)
    lengths, new = [5, 13, 9], torch.randn(3, 4, DIM, dtype=torch.float64)
    history = torch.randn(3, 13, DIM, dtype=torch.float64)
    together, alone = _cache(3, len(freqs)), []
    with torch.no_grad():
        for row, length in enumerate(lengths):
            cache = _cache(1, len(freqs))
            mask = block_causal_ranges(length, 0, 1)
            layers.decode(history[row : row + 1, :length], freqs, cache, mask)
            for (keys, values), (k, v) in zip(together.layers, cache.layers, strict=True):
                keys[row], values[row] = k[0], v[0]
            alone.append(layers.decode(new[row : row + 1], freqs, cache))
        together.lengths.copy_(torch.tensor(lengths))
        got = layers.decode(new, freqs, together)
    assert together.lengths.tolist() == [length + 4 for length in lengths]
    torch.testing.assert_close(got, torch.cat(alone))


def test_cells_are_counted_row_by_row():
    assert cell_centers(2, 3).tolist() == [
        [0.5, 0.5], [1.5, 0.5], [2.5, 0.5], [0.5, 1.5], [1.5, 1.5], [2.5, 1.5],
    ]  # fmt: skip


def test_rotations_need_a_fitting_width():
    with pytest.raises(ValueError, match="head_dim must be a multiple of 4, got 6"):
        rope_table_2d(torch.zeros(3, 2), 6)


@pytest.mark.parametrize(
    ("preset", "hidden"), [("B-1x", 2048), ("B-16x", 2048), ("L-1x", 2816), ("H-1x", 3584)]
)
def test_published_widths(preset, hidden):
    config = PRESETS[preset]
    with torch.device("meta"):
        block = TransformerBlock(config.dim, config.n_head)
    assert block.feed_forward.w2.in_features == hidden
    assert config.dim // config.n_head == 64


def test_cache_memory_stays():
    cache = _cache(4, 6)
    pointers = [tensor.data_ptr() for layer in cache.layers for tensor in layer]
    cache.advance(3)
    part = cache.first(2)
    part.advance(2)
    assert cache.lengths.tolist() == [5, 5, 3, 3]
    part.reset()
    assert cache.lengths.tolist() == [0, 0, 3, 3]
    assert [tensor.data_ptr() for layer in part.layers for tensor in layer] == pointers
    assert [tensor.shape for tensor in part.layers[0]] == [(2, 6, HEADS, HEAD_DIM)] * 2
    assert part.layers[0][0].is_contiguous()


def test_what_a_cache_fits():
    cache, cpu = _cache(4, 6, dtype=torch.float32), torch.device("cpu")
    for rows, tokens, dtype, device, fits in (
        (4, 6, torch.float32, cpu, True),
        (1, 6, torch.float32, cpu, True),
        (5, 6, torch.float32, cpu, False),
        (4, 5, torch.float32, cpu, True),
        (4, 7, torch.float32, cpu, False),
        (4, 6, torch.bfloat16, cpu, False),
        (4, 6, torch.float32, torch.device("meta"), False),
    ):
        assert cache.fits(rows, tokens, dtype, device) == fits


def test_a_cache_from_inference_mode_serves_outside_of_it():
    with torch.inference_mode():
        cache = _cache(1, 4)
    cache.advance(1)
    cache.layers[0][0][0] = 1.0
    assert cache.lengths.tolist() == [1]
