"""The authors' text-to-image pipeline on our ops: golden results, the same API, refusals."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from bitdance import PatchError, patch_official, unpatch_official
from bitdance.integrations.official import methods as official_methods
from bitdance_kernels.testing import compare
from tests.model.helpers import lookalike
from tests.model.helpers.golden_cases import Case, case_names, kind_of, mismatches
from tests.model.helpers.golden_text_to_image import special_ids
from tests.model.helpers.lookalike_text_to_image import HeadNet, Pipeline, RMSNorm, Words
from tests.model.integrations.test_patch_official import drop, put, watched

CASES = [name for name in case_names() if kind_of(name) == "pipeline, text-to-image"]

LLM = {
    "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "head_dim": 12, "intermediate_size": 64, "rope_theta": 1e6, "rms_norm_eps": 1e-6,
    "attention_bias": False, "vocab_size": 64,
}  # fmt: skip
HEAD = {
    "ch_target": 8, "ch_cond": 48, "ch_latent": 256, "depth_latent": 2, "depth_adanln": 1,
    "use_swiglu": True,
}  # fmt: skip
MODULES = ("llm_model", "vision_head", "ae", "embed_vision_mlp")
NAMES = ["<|vision_start|>", *(f"<|res_{n}|>" for n in (2, 4, 6))]
SPECIAL = {name: 16 + i for i, name in enumerate(NAMES)}
SPECIAL |= {f"<|query_{i}|>": 30 + i for i in range(1, 4)}


def small(seed=0, noisy=False, **changes):
    """A pipeline with random weights; changes are of the language model's or the head's sizes."""
    torch.manual_seed(seed)
    llm = LLM | {name: value for name, value in changes.items() if name in LLM}
    head = HEAD | {name: value for name, value in changes.items() if name in HEAD}
    ae = lookalike.Autoencoder(8, 32, (1, 2), 1, noisy)
    pipeline = Pipeline(Words(SPECIAL, {}), llm, head, ae, 4, 2)
    for name in MODULES:
        for parameter in getattr(pipeline, name).parameters():
            nn.init.normal_(parameter, std=0.1 if parameter.dim() > 1 else 1.0)
    return pipeline


def image(pipeline, cfg=3.0, size=(4, 8), steps=2):
    images = pipeline.generate("a dog", *size, steps, cfg, num_images=2, seed=5)
    return torch.stack([torch.from_numpy(np.array(image)) for image in images])


def of_case(case, P):
    params = case.params
    texts = {"user": case["in.prompt_ids"].tolist(), "none": case["in.uncond_ids"].tolist()}
    dd = params["ddconfig"]
    ae = lookalike.Autoencoder(
        dd["z_channels"], dd["ch"], dd["ch_mult"], dd["num_res_blocks"],
        case.description["ae_config"].get("gan_decoder", False),
    )  # fmt: skip
    llm = {**params["llm"], "vocab_size": params["vocab"]}
    factor = 2 ** (len(dd["ch_mult"]) - 1)
    pipeline = Pipeline(Words(special_ids(case), texts), llm, params["head"], ae, P, factor)
    for name in MODULES:
        case.load_into(getattr(pipeline, name), f"{name}.")
    return pipeline


def results(case, pipeline, settings):
    """What the golden case says of one sample; of the language model if it is called."""
    name, count, (h, w) = f"sample.{settings['name']}", case.params["num_images"], settings["grid"]
    calls, conditions, predictions, latents = [], [], [], []
    with pytest.MonkeyPatch.context() as patch:
        head = pipeline.vision_head
        sample = watched(head.sample, predictions)
        trunk = pipeline.llm_model.model
        patch.setattr(trunk, "forward", watched(trunk.forward, calls))
        patch.setattr(head, "sample", lambda z, **rest: conditions.append(z) or sample(z, **rest))
        pipeline.ae.decoder.register_forward_pre_hook(lambda _, args: latents.append(args[0]))
        made = pipeline.gen_image(
            "user", "none", settings["cfg"], settings["steps"], h * w, count,
            [h * pipeline.vae_patch_size, w * pipeline.vae_patch_size],
        )  # fmt: skip
    predictions = torch.stack(predictions)
    out = {
        f"out.{name}.head_cond": torch.stack(conditions),
        f"out.{name}.pred_raw": predictions,
        f"out.{name}.tokens": torch.cat(list(predictions[:, :count]), 1).sign(),
        f"out.{name}.latent": latents[0],
        f"out.{name}.image": made,
        f"out.pos_embed_{h}x{w}_p{settings['P']}": pipeline.get_2d_embed(h, w, ps=pipeline.ps),
    }
    halves = ("cond", "uncond") if settings["cfg"] > 1 else ("cond",)
    hidden = [call.last_hidden_state for call in calls]
    for i, half in enumerate(halves if hidden else ()):
        out[f"out.{name}.llm.prefill_{half}"] = hidden[2 * i]
        out[f"out.{name}.llm.query_{half}"] = hidden[2 * i + 1]
        ours = hidden[2 * len(halves) + i :: len(halves)]
        out[f"out.{name}.llm.ar_{half}"] = torch.stack(ours)
    return out


@pytest.mark.parametrize("patched", [False, True], ids=["theirs", "ours"])
@pytest.mark.parametrize("name", CASES)
def test_results_are_the_golden_ones(name, patched, monkeypatch):
    """Also without the patch: the look-alike does as the authors' code does."""
    case, draws, out = Case.load(name), [], {}

    def take(shape):
        assert draws[0].shape == tuple(shape)
        return draws.pop(0)

    monkeypatch.setattr(
        lookalike, "draw", lambda _, like=None, shape=None: take(shape or like.shape)
    )
    monkeypatch.setattr(official_methods, "draw", lambda shape, *_: take(shape))
    for settings in case.params["samples"]:
        pipeline = of_case(case, settings["P"])
        if patched:
            assert patch_official(pipeline) is pipeline
        draws += case.draws(f"sample.{settings['name']}")
        out |= results(case, pipeline, settings)
        assert not draws
    kept = {key: value for key, value in case.tensors.items() if key in out}
    left = {key for key in case.expected if key not in out}
    assert all(".llm." in key for key in left)
    assert bool(left) == patched
    of_these = Case(case.name, case.info, {**kept, "state.": torch.zeros(())})
    assert mismatches(of_these, out) == []


