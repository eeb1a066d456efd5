"""Heads, trunk and sampler on the device code of the packed products, emulated."""

import itertools

import pytest
import torch

from bitdance.models.kv_cache import KVCache
from bitdance.models.quantization import quantize_blocks
from bitdance.models.qwen3 import Qwen3Config, Qwen3Model, rope_frequencies, rope_table
from bitdance.sampling import packed_products
from bitdance.sampling.config import use_plans
from bitdance.sampling.flow_sampler import Schedule, denoise
from bitdance.sampling.head_runner import HeadRunner, PlainHead
from bitdance.sampling.trunk_products import PackedQwen3, PackedTransformer
from bitdance_kernels import noise_keys
from bitdance_kernels.testing import compare
from tests.emulated import needs_compiler
from tests.emulated.backends import build_all, emulated_card
from tests.model.helpers import golden_head
from tests.model.helpers.golden_cases import Case, case_names, kind_of
from tests.model.helpers.tiny import PACKABLE, tiny_head, tiny_patch, tiny_sampler

pytestmark = [needs_compiler, pytest.mark.slow]

QWEN = Qwen3Config(
    hidden_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
    intermediate_size=96, vocab_size=50, head_dim=32, rms_norm_eps=1e-5,
)  # fmt: skip


@pytest.fixture(scope="module")
def libraries(tmp_path_factory):
    return build_all(tmp_path_factory)


def final_state(way, schedule, cond, **settings):
    return denoise(way, schedule, cond, keys=noise_keys(3, range(4)), **settings)


FLOAT8 = pytest.mark.parametrize("float8", [False, True])


@FLOAT8
@pytest.mark.parametrize("architecture", ["mlp", "transformer", "t2i", "t2i, SiLU"])
@torch.no_grad()
def test_heads_are_as_exact_as_by_the_library(architecture, float8, libraries):
    """Whole patches in bfloat16, with guidance, against the network in float64."""
    head = tiny_head(architecture, ch_target=16, depth_latent=3).net
    if float8:
        quantize_blocks("test", [head.res_blocks], "fp8_weight_only")
    patch = tiny_patch(architecture)
    cond = torch.randn(8, *([] if patch is None else [patch]), 24)
    half, wide = head.bfloat16(), None
    schedule = Schedule.of(half, 4)
    states = {}
    for plan in ("library", "packed"):
        runner = HeadRunner(half, 8, patch, schedule.times, torch.bfloat16, plan)
        runner.load()
        with emulated_card(libraries) as launches:
            states[plan] = final_state(runner, schedule, cond.bfloat16(), cfg=2.0)
        assert bool(launches) == (plan == "packed")
    wide = head.double()
    plain = PlainHead(wide, schedule.times)
    truth = final_state(plain, schedule, cond.bfloat16().double(), cfg=2.0)
    compare("staged", states["packed"], states["library"], truth, architecture)


ARCHITECTURES = {
    "head, ImageNet per token": "mlp",
    "head, ImageNet parallel": "transformer",
    "head, text-to-image": "t2i",
}


def golden_heads():
    """(name of a case, its architecture) of official heads whose weights can be packed."""
    for name in case_names():
        if architecture := ARCHITECTURES.get(kind_of(name)):
            network = golden_head.load(Case.load(name), architecture).net
            if all(width % 16 == 0 for width in packed_products.widths(network)):
                yield name, architecture


@pytest.mark.parametrize(("name", "architecture"), list(golden_heads()))
@torch.no_grad()
def test_official_heads_are_as_exact_as_by_the_library(name, architecture, libraries):
    """Samples of the official code, in float16: what is left of them is rounding."""
    case = Case.load(name)
    head = golden_head.load(case, architecture).half()
    found = {"library": [], "packed": [], "official": []}
    for p, settings in itertools.product(golden_head.patches(case), case.params["samples"]):
        where = f"{p}sample.{settings['name']}"
        keys = [f"out.{where}", f"out.{where}.final_net"]
        if keys[0] not in case:
            continue
        cond = case[f"in.{p}cond"].half()
        for plan in ("library", "packed"):
            with use_plans(head=plan), emulated_card(libraries) as launches:
                results = golden_head.sample(case, head, cond, settings, where)
            assert bool(launches) == (plan == "packed")
            found[plan] += [results[key].float().flatten() for key in keys]
        found["official"] += [case[key].flatten() for key in keys]
    # All together, so that the largest error is no matter of luck.
    packed, library, official = (torch.cat(found[k]) for k in ("packed", "library", "official"))
    compare("staged", packed, library, official.double(), name)


