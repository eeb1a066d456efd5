"""Decode steps of the trunks with packed weights: the same results, in few launches."""

import contextlib
import dataclasses
import itertools

import pytest
import torch

from bitdance.models.kv_cache import KVCache
from bitdance.models.qwen3 import Qwen3Config, Qwen3Model, rope_frequencies, rope_table
from bitdance.models.transformer import Transformer
from bitdance.sampling import trunk_products
from bitdance.sampling.config import use_plans
from bitdance.sampling.trunk_products import (
    PackedQwen3,
    PackedTransformer,
    packed_qwen3,
    packed_transformer,
)
from bitdance_kernels import block_causal_ranges
from tests.model.helpers.launches import Launches
from tests.model.helpers.tiny import PACKABLE, tiny_sampler
from tests.model.models import test_text_to_image as text_to_image

QWEN = Qwen3Config(
    hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
    intermediate_size=48, vocab_size=50, head_dim=16, rms_norm_eps=1e-5,
)  # fmt: skip
LABELS = torch.tensor([1, 3, 0])
SETTINGS = {"num_inference_steps": 2, "guidance_scale": 2.0, "seeds": [0, 1, 2]}


def _random(module):
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(std=0.3)
    return module


def _copy(cache):
    layers = tuple((keys.clone(), values.clone()) for keys, values in cache.layers)
    return KVCache(layers, cache.lengths.clone())


def _begun_transformer():
    """A transformer, its angles, and a cache with the first tokens of two rows."""
    layers = _random(Transformer(2, 32, 2).double())
    freqs = torch.randn(20, 8, 2, dtype=torch.float64)
    cache = KVCache.allocate(2, 2, 20, 2, 16, dtype=torch.float64, device="cpu")
    layers.decode(torch.randn(2, 6, 32).double(), freqs, cache, block_causal_ranges(3, 1, 3))
    return layers, freqs, cache


def _begun_qwen(**changes):
    """A language model, its angles, and a cache with prompts of two lengths."""
    trunk = _random(Qwen3Model(dataclasses.replace(QWEN, **changes)).double().eval())
    freqs = rope_table(20, rope_frequencies(16, QWEN.rope_theta))
    cache = trunk.allocate(2, 20)
    prompts = [torch.randn(n, 32).double() for n in (4, 7)]
    trunk.prefill(prompts, torch.tensor([1, 0]), freqs, cache)
    return trunk, freqs, cache


@pytest.mark.parametrize("P", [1, 4])
@torch.no_grad()
def test_steps_of_the_transformer(P):
    layers, freqs, cache = _begun_transformer()
    other, packed = _copy(cache), PackedTransformer(layers)
    packed.load()
    for _ in range(2):
        x = torch.randn(2, P, 32).double()
        expected = layers.decode(x, freqs, cache)
        torch.testing.assert_close(packed.decode(x, freqs, other), expected)
    torch.testing.assert_close(other.layers, cache.layers)
    assert torch.equal(other.lengths, cache.lengths)


@pytest.mark.parametrize("bias", [False, True])
@torch.no_grad()
def test_steps_of_the_language_model(bias):
    trunk, freqs, cache = _begun_qwen(attention_bias=bias)
    other, packed = _copy(cache), PackedQwen3(trunk.layers)
    packed.load()
    for _ in range(2):
        x = torch.randn(2, 4, 32).double()
        expected = trunk.decode(x, freqs, cache)
        torch.testing.assert_close(trunk.norm(packed.decode(x, freqs, other)), expected)
    torch.testing.assert_close(other.layers, cache.layers)
    assert torch.equal(other.lengths, cache.lengths)


# Of a layer. On a card block_decode_attention has a second launch where it splits the keys: for few
# rows of more keys than ``MAX_UNSPLIT_KEYS`` of its config.
_LAYER = {
    "bitdance::rms_norm_qkv": 1,
    "bitdance::block_decode_attention": 1,
    "bitdance::linear_gated_residual_moments": 2,
    "bitdance::rms_norm_linear_swiglu": 1,
}


@pytest.mark.parametrize("kind", [PackedTransformer, PackedQwen3])
@torch.no_grad()
def test_launches_of_a_layer(kind):
    """All of a step but two sums of lengths are these five of each layer."""
    begun = _begun_transformer() if kind is PackedTransformer else _begun_qwen()
    model, freqs, cache = begun
    packed = kind(getattr(model, "layers", model))
    packed.load()
    x = torch.randn(2, 4, 32).double()
    with Launches() as launches:
        packed.decode(x, freqs, cache)
    expected = {name: 2 * times for name, times in _LAYER.items()}
    assert sum(expected.values()) == 2 * 5
    expected |= {"aten::add": 1, "aten::add_": 1}
    assert {name: launches.names.count(name) for name in launches.names} == expected