@pytest.mark.parametrize(
    "changes", [{}, {"use_swiglu": False, "attention_bias": True}], ids=["swiglu", "plain"]
)
@pytest.mark.parametrize("cfg", [1.0, 3.0])
def test_a_seed_gives_the_same_tokens(changes, cfg):
    pipeline = small(noisy=True, **changes)
    decoded, after = [], []
    pipeline.ae.decoder.register_forward_pre_hook(lambda _, inputs: decoded.append(inputs[0]))
    for patch in (unpatch_official, patch_official, unpatch_official):
        image(patch(pipeline), cfg, (8, 12), 4)
        after.append(torch.rand(()))
    assert after[0] == after[1] == after[2], "as many random numbers are drawn"
    assert 0 < (decoded[0] > 0).float().mean() < 1
    assert torch.equal(decoded[0], decoded[2])
    assert torch.equal(decoded[0], decoded[1])


def test_the_object_stays_what_it_was():
    pipeline = small()
    before = {name: copy.deepcopy(getattr(pipeline, name).state_dict()) for name in MODULES}
    attributes = set(vars(pipeline))
    memory = {p.data_ptr() for name in MODULES for p in getattr(pipeline, name).parameters()}
    patch_official(pipeline)
    assert patch_official(pipeline) is pipeline, "twice is once"
    assert set(vars(pipeline)) - attributes == {"gen_image", "_bitdance_patched"}
    assert {
        p.data_ptr() for name in MODULES for p in getattr(pipeline, name).parameters()
    } == memory, "no weight is copied"
    for name in MODULES:
        assert list(getattr(pipeline, name).state_dict()) == list(before[name])

    first, twin, other = image(pipeline), copy.deepcopy(pipeline), small(1)
    assert first.shape == (2, 4, 8, 3)
    for assign in (False, True):  # values into the tensors there are, or other tensors
        for name in MODULES:
            state = copy.deepcopy(getattr(other, name).state_dict())
            getattr(pipeline, name).load_state_dict(state, assign=assign)
        assert not torch.equal(image(pipeline), first)
        assert torch.equal(image(pipeline), image(patch_official(small(1))))
        for name in MODULES:
            getattr(pipeline, name).load_state_dict(before[name])
        assert torch.equal(image(pipeline), first)
    twin.llm_model.load_state_dict(other.llm_model.state_dict())
    assert not torch.equal(image(twin), first)
    assert torch.equal(image(pipeline), first)

    unpatch_official(pipeline)
    assert set(vars(pipeline)) == attributes
    for name in MODULES:
        for module in getattr(pipeline, name).modules():
            assert not {"forward", "sample"} & set(vars(module))
    assert unpatch_official(pipeline) is pipeline