@torch.no_grad()
def test_a_chain_begins_with_a_launch_that_waits(libraries):
    """And with no other one: its kernels are those of all evaluations of an AR step."""
    head = tiny_head("mlp", ch_target=16, depth_latent=6).net.bfloat16()
    schedule = Schedule.of(head, 3)
    runner = HeadRunner(head, 8, None, schedule.times, torch.bfloat16, "packed")
    runner.load()
    with emulated_card(libraries) as launches:
        final_state(runner, schedule, torch.randn(8, 24).bfloat16(), cfg=2.0)
    early = [programmatic for _, programmatic in launches]
    assert early == [0] + [1] * (4 * 14)  # the first one projects the initial state
    names = [name for name, _ in launches]
    assert names[1:] == (["skinny_product"] * 13 + ["denoise_step_linear"]) * 4


@FLOAT8
@pytest.mark.parametrize("P", [1, 4])
@torch.no_grad()
def test_a_trunk_step_is_as_exact_as_by_the_library(P, float8, libraries):
    model = tiny_sampler(parallel_num=P, n_layer=3, **PACKABLE).model
    if float8:
        quantize_blocks("test", [model.layers], "fp8_weight_only")
    x = torch.randn(3, P, 32).bfloat16()

    def decode(dtype, packed):
        layers = model.layers.to(dtype)
        cache = KVCache.allocate(3, 3, len(model.freqs), 2, 16, dtype=dtype, device="cpu")
        g = torch.Generator().manual_seed(0)
        for memory in cache.layers:
            for tensor in memory:
                tensor.copy_(torch.randn(tensor.shape, generator=g).bfloat16())
        cache.lengths.copy_(torch.tensor([2, 5, 7]))
        if not packed:
            return layers.decode(x.to(dtype), model.freqs, cache)
        trunk = PackedTransformer(layers)
        trunk.load()
        with emulated_card(libraries) as launches:
            result = trunk.decode(x.to(dtype), model.freqs, cache)
        assert [early for _, early in launches] == [0] + [1] * (3 * 4 - 1)
        return result

    model.layers.bfloat16()  # the truth has the same weights
    packed, library = decode(torch.bfloat16, True), decode(torch.bfloat16, False)
    truth = decode(torch.float64, False)
    compare("staged", packed, library, truth, f"P = {P}")


@FLOAT8
@torch.no_grad()
def test_a_step_of_a_language_model_is_as_exact_as_by_the_library(float8, libraries):
    """Queries and keys are normalized in the product's epilogue, and turn by halves of a head."""
    torch.manual_seed(0)
    trunk = Qwen3Model(QWEN).bfloat16()
    for parameter in trunk.parameters():
        parameter.normal_(std=0.3)
    if float8:
        quantize_blocks("test", [trunk.layers], "fp8_weight_only")
    freqs = rope_table(20, rope_frequencies(QWEN.head_dim, QWEN.rope_theta))
    x, content = torch.randn(3, 4, 64).bfloat16(), torch.randn(2, 2, 3, 20, 2, 32).bfloat16()

    def decode(dtype, packed):
        model = trunk.to(dtype)
        cache = model.allocate(3, 20)
        for memory, values in zip(cache.layers, content, strict=True):
            for tensor, value in zip(memory, values, strict=True):
                tensor.copy_(value)
        cache.lengths.copy_(torch.tensor([2, 5, 16]))
        if not packed:
            return model._blocks(x.to(dtype), freqs, cache, cache.lengths + 4)
        blocks = PackedQwen3(model.layers)
        blocks.load()
        with emulated_card(libraries) as launches:
            result = blocks.decode(x, freqs, cache)
        assert [name for name, _ in launches] == ["rms_norm_qkv", *["skinny_product"] * 3] * 2
        return result

    packed, library = decode(torch.bfloat16, True), decode(torch.bfloat16, False)
    compare("staged", packed, library, decode(torch.float64, False), "step")


@pytest.mark.parametrize("P", [1, 4])
@torch.no_grad()
@pytest.mark.nightly
def test_tokens_are_nearly_those_of_the_library(P, libraries):
    """Roundings differ, so that a prediction near 0 may have the other sign, and all that follows.

    Of the first patch, whose input is the same, at most 1 bit of 200 differs.
    """
    sampler = tiny_sampler(parallel_num=P, diff_layers=2, **PACKABLE)
    sampler.model.bfloat16()
    labels = torch.arange(16) % 5
    first_bits = {"library": [], "packed": []}
    for plan, seed in itertools.product(first_bits, range(1 if P == 1 else 2)):
        settings = {"num_inference_steps": 4, "guidance_scale": 2.0}
        seeds = list(range(100 * seed, 100 * seed + 16))
        with use_plans(head=plan, trunk=plan), emulated_card(libraries) as launches:
            tokens = sampler.sample(labels, seeds=seeds, **settings)
        assert tokens.abs().eq(1).all()
        assert bool(launches) == (plan == "packed")
        first_bits[plan].append(tokens[:, :P])
    packed, library = (torch.cat(found) for found in first_bits.values())
    assert packed.ne(library).float().mean() <= 0.005
