"""The language model against definitions written out here, and sampling with it."""

import copy
import dataclasses
import math

import pytest
import torch

from bitdance.models.config import AutoencoderConfig, HeadConfig
from bitdance.models.qwen3 import (
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3Model,
    rope_frequencies,
    rope_table,
)
from bitdance.models.text_to_image import TextToImageModel
from bitdance.models.text_to_image_config import TextToImageConfig
from bitdance.sampling import graphs
from bitdance.sampling.ar_sampler import StepResult
from bitdance.sampling.text_to_image import TextToImageSampler
from bitdance_kernels.testing import compare
from tests.model.helpers.recording import recorded  # noqa: F401  (a fixture)
from tests.model.helpers.tiny import AUTOENCODER

QWEN = Qwen3Config(
    hidden_size=24, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
    intermediate_size=40, vocab_size=50, head_dim=8,
)  # fmt: skip
HEAD = HeadConfig(
    ch_target=8, ch_cond=24, ch_latent=32, depth_latent=2, depth_adanln=1, architecture="t2i"
)
CONFIG = TextToImageConfig(QWEN, HEAD, AUTOENCODER, parallel_num=4)
GRID, PREFIX, NEGATIVE = (4, 6), [40, 41, 42, 43, 44, 45], [7]
PROMPTS = [[1, 2, 3, 4, 5], [6, 7]]


def tiny(seed=0, **changes):
    torch.manual_seed(seed)
    model = TextToImageModel(dataclasses.replace(CONFIG, **changes))
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.any():
                parameter.normal_(std=0.3)
    return model.eval()


def sample(model, prompts=PROMPTS, **settings):
    settings = {
        "grid": GRID,
        "negative_prompts": NEGATIVE,
        "num_inference_steps": 3,
        "guidance_scale": 3.0,
    } | settings
    settings = {"seeds": range(len(prompts))} | settings
    return sampler_of(model).sample(prompts, PREFIX, **settings)


def sampler_of(model):
    """One sampler for a model in a test, so that runs are reused."""
    return vars(model).setdefault("sampler", TextToImageSampler(model))


def norm(x, weight, eps=1e-6):
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * weight


def rotated(x, freqs):
    """[H, T, D], turned by position: pairs are (i, i + D / 2)."""
    (a, b), (cos, sin) = x.chunk(2, -1), freqs[: x.shape[1]].to(x.dtype).unbind(-1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], -1)


def naive(trunk, x, sees, freqs):
    """Outputs of one sequence [T, C] from the definition, with a dense mask."""
    config = trunk.config
    D, groups = config.head_dim, config.num_attention_heads // config.num_key_value_heads
    for layer in trunk.layers:
        a, h = layer.self_attn, norm(x, layer.input_layernorm.weight)
        q, k, v = (
            projection(h).unflatten(-1, (-1, D)).transpose(0, 1)
            for projection in (a.q_proj, a.k_proj, a.v_proj)
        )
        q, k = (rotated(norm(t, w), freqs) for t, w in ((q, a.q_norm.weight), (k, a.k_norm.weight)))
        k, v = k.repeat_interleave(groups, 0), v.repeat_interleave(groups, 0)
        scores = (q @ k.mT / math.sqrt(D)).masked_fill(~sees, -torch.inf)
        x = x + a.o_proj((scores.softmax(-1) @ v).transpose(0, 1).flatten(1))
        h = norm(x, layer.post_attention_layernorm.weight)
        gate = layer.mlp.gate_proj(h)
        x = x + layer.mlp.down_proj(gate * torch.sigmoid(gate) * layer.mlp.up_proj(h))
    return norm(x, trunk.norm.weight)


