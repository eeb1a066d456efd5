"""The authors' objects on our ops: golden results, the same API, and refusal of anything else."""

import copy
import pickle
import re
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from bitdance import PatchError, patch_official, unpatch_official
from bitdance.integrations.official import methods as official_methods
from bitdance_kernels import Ranges
from bitdance_kernels.testing import compare
from tests.model.helpers import lookalike
from tests.model.helpers.golden_cases import Case, case_names, kind_of, mismatches
from tests.model.helpers.lookalike import Autoencoder, Model

CASES = [name for name in case_names() if kind_of(name) == "model, ImageNet"]
LABELS = torch.tensor([1, 0])


def of_case(case):
    """A look-alike with a case's weights."""
    ctor = case.params["ctor"]
    model = Model(Autoencoder(ctor["latent_dim"], **case.params["vae"]), **ctor)
    return case.load_into(model)


def small(seed=0, noisy=False, **changes):
    """A look-alike with random weights that gives no constant images."""
    torch.manual_seed(seed)
    sizes = {
        "dim": 32, "n_layer": 2, "n_head": 2, "diff_layers": 2, "diff_dim": 64,
        "diff_adanln_layers": 1, "latent_dim": 8, "down_size": 2, "patch_size": 1, "resolution": 8,
        "diff_batch_mul": 2, "cls_token_num": 3, "num_classes": 4, "parallel_num": 4,
        "parallel_mode": "patch",
    }  # fmt: skip
    sizes |= changes
    if sizes["parallel_num"] is None:
        del sizes["parallel_num"]
    model = Model(Autoencoder(sizes["latent_dim"], 32, (1, 2), 1, noisy), **sizes)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.1 if parameter.dim() > 1 else 1.0)
    return model.eval()


KINDS = {"serial": {"parallel_num": None}, "parallel": {}}
KIND = pytest.mark.parametrize("changes", KINDS.values(), ids=KINDS)


@pytest.fixture
def recorded(monkeypatch):
    """Have both sides use recorded draws; gives a list to fill, which must be used up."""
    draws = []

    def take(shape):
        assert draws[0].shape == tuple(shape)
        return draws.pop(0)

    def of_lookalike(kind, like=None, shape=None):
        return take(like.shape if shape is None else shape)

    monkeypatch.setattr(lookalike, "draw", of_lookalike)
    monkeypatch.setattr(official_methods, "draw", lambda shape, *_: take(shape))
    yield draws
    assert not draws


def watched(function, seen):
    """The same function, which adds its results to `seen`."""

    def call(*args, **kwargs):
        seen.append(function(*args, **kwargs))
        return seen[-1]

    return call


def results(case, model, draws):
    """What the golden case says of the sampler and of the loss in eval mode."""
    out = {}
    for settings in case.params["samples"]:
        name = f"sample.{settings['name']}"
        hidden, predicted = [], []
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(model, "forward_model", watched(model.forward_model, hidden))
            patch.setattr(model.head, "sample", watched(model.head.sample, predicted))
            draws += case.draws(name)
            image = model.sample(
                case["in.sample_class"], settings["steps"], settings["cfg"], settings["schedule"],
                settings.get("chunk", 0),
            )  # fmt: skip
        predicted = torch.stack([p.view(len(p), model.P, -1) for p in predicted])
        out[f"out.{name}.hidden_first"] = hidden[0]
        if hidden[1:]:
            out[f"out.{name}.hidden_rest"] = torch.stack(hidden[1:])
        out[f"out.{name}.pred_raw"] = predicted
        out[f"out.{name}.tokens"] = torch.cat(list(predicted), 1).sign()
        out[f"out.{name}.image"] = image
    for kind, data in (("eval_images", "in.images"), ("eval_cached", "in.cached_latent")):
        draws += case.draws(f"fwd.{kind}")
        out[f"out.fwd.{kind}.loss"] = model(case[data], case["in.class_id"], "cached" in kind)
    return out


