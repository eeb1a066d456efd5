"""The transformer on the CPU with weights in panels: the same results, in fewer operations."""

import copy

import pytest
import torch

from bitdance.models.kv_cache import KVCache
from bitdance.models.transformer import Transformer
from bitdance.sampling import panel_products
from bitdance.sampling.panel_products import panel_transformer
from bitdance.sampling.weights import JoinedLinear, PackedLinear
from bitdance_kernels import CpuGraph, block_causal_ranges, use_backend
from tests.model.helpers.tiny import tiny_sampler

LABELS = torch.tensor([1, 3, 0])
SETTINGS = {"num_inference_steps": 2, "guidance_scale": 2.0, "seeds": [0, 1, 2]}
NATIVE = CpuGraph.unavailable() is None
needs_native = pytest.mark.skipif(not NATIVE, reason="the C++ module was not built here")


def _transformer():
    torch.manual_seed(0)
    layers = Transformer(2, 32, 2)
    with torch.no_grad():
        for parameter in layers.parameters():
            parameter.normal_(std=0.3)
    return layers


def _decoded(trunk):
    """Outputs of the first tokens of two rows and of three steps after them."""
    torch.manual_seed(1)
    freqs = torch.randn(20, 8, 2)
    cache = KVCache.allocate(2, 2, 20, 2, 16, dtype=torch.float32, device="cpu")
    ranges = block_causal_ranges(3, 1, 3)
    with torch.no_grad():
        first = trunk.decode(torch.randn(2, 6, 32), freqs, cache, ranges)
        return [first, *(trunk.decode(torch.randn(2, 3, 32), freqs, cache) for _ in range(3))]


@needs_native
def test_decodes_what_the_transformer_decodes():
    layers = _transformer()
    exact = _decoded(copy.deepcopy(layers))
    trunk = panel_transformer(layers, 16, torch.float32)
    trunk.load()
    for actual, expected in zip(_decoded(trunk), exact, strict=True):
        torch.testing.assert_close(actual, expected)
    with torch.no_grad():
        for parameter in layers.parameters():
            parameter.mul_(-0.5)
    trunk.load()
    for actual, expected in zip(_decoded(trunk), _decoded(layers), strict=True):
        torch.testing.assert_close(actual, expected)
    held = {p.data_ptr() for p in layers.parameters() if p.dim() == 1}
    assert held == {p.data_ptr() for p in trunk._layers.parameters()}, "norms are the model's own"


@needs_native
def test_which_transformers_have_panels(monkeypatch):
    layers = _transformer()
    assert panel_transformer(layers, 4, torch.float32) is not None
    assert panel_transformer(layers, 3, torch.float32) is None, "few rows"
    assert panel_transformer(layers, 16, torch.bfloat16) is None, "autocast"
    assert panel_transformer(copy.deepcopy(layers).double(), 16, torch.float64) is None
    assert panel_transformer(copy.deepcopy(layers).to("meta"), 16, torch.float32) is None
    assert panel_transformer(Transformer(1, 24, 2), 16, torch.float32) is None, "rows of 24"
    with use_backend("reference"):
        assert panel_transformer(layers, 16, torch.float32) is None
    size = sum(p.nbytes for p in layers.parameters() if p.dim() == 2)
    monkeypatch.setattr(panel_products, "MAX_BYTES", size)
    assert panel_transformer(layers, 16, torch.float32) is not None
    monkeypatch.setattr(panel_products, "MAX_BYTES", size - 1)
    assert panel_transformer(layers, 16, torch.float32) is None


@needs_native
def test_joined_layers_are_panels_one_after_another():
    layers = [torch.nn.Linear(12, features) for features in (16, 48)]
    x = torch.randn(5, 12)
    joined = JoinedLinear(layers, torch.float32)
    joined.load()
    assert joined.weight.shape == (4, 12, 16)
    expected = torch.cat([layer(x) for layer in layers], dim=-1).detach()
    torch.testing.assert_close(joined(x), expected)
    torch.testing.assert_close(joined(x, out=joined.empty(5)), expected)
    odd = JoinedLinear([layers[0], torch.nn.Linear(12, 8)], torch.float32)
    assert odd.weight.shape == (24, 12)
    with use_backend("reference"):
        assert JoinedLinear(layers, torch.float32).weight.shape == (64, 12)


@torch.no_grad()
def test_changed_weights_of_the_transformer_are_seen():
    sampler = tiny_sampler()
    sampler.sample(LABELS, **SETTINGS)
    for parameter in (
        sampler.model.layers[0].attention.wqkv.weight,
        sampler.model.layers[1].feed_forward.w2.weight,
        sampler.model.layers[1].ffn_norm.weight,
    ):
        parameter.data.mul_(-3)  # behind autograd's back
        tokens = sampler.sample(LABELS, **SETTINGS)
        assert torch.equal(tokens, sampler.sample(LABELS, **SETTINGS, use_kernels=False))


@needs_native
def test_panels_are_packed_in_memory_that_stays():
    layer = torch.nn.Linear(20, 32)
    packed = PackedLinear([layer], torch.float32, "panels")
    addresses = packed.weight.data_ptr(), packed.bias.data_ptr()
    for _ in range(2):
        torch.nn.init.normal_(layer.weight)
        packed.load()
        assert torch.equal(packed.weight[1, :, 3], layer.weight[19])
        assert (packed.weight.data_ptr(), packed.bias.data_ptr()) == addresses