def test_under_autocast():
    """As the authors run it: the language model in bfloat16, the rest under autocast."""
    pipeline, found = small(), {}
    truth = copy.deepcopy(pipeline)
    pipeline.llm_model.to(torch.bfloat16)
    truth.llm_model.load_state_dict(pipeline.llm_model.state_dict())
    truth.llm_model.double()

    class Stop(Exception):  # noqa: N818
        pass

    def conditions_of(pipeline):
        def stop(z, **_):
            found["z"] = z
            raise Stop

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(pipeline.vision_head, "sample", stop)
            with pytest.raises(Stop):
                image(pipeline)
        return found["z"]

    exact = conditions_of(truth)
    with torch.autocast("cpu", torch.bfloat16):
        theirs = conditions_of(pipeline)
        ours = conditions_of(patch_official(pipeline))
        compare("staged", ours, theirs, exact.double(), "conditions of the first patch")
        assert image(pipeline).float().std() > 0


def test_prompts_and_sizes():
    """A longer unconditional prompt, a tokenizer without a size, and a square number of tokens."""
    pipeline = patch_official(small())
    settings = {"num_sampling_steps": 2, "max_length": 8, "image_size": (4, 8)}
    made = pipeline.gen_image("a", "much longer than the other", 3.0, **settings)
    assert made.shape == (1, 3, 4, 8)
    assert pipeline.gen_image("a", **settings).shape == (1, 3, 4, 8)
    with pytest.raises(ValueError, match="uncond_prompt must be a text with guidance, got None"):
        pipeline.gen_image("a", guidance_scale=3.0, **settings)
    with pytest.raises(ValueError, match=r"tokenizer must have <\|res_10\|> for images of 2 x 10"):
        pipeline.gen_image("a", max_length=8, image_size=(4, 20))
    pipeline.tokenizer.unk_token_id = 63
    with pytest.raises(ValueError, match=r"tokenizer must have <\|res_10\|>, <\|res_8\|> for"):
        pipeline.gen_image("a", max_length=8, image_size=(20, 16))


def of(module, change):
    """A change of a module of the pipeline; with None one of the pipeline itself."""
    return lambda pipeline: change(pipeline if module is None else getattr(pipeline, module))