@pytest.mark.parametrize("patched", [False, True], ids=["theirs", "ours"])
@pytest.mark.parametrize("name", CASES)
def test_results_are_the_golden_ones(name, patched, recorded):
    """Also without the patch: the look-alike does as the authors' code does."""
    case = Case.load(name)
    model = of_case(case)
    if patched:
        assert patch_official(model) is model
    out = results(case, model, recorded)
    kept = {key: value for key, value in case.tensors.items() if key in out}
    assert kept
    of_these = Case(case.name, case.info, {**kept, "state.": torch.zeros(())})
    assert mismatches(of_these, out) == []


@KIND
@pytest.mark.parametrize("cfg", [1.0, 3.0])
def test_a_seed_gives_the_same_tokens(changes, cfg):
    model = small(noisy=True, **changes)
    decoded = []
    model.vae.decoder.register_forward_pre_hook(lambda _, inputs: decoded.append(inputs[0]))
    after = []
    for patch in (unpatch_official, patch_official, unpatch_official):
        torch.manual_seed(3)
        patch(model).sample(LABELS, sample_steps=6, cfg_scale=cfg)
        after.append(torch.rand(()))
    assert after[0] == after[1] == after[2], "as many random numbers are drawn"
    assert 0 < (decoded[0] > 0).float().mean() < 1
    assert torch.equal(decoded[0], decoded[2])
    assert torch.equal(decoded[0], decoded[1])


@KIND
def test_projections_beyond_one_a_block_are_unused(changes):
    test_a_seed_gives_the_same_tokens({**changes, "diff_adanln_layers": 5}, 3.0)


@KIND
def test_gradients_of_the_loss(changes, monkeypatch):
    def same_for_every_dtype(kind, like=None, shape=None):
        drawn = torch.randn(like.shape if shape is None else shape)
        return drawn if like is None else drawn.to(like.dtype)

    monkeypatch.setattr(lookalike, "draw", same_for_every_dtype)
    model = small(**changes).train()
    codes = torch.where(torch.rand(2, 8, 4, 4) > 0.5, 1.0, -1.0)

    def gradients(model, dtype=torch.float32):
        torch.manual_seed(1)
        loss = model(codes.to(dtype), LABELS, cached=True)
        parameters = [p for name, p in model.named_parameters() if not name.startswith("vae.")]
        return torch.autograd.grad(loss, parameters)

    theirs, truth = gradients(model), gradients(copy.deepcopy(model).double(), torch.float64)
    ours = gradients(patch_official(model))
    units = [gradient.square().mean().sqrt() for gradient in truth]
    assert min(units) > 0
    # All in one, each parameter's in its own unit: one alone may be too few numbers for a maximum.
    together = [
        torch.cat([(g / unit.to(g.dtype)).flatten() for g, unit in zip(found, units, strict=True)])
        for found in (ours, theirs, truth)
    ]
    compare("staged", *together, "gradients")


@KIND
def test_the_object_stays_what_it_was(changes):
    model = small(**changes)
    before, parameters = copy.deepcopy(model.state_dict()), list(model.parameters())
    kind, modules = type(model), [name for name, _ in model.named_modules()]
    patch_official(model)
    assert patch_official(model) is model, "twice is once"
    assert type(model) is kind
    assert isinstance(model.layers[0].attention, lookalike.Attention)
    assert [name for name, _ in model.named_modules()] == modules
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    assert list(model.state_dict()) == list(before)

    def image(model):
        torch.manual_seed(5)
        return model.sample(LABELS, 4, 2.0)

    # Copies and pickles have weights of their own.
    first, other = image(model), small(1, **changes).state_dict()
    twins = [copy.deepcopy(model), pickle.loads(pickle.dumps(model))]
    for assign in (False, True):  # values into the tensors there are, or other tensors
        model.load_state_dict(copy.deepcopy(other), assign=assign)
        assert not torch.equal(image(model), first)
        assert torch.equal(image(model), image(patch_official(small(1, **changes))))
        model.load_state_dict(before)
        assert torch.equal(image(model), first)
    for twin in twins:
        assert torch.equal(image(twin), first)
        twin.load_state_dict(other)
        assert not torch.equal(image(twin), first)
    assert torch.equal(image(model), first)

    model.to(torch.bfloat16)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    unpatch_official(model)
    for module in model.modules():
        assert not {"forward", "sample", "forward_model", "enable_kv_cache"} & set(vars(module))
    assert unpatch_official(model) is model