@pytest.mark.parametrize("bias", [False, True])
def test_prompts_of_different_length_in_one_batch(bias):
    """Rows of two prompts, then two blocks of three tokens, are what each gives alone."""
    torch.manual_seed(0)
    trunk = Qwen3Model(dataclasses.replace(QWEN, attention_bias=bias)).double().eval()
    with torch.no_grad():
        for parameter in trunk.parameters():
            parameter.normal_(std=0.3)
    prompts = [torch.randn(n, 24, dtype=torch.double) for n in (5, 2, 7)]
    rows, blocks = torch.tensor([1, 0, 2, 1]), torch.randn(2, 4, 3, 24, dtype=torch.double)
    freqs = rope_table(20, rope_frequencies(8, QWEN.rope_theta))
    cache = trunk.allocate(4, 20)
    for memory in cache.layers:  # what no row may read
        for tensor in memory:
            tensor.fill_(torch.nan)
    first = trunk.prefill(prompts, rows, freqs, cache)
    later = torch.cat([trunk.decode(block, freqs, cache) for block in blocks], 1)
    assert cache.lengths.tolist() == [8, 11, 13, 8]
    for row, prompt in enumerate(rows):
        text = prompts[prompt]
        whole, n = torch.cat([text, *blocks[:, row]]), len(text)
        index = torch.arange(len(whole))
        block = torch.where(index < n, index, n + (index - n) // 3)
        with torch.no_grad():
            expected = naive(trunk, whole, block[None] <= block[:, None], freqs)
        torch.testing.assert_close(first[prompt, :n], expected[:n])
        torch.testing.assert_close(later[row], expected[n:])


def test_rotations():
    position, theta = torch.arange(9, dtype=torch.double)[:, None], 1e6
    angles = position * theta ** (-torch.arange(0, 8, 2, dtype=torch.double) / 8)
    expected = torch.stack([angles.cos(), angles.sin()], -1).float()
    torch.testing.assert_close(rope_table(9, rope_frequencies(8, theta)), expected)


def test_names_are_those_of_the_published_checkpoints():
    state = Qwen3ForCausalLM(QWEN).state_dict()
    of_layer = {
        "input_layernorm", "mlp.down_proj", "mlp.gate_proj", "mlp.up_proj",
        "post_attention_layernorm", "self_attn.k_norm", "self_attn.k_proj", "self_attn.o_proj",
        "self_attn.q_norm", "self_attn.q_proj", "self_attn.v_proj",
    }  # fmt: skip
    expected = {f"model.layers.{i}.{name}.weight" for i in range(2) for name in of_layer}
    expected |= {"model.embed_tokens.weight", "model.norm.weight"}
    assert set(state) == expected | {"lm_head.weight"}
    tied = dataclasses.replace(QWEN, tie_word_embeddings=True)
    assert set(Qwen3ForCausalLM(tied).state_dict()) == expected


PUBLISHED = {
    "model_type": "qwen3", "hidden_act": "silu", "hidden_size": 5120, "num_hidden_layers": 40,
    "num_attention_heads": 40, "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151988,
    "intermediate_size": 17408, "rope_theta": 1000000, "rope_scaling": None,
    "use_sliding_window": False, "sliding_window": None, "torch_dtype": "bfloat16",
}  # fmt: skip


def test_config_files_of_both_kinds():
    config = Qwen3Config.from_dict(PUBLISHED)
    assert (config.rope_theta, config.num_hidden_layers, config.vocab_size) == (1e6, 40, 151988)
    newer = {k: v for k, v in PUBLISHED.items() if not k.startswith("rope")}
    newer["rope_parameters"] = {"rope_type": "default", "rope_theta": 5e5}
    assert Qwen3Config.from_dict(newer).rope_theta == 5e5
    assert Qwen3Config.from_dict(config.to_dict()) == config


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_act": "gelu"}, "hidden_act must be 'silu', got 'gelu'"),
        ({"model_type": "llama"}, "model_type must be 'qwen3', got 'llama'"),
        (
            {"use_sliding_window": True, "sliding_window": 4096},
            "max_window_layers must be at least the 40 layers .* got 28",
        ),
        ({"use_sliding_window": "no"}, "use_sliding_window must be true or false, got 'no'"),
        ({"layer_types": ["full_attention"]}, "layer_types must be 40 times 'full_attention'"),
        (
            {"layer_types": ["full_attention"] * 39 + ["sliding_attention"]},
            "layer_types must be 40 times 'full_attention'",
        ),
        ({"rope_parameters": 3}, "rope_parameters must be a section, got 3"),
        ({"rope_theta": None}, "rope_theta must be a number, got None"),
        ({"max_position_embeddings": 0}, "max_position_embeddings must be at least 1, got 0"),
        ({"rope_scaling": {"rope_type": "yarn"}}, "rotations must be 'default', got 'yarn'"),
        ({"rope_scaling": {"type": "linear"}}, "rotations must be 'default', got 'linear'"),
        ({"num_key_value_heads": 7}, "num_key_value_heads must be a divisor of 40 query heads"),
        ({"head_dim": 5}, "head_dim must be even, got 5"),
        ({"hidden_size": 0}, "hidden_size must be at least 1, got 0"),
        ({"rope_theta": 0}, "rope_theta must be greater than 0, got 0"),
        ({"hidden_size": None}, "hidden_size must be an integer"),
    ],
)
def test_config_files_that_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        Qwen3Config.from_dict(PUBLISHED | change)