LAYER = "model.layers.1"
# What is changed, and what the message says of it.
REFUSED = {
    "no tokenizer": (lambda p: delattr(p, "tokenizer"), r"pipeline \(Pipeline\).* no tokenizer$"),
    "no trunk": (of("llm_model", drop("model")), r"llm_model \(CausalLM\) .*: it has no model"),
    "no rotation": (of("llm_model", drop("model.rotary_emb")), "it has no rotary_emb"),
    "no layers": (of("llm_model", put("model.layers", nn.ModuleList())), "layers must be one"),
    "adapter": (
        of("llm_model", put(f"{LAYER}.lora", nn.Linear(2, 2))),
        r"unexpected layers\.1\.lora",
    ),
    "no norm": (
        of("llm_model", drop(f"{LAYER}.self_attn.q_norm")),
        r"missing layers\.1\.\w+\.q_norm",
    ),
    "no norms": (
        of("llm_model", drop("model.layers.0.self_attn.q_norm")),
        "is not built as the auth",
    ),
    "bias": (
        of("llm_model", put(f"{LAYER}.mlp.up_proj", nn.Linear(48, 64))),
        "unexpected layers.1.m",
    ),
    "eps": (
        of("llm_model", put(f"{LAYER}.input_layernorm", RMSNorm(48, 1e-5))),
        r"layers\.1\.input_layernorm\.variance_epsilon must be 1e-06, got 1e-05",
    ),
    "linear": (
        of("llm_model", put(f"{LAYER}.mlp.down_proj", nn.Embedding(48, 64))),
        r"layers\.1\.mlp\.down_proj must be Linear",
    ),
    "window": (
        of("llm_model", put(f"{LAYER}.self_attn.sliding_window", 9)),
        "sliding_window must be None, got 9",
    ),
    "dropout": (
        of("llm_model", put(f"{LAYER}.self_attn.attention_dropout", 0.1)),
        r"attention_dropout must be 0, got 0\.1",
    ),
    "scaling": (
        of("llm_model", put(f"{LAYER}.self_attn.scaling", 1.0)),
        r"1\.self_attn\.scaling must be 0\.28\d+, got 1\.0",
    ),
    "activation": (of("llm_model", put(f"{LAYER}.mlp.act_fn", nn.GELU())), "act_fn must be SiLU"),
    "rotation": (
        of("llm_model", put("model.rotary_emb.rope_type", "yarn")),
        "rope_type must be default, got yarn",
    ),
    "scaled": (
        of("llm_model", put("model.rotary_emb.attention_scaling", 1.2)),
        r"attention_scaling must be 1, got 1\.2",
    ),
    "meta": (lambda p: p.llm_model.to("meta"), "all weights on one device, got meta"),
    "half meta": (lambda p: p.llm_model.model.norm.to("meta"), "one device, got cpu, meta"),
    "no head": (lambda p: delattr(p, "vision_head"), "it has no vision_head"),
    "heads": (
        of("vision_head", put("net.res_blocks.1.attn.n_head", 4)),
        r"pipeline\.vision_head\.net\.res_blocks\.1\.attn\.n_head must be 2, got 4",
    ),
    "no attention": (
        of("vision_head", drop("net.res_blocks.0.attn")),
        r"missing res_blocks\.0\.attn",
    ),
    "networks": (
        of("vision_head", put("net.res_blocks.1", HeadNet(8, 48, 256, 1, 1, False).res_blocks[0])),
        r"missing res_blocks\.1\.w1\.weight.*unexpected res_blocks\.1\.mlp",
    ),
    "decoder": (of("ae", drop("decoder.norm_out")), r"pipeline\.ae\.decoder .* it has no norm_out"),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_what_is_not_recognized_is_refused(reason):
    change, message = REFUSED[reason]
    pipeline = small()
    change(pipeline)
    with pytest.raises(PatchError, match=f"^patch_official: .*{message}"):
        patch_official(pipeline)
    assert not {"gen_image", "_bitdance_patched"} & set(vars(pipeline))
    for name in {"llm_model", "vision_head", "ae"} & set(vars(pipeline)):
        for module in getattr(pipeline, name).modules():
            assert not {"forward", "sample"} & set(vars(module))