@KIND
def test_under_autocast(changes):
    """The cache gets the dtype of the products, and a new one when autocast ends."""
    model = patch_official(small(**changes))
    with torch.autocast("cpu", torch.bfloat16):
        assert model.sample(LABELS, 3, 2.0).isfinite().all()
    assert model.layers[0].attention.k_cache.dtype == torch.bfloat16
    assert model.layers[0].attention.k_cache.shape == (4, 2, 19, 16)
    kept = model.layers[1].attention.v_cache
    assert model.sample(LABELS, 3, 2.0).dtype == torch.float32
    assert model.layers[0].attention.k_cache.dtype == torch.float32
    now = model.layers[1].attention.v_cache
    model.sample(LABELS, 3, 2.0)
    assert kept is not now
    assert model.layers[1].attention.v_cache is now


@KIND
def test_the_cache_takes_any_number_of_tokens(changes):
    """Also pieces that are no whole patch, and through attention alone."""
    model = small(**changes)
    x = torch.randn(2, 14, 32)

    def pieces(model, *ends):
        made = []
        model.enable_kv_cache(2)
        with torch.no_grad():
            for a, b in zip((0, *ends), (*ends, 14), strict=True):
                part = x[:, a:b].to(model.norm.weight.dtype)
                made.append(model.forward_model(part, *model.masks(a, b), a, b))
        return torch.cat(made, 1)

    # Blocks begin after 2 causal tokens, every 4.
    for ends in ((), (6,), (1, 2, 6, 10), (2, 10)):
        theirs = pieces(unpatch_official(model), *ends)
        truth = pieces(small(**changes).double(), *ends)
        compare("staged", pieces(patch_official(model), *ends), theirs, truth, str(ends))


def test_masks_of_the_caller():
    model = patch_official(small())
    attention, x, freqs = model.layers[0].attention, torch.randn(2, 5, 32), model.freqs_cis[:5]
    causal = torch.full((5, 5), -torch.inf).triu(1)[None, None]
    plain = lookalike.Attention(32, 2, True)
    plain.load_state_dict(attention.state_dict())
    with torch.no_grad():
        for mask in (causal, torch.zeros(1, 1, 5, 5)):
            eager = plain(x, mask, freqs)
            truth = copy.deepcopy(plain).double()(x.double(), mask.double(), freqs.double())
            compare("staged", attention(x, mask, freqs), eager, truth, "attention")
        assert torch.equal(attention(x, None, freqs), attention(x, mask, freqs))
    ranges = Ranges(torch.zeros(5, dtype=torch.int32), torch.arange(1, 6, dtype=torch.int32))
    with torch.no_grad():
        assert torch.equal(attention(x, ranges, freqs), attention(x, causal, freqs))
    hole = causal.clone()
    hole[..., 4, 1] = -torch.inf
    for mask in (hole, causal + 1, causal[0], causal[..., :3, :3]):
        with pytest.raises(ValueError, match=r"mask must be \[1, 1, 5, keys\], 0 for the keys"):
            attention(x, mask, freqs)
    hidden = torch.randn(2, 6, 32)
    model.enable_kv_cache(2)
    with torch.no_grad():
        by_model = model.forward_model(hidden, *model.masks(0, 6), 0, 6)
        assert torch.equal(
            by_model, model.forward_model(hidden, model.masks(0, 6)[0].clone(), 0, 6)
        )


def test_checkpointing_of_the_head_stays_theirs():
    model = patch_official(small(parallel_num=None)).train()
    model.head.net.grad_checkpointing = True
    calls = []
    model.head.net.res_blocks[0].register_forward_hook(lambda *_: calls.append(1))
    model(torch.ones(2, 8, 4, 4), LABELS, cached=True).backward()
    assert calls == [1]
    model.eval()(torch.ones(2, 8, 4, 4), LABELS, cached=True)
    assert calls == [1]


def put(path, value):
    """A change of a model: `value` at a path, or what `value` makes of the module there."""

    def change(model):
        parent, _, name = path.rpartition(".")
        setattr(model.get_submodule(parent), name, value)

    return change


def drop(path):
    def change(model):
        parent, _, name = path.rpartition(".")
        delattr(model.get_submodule(parent), name)

    return change