@torch.no_grad()
def test_lengths_are_counted_once_a_step():
    """By the library's products too."""
    layers, freqs, cache = _begun_transformer()
    with Launches() as launches:
        layers.decode(torch.randn(2, 4, 32).double(), freqs, cache)
    sums = 1 + 2 * len(layers)  # of lengths, and of both branches of a layer
    assert launches.names.count("aten::add") == sums


@torch.no_grad()
def test_launches_of_a_step_overlap(monkeypatch):
    open_contexts, seen = [0], []

    @contextlib.contextmanager
    def recorded():
        open_contexts[0] += 1
        yield
        open_contexts[0] -= 1

    def noted(*arguments, **named):
        seen.append(open_contexts[0])
        return qkv(*arguments, **named)

    qkv = trunk_products.rms_norm_qkv
    monkeypatch.setattr(trunk_products, "overlapping_launches", recorded)
    monkeypatch.setattr(trunk_products, "rms_norm_qkv", noted)
    layers, freqs, cache = _begun_transformer()
    packed = PackedTransformer(layers)
    packed.load()
    packed.decode(torch.randn(2, 1, 32).double(), freqs, cache)
    assert (seen, open_contexts) == ([1, 1], [0])


@pytest.mark.parametrize("P", [1, 4])
@torch.no_grad()
def test_samples_are_those_of_the_plain_path_and_changed_weights_are_seen(P):
    sampler = tiny_sampler(parallel_num=P, **PACKABLE)
    blocks = list(sampler.model.layers)
    with use_plans(head="packed", trunk="packed"):
        for parameter in (None, blocks[0].attention.wqkv.weight, blocks[1].feed_forward.w2.weight):
            if parameter is not None:
                parameter.data.mul_(-3)
            tokens = sampler.sample(LABELS, **SETTINGS)
            (run,) = sampler.workspaces.idle[0].runs.values()
            assert isinstance(run.sequence.trunk, PackedTransformer)
            plain = tiny_sampler(parallel_num=P, **PACKABLE)
            plain.model.load_state_dict(sampler.model.state_dict())
            assert torch.equal(tokens, plain.sample(LABELS, **SETTINGS, use_kernels=False))


@pytest.mark.parametrize(
    ("P", "plan"), list(itertools.product([1, 4], ["library", "packed", "persistent"]))
)
def test_a_batch_may_be_empty(P, plan):
    sampler = tiny_sampler(parallel_num=P, **PACKABLE)
    trunk = "library" if plan == "library" else "packed"
    with use_plans(head=plan, trunk=trunk):
        tokens = sampler.sample(LABELS[:0], **{**SETTINGS, "seeds": []})
    assert tokens.shape == (0, 16, 16)


def test_images_of_prompts_are_the_same():
    model = text_to_image.tiny(
        llm=QWEN,
        head=dataclasses.replace(text_to_image.HEAD, ch_cond=32, ch_target=16),
        autoencoder=PACKABLE["autoencoder"],
    )
    expected = text_to_image.sample(model)
    with use_plans(head="packed", t2i_trunk="packed"):
        assert torch.equal(text_to_image.sample(model), expected)
    runs = text_to_image.sampler_of(model).workspaces.idle[0].runs.values()
    assert {type(run.sequence.trunk) for run in runs} == {type(None), PackedQwen3}


def test_the_trunk_stays_where_its_plan_is_another():
    layers, (trunk, *_) = Transformer(1, 32, 2), _begun_qwen()
    assert packed_transformer(layers, 8, torch.float32) is None
    assert packed_qwen3(trunk, 8, torch.float64) is None
    with use_plans(trunk="packed", t2i_trunk="packed"):
        assert isinstance(packed_transformer(layers, 8, torch.float32), PackedTransformer)
        assert isinstance(packed_qwen3(trunk, 8, torch.float64), PackedQwen3)
        # Under autocast, parameters have another dtype than the products.
        assert packed_transformer(layers, 8, torch.bfloat16) is None
        with pytest.raises(ValueError, match="choose_plan: plan must be 'library' for 129 rows"):
            packed_transformer(layers, 129, torch.float32)