def test_what_a_config_file_leaves_out_is_as_in_transformers():
    """Qwen3Config of 4.57 and 5."""
    assert Qwen3Config.from_dict({}) == Qwen3Config(
        hidden_size=4096, num_hidden_layers=32, num_attention_heads=32, num_key_value_heads=32,
        intermediate_size=22016, vocab_size=151936, head_dim=128, max_position_embeddings=32768,
        rope_theta=10000.0, rms_norm_eps=1e-6, attention_bias=False, tie_word_embeddings=False,
    )  # fmt: skip
    few = {k: v for k, v in PUBLISHED.items() if not k.startswith("rope")}
    assert Qwen3Config.from_dict(few).rope_theta == 10000.0
    assert Qwen3Config.from_dict({**few, "rope_parameters": {}}).rope_theta == 10000.0
    assert (
        Qwen3Config.from_dict(PUBLISHED | {"num_key_value_heads": None}).num_key_value_heads == 40
    )
    many = PUBLISHED | {"max_position_embeddings": 40960}
    assert Qwen3Config.from_dict(many).max_position_embeddings == 40960


def test_windows_that_no_layer_uses_are_none():
    plain = Qwen3Config.from_dict(PUBLISHED)
    for change in (
        {"use_sliding_window": True, "sliding_window": 4096, "max_window_layers": 40},
        {"use_sliding_window": True, "sliding_window": None, "max_window_layers": 0},
        {"use_sliding_window": True, "layer_types": ["full_attention"] * 40},
        {"use_sliding_window": False, "sliding_window": 4096, "max_window_layers": 0},
    ):
        assert Qwen3Config.from_dict(PUBLISHED | change) == plain


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"parallel_num": 3}, "parallel_num must be a square number, got 3"),
        ({"head": dataclasses.replace(HEAD, architecture="mlp")}, "architecture must be 't2i'"),
        ({"head": dataclasses.replace(HEAD, ch_cond=20)}, "ch_cond must be 24, llm's, got 20"),
        ({"autoencoder": dataclasses.replace(AUTOENCODER, z_channels=4)}, "ch_target must be 4"),
    ],
)
def test_parts_that_do_not_fit(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(CONFIG, **change)


def test_configuration_of_a_release():
    head = {
        "ch_target": 32, "ch_cond": 5120, "ch_latent": 5120, "depth_latent": 6, "depth_adanln": 2,
        "use_swiglu": True, "parallel_num": 64, "grad_checkpointing": False, "diff_batch_mul": 1,
    }  # fmt: skip
    ae = {"ddconfig": {"ch": 256, "ch_mult": [1, 1, 2, 2, 4], "num_res_blocks": 4,
                       "z_channels": 32, "in_channels": 3, "out_ch": 3, "double_z": False,
                       "resolution": 256}, "gan_decoder": False}  # fmt: skip
    config = TextToImageConfig.from_dicts(PUBLISHED, head, ae)
    assert config.parallel_num == 64
    assert config.autoencoder == AutoencoderConfig()
    assert (config.head.use_swiglu, config.head.num_heads) == (True, 40)
    del head["use_swiglu"]
    assert not TextToImageConfig.from_dicts(PUBLISHED, head, ae).head.use_swiglu


@pytest.mark.parametrize("cfg", [1.0, 3.0])
def test_an_image_is_the_same_in_every_batch(cfg):
    model = tiny()
    both = sample(model, guidance_scale=cfg)
    assert both.shape == (2, 24, 8)
    assert set(both.unique().tolist()) == {-1.0, 1.0}
    assert not torch.equal(both[0], both[1])
    for i in (1, 0):
        assert torch.equal(sample(model, [PROMPTS[i]], seeds=[i], guidance_scale=cfg)[0], both[i])
    assert torch.equal(sample(model, guidance_scale=cfg), both)
    assert not torch.equal(sample(model, seeds=[2, 1], guidance_scale=cfg)[0], both[0])
    assert not torch.equal(sample(model, [PROMPTS[1], PROMPTS[1]], guidance_scale=cfg)[0], both[0])
    assert torch.equal(
        sample(model, [PROMPTS[1]] * 3, seeds=[0, 1, 1], guidance_scale=cfg)[2], both[1]
    )
    assert len(sample(model, [])) == 0


def test_the_cache_grows_and_is_kept():
    model = tiny()
    first = sample(model)
    cache = sampler_of(model).workspaces.idle[0].cache
    long = [[3] * 300, [4]]
    sample(model, [[4]], seeds=[1])
    assert sampler_of(model).workspaces.idle[0].cache is cache
    with_long = sample(model, long)
    assert sampler_of(model).workspaces.idle[0].cache is not cache
    # In a cache of another size, and beside another prompt.
    assert torch.equal(sample(model, [[4]], seeds=[1])[0], with_long[1])
    assert torch.equal(sample(model), first)


def test_steps_are_seen_as_they_come():
    model, steps, prompts = tiny(), [], []
    tokens = sample(model, on_step=steps.append, on_prefill=prompts.append)
    assert [outputs.shape for outputs in prompts] == [(3, 5 + 2, 24)]
    assert all(isinstance(step, StepResult) for step in steps)
    assert [step.step for step in steps] == list(range(6))
    assert torch.equal(torch.cat([step.tokens[:2] for step in steps], 1), tokens)
    for step in steps:
        assert step.guidance_scale == 3.0
        assert torch.equal(step.tokens[:2], step.tokens[2:]), "both halves share the tokens"
        assert step.hidden.shape == (4, 4, 24)

    class StopError(Exception):
        pass

    def stop(step):
        raise StopError

    with pytest.raises(StopError):
        sample(model, on_step=stop)
    assert torch.equal(sample(model), tokens), "a run that was stopped leaves nothing behind"


def test_replays_follow_their_inputs(recorded):  # noqa: F811
    """Prompts, seeds, guidance, step and cache reach a recorded step through memory alone."""
    model = tiny()
    runs = [
        {"prompts": PROMPTS, "seeds": [0, 1], "guidance_scale": 3.0},
        {"prompts": [[9], [4] * 8], "seeds": [5, 2**63], "guidance_scale": 1.5},
        {"prompts": [[4], [4]], "seeds": [5, 5], "sample_ids": [1, 2], "negative_prompts": [3, 3]},
    ]
    for run in runs:
        found, wanted = [], []
        tokens = sample(model, **run, on_step=found.append)
        # Each step of a first run is the function itself, not what was recorded of it.
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(graphs, "make_runner", lambda _: graphs.run_eager)
            assert torch.equal(sample(tiny(), **run, on_step=wanted.append), tokens)
        for step, of_plain in zip(found, wanted, strict=True):
            torch.testing.assert_close(step.hidden, of_plain.hidden)
    (steps,) = recorded
    assert steps.replays == 3 * 6 - 1


def test_weights_that_change_are_used():
    model, other = tiny(), tiny(1)
    first = sample(model)
    expected = sample(other)
    model.load_state_dict(other.state_dict())
    assert torch.equal(sample(model), expected)
    model.load_state_dict(tiny().state_dict(), assign=True)
    assert torch.equal(sample(model), first)


def test_in_half_precision():
    model, outputs = tiny().to(torch.bfloat16), []
    tokens = sample(model, PROMPTS[:1], guidance_scale=1.0, on_prefill=outputs.append)
    assert set(tokens.unique().tolist()) == {-1.0, 1.0}
    trunk, freqs = model.llm_model.model, rope_table(9, rope_frequencies(8, QWEN.rope_theta))
    with torch.no_grad():
        assert model.decode(tokens, GRID).shape == (1, 3, 8, 12)
        x = trunk.embed_tokens(torch.tensor(PROMPTS[0] + PREFIX[:2]))
        sees = torch.ones(len(x), len(x), dtype=torch.bool).tril()
        eager = naive(trunk, x, sees, freqs)
        truth = naive(copy.deepcopy(trunk).double(), x.double(), sees, freqs)
    compare("staged", outputs[0][0], eager, truth, "outputs of the prompt")


def test_under_autocast():
    model = tiny()
    with torch.autocast("cpu", torch.bfloat16):
        tokens = sample(model)
    assert sampler_of(model).workspaces.idle[0].cache.layers[0][0].dtype == torch.bfloat16
    assert set(tokens.unique().tolist()) == {-1.0, 1.0}
    sample(model)
    assert sampler_of(model).workspaces.idle[0].cache.layers[0][0].dtype == torch.float32


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"grid": (3, 6)}, "root divides the grid 3 x 6, got 4"),
        ({"negative_prompts": None}, "negative_prompts must be given with guidance_scale > 1"),
        ({"guidance_scale": math.inf}, "guidance_scale must be finite, got inf"),
        ({"seeds": [0]}, "seeds must be 2, one an image, got 1"),
        ({"seeds": None}, "exactly one of seeds and noise must be given"),
        ({"noise": [[]]}, "exactly one of seeds and noise must be given"),
        ({"seeds": None, "noise": [[]]}, "noise must be of 6 AR steps, got 1"),
        ({"negative_prompts": [50]}, "token ids must be 0 to 49, got 50"),
        ({"negative_prompts": [-1]}, "token ids must be 0 to 49, got -1"),
        ({"num_inference_steps": 0}, "steps"),
    ],
)
def test_arguments_that_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        sample(tiny(), **settings)


def test_more_arguments_that_are_refused():
    model = tiny()
    with pytest.raises(ValueError, match=r"image_prefix must be 6 ids, .* 3 queries, got 5"):
        sampler_of(model).sample(
            PROMPTS, PREFIX[1:], grid=GRID, negative_prompts=NEGATIVE, seeds=[0, 1]
        )
    with pytest.raises(ValueError, match=r"tokens must be \['B', 24, 8\], got \[2, 20, 8\]"):
        model.decode(torch.ones(2, 20, 8), GRID)