def linears(count):
    return nn.ModuleList(nn.Linear(64, 384) for _ in range(count))


HEAD, ATTENTION = "head.net.res_blocks.1.attn", "layers.0.attention"
DECODER = "vae.decoder"
CAUSAL = torch.full((1, 1, 18, 18), -torch.inf).triu(1)
# What is changed, and what the message says of it.
REFUSED = {
    "no head": (drop("head"), r"model \(Model\).*: it has no head$"),
    "no cache": (drop("layers.1.attention.k_cache"), r"layers\.1\.attention.*no k_cache"),
    "no mask": (drop("attn_mask"), "has no attn_mask"),
    "causal": (put("attn_mask", CAUSAL), "block-causal.* 2 causal tokens and then blocks of 4"),
    "no layers": (put("layers", nn.ModuleList()), "layers must"),
    "adapter": (put("layers.0.lora", nn.Linear(2, 2)), r"unexpected lora\.weight, lora\.bias"),
    "bias": (put(f"{ATTENTION}.wo", nn.Linear(32, 32)), r"unexpected attention\.wo\.bias"),
    "no attention": (drop(HEAD), r"head\.net .*: missing res_blocks\.1\.attn"),
    "heads": (put(f"{ATTENTION}.n_head", 4), r"n_head must be 2, got 4"),
    "heads of the head": (put(f"{HEAD}.n_head", 2), r"1\.attn\.n_head must be 1, got 2"),
    "dropout": (put(f"{ATTENTION}.attn_dropout_p", 0.1), "attn_dropout_p must be 0"),
    "eps": (put("layers.0.ffn_norm.eps", 1e-5), r"layers\.0\.ffn_norm must be RMS"),
    "last eps": (put("head.net.final_layer.norm_final.eps", 1e-5), "norm_final must be Layer"),
    "norm": (put("layers.0.ffn_norm", nn.Embedding(1, 32)), r"\[1, 32\], expected \[32\]"),
    "adaLN": (put("head.net.ada_ln_blocks", linears(0)), "2 blocks and 0 projections"),
    "time shift": (put("head.time_shift", -1.0), r"model\.head is not built.*time_shift"),
    "projection": (put("proj_in", lookalike.FeedForward(8, 64, 32, True)), "another shape w1"),
    "groups": (put(f"{DECODER}.adaptive.0.gn.num_groups", 16), "0.gn must be GroupNorm"),
    "padding": (put(f"{DECODER}.conv_out.padding", (0, 0)), "conv_out must be Conv2d"),
    "decoder": (put(f"{DECODER}.up", nn.ModuleList()), r"vae\.decoder is not built"),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_what_is_not_recognized_is_refused(reason):
    change, message = REFUSED[reason]
    model = small()
    change(model)
    with pytest.raises(PatchError, match=f"^patch_official: .*{message}"):
        patch_official(model)
    for module in model.modules():
        assert not {"forward", "sample", "forward_model", "_bitdance_patched"} & set(vars(module))


def test_refusals_of_another_kind():
    with pytest.raises(TypeError, match=r"model must be a torch module or .*, got dict"):
        patch_official({})
    model = small()
    with pytest.raises(PatchError, match=r"got OptimizedModule around it: pass model\._orig_mod"):
        patch_official(torch.compile(model))
    wrapped = nn.Module()
    wrapped.module = model
    with pytest.raises(PatchError, match=r"pass model\.module"):
        patch_official(wrapped)
    serial = small(parallel_num=None)
    serial.layers[0].attention.causal = False
    with pytest.raises(PatchError, match=r"causal must be True, got False"):
        patch_official(serial)
    with pytest.raises(PatchError, match="is not built as the authors' code: it has no"):
        patch_official(nn.Linear(1, 1))


def test_nothing_of_theirs_is_imported():
    sources = list(Path(official_methods.__file__).parent.glob("*.py"))
    assert len(sources) >= 4
    for source in sources:
        imported = re.findall(r"^(?:from|import) ([\w.]+)", source.read_text(), re.MULTILINE)
        others = {module.split(".")[0] for module in imported} - sys.stdlib_module_names
        assert others <= {"bitdance", "bitdance_kernels", "torch", "tqdm"}
