import dataclasses
from pathlib import Path

import pytest
import torch

from bitdance.models.class_conditional import BitDanceModel, TrainingDraws
from bitdance.models.config import (
    AUTOENCODER_PRESETS,
    HEAD_PRESETS,
    PRESETS,
    HeadConfig,
    ModelConfig,
)
from bitdance.models.diffusion_head import DiffusionHead
from bitdance.models.perturbation import perturb
from bitdance.models.projectors import TextToImageProjection, position_embedding_2d
from bitdance.models.token_order import generation_order, latents_to_tokens, tokens_to_latents
from tests.model.helpers.tiny import AUTOENCODER, tiny_config, tiny_model

KEYS = Path(__file__).parent.parent.parent / "golden" / "keys"
COUNTS = {  # parameters without the autoencoder, as published
    "B-1x": 242_373_152,
    "B-4x": 260_102_432,
    "B-16x": 260_111_648,
    "L-1x": 527_271_968,
    "H-1x": 1_007_960_352,
}


def _keys(path):
    lines = (line.split("\t") for line in path.read_text().splitlines() if line[:1] not in "#")
    return {name: tuple(map(int, shape.split("x"))) for name, shape in lines}


def _shapes(module):
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_have_the_official_names_shapes_and_counts(preset):
    with torch.device("meta"):
        model = BitDanceModel(PRESETS[preset])
    size, times = preset.split("-")
    expected = _keys(KEYS / f"imagenet_{size}_{times}.txt")
    autoencoder = _keys(KEYS / "autoencoder_f16c32.txt")
    assert _shapes(model) == expected | {f"vae.{name}": s for name, s in autoencoder.items()}
    own = sum(p.numel() for name, p in model.named_parameters() if not name.startswith("vae."))
    assert own == COUNTS[preset]
    vae = sum(p.numel() for p in model.vae.parameters())
    assert vae == 460_294_179


def test_text_to_image_parts_have_the_official_names_and_shapes():
    with torch.device("meta"):
        head = DiffusionHead(HEAD_PRESETS["t2i-14b"])
        projector = TextToImageProjection(32, 5120)
    assert _shapes(head) == _keys(KEYS / "t2i_vision_head_14b.txt")
    assert _shapes(projector) == _keys(KEYS / "t2i_projector_14b.txt")


def test_presets_survive_json():
    for preset in PRESETS.values():
        assert ModelConfig.from_dict(preset.to_dict()) == preset
    assert set(AUTOENCODER_PRESETS) == {"d16c32", "d32c128", "d32c256", "UniWeTok"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dim": 30}, r"dim must be a multiple of 4 \* 2, got 30"),
        ({"n_layer": 0}, "n_layer must be at least 1, got 0"),
        ({"parallel_num": 8}, "parallel_num must be a square whose root"),
        ({"parallel_num": 5, "parallel_mode": "standard"}, "such that 16 tokens make"),
        ({"parallel_mode": "spiral"}, "parallel_mode must be 'patch' or 'standard', got 'spiral'"),
        ({"resolution": 9}, "resolution must be a multiple of 2, got 9"),
        ({"latent_dim": 16}, "latent_dim must be the autoencoder's z_channels = 8, got 16"),
        ({"perturb_rate": 1.5}, "perturb_rate must be at most 1, got 1.5"),
        ({"time_shift": 0.0}, "time_shift must be greater than 0, got 0.0"),
    ],
)
def test_impossible_configurations_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        tiny_config(**changes)


def test_unknown_configuration_keys_are_refused():
    with pytest.raises(ValueError, match="unknown key color"):
        ModelConfig.from_dict({**tiny_config().to_dict(), "color": 3})
    with pytest.raises(ValueError, match="dim is missing"):
        ModelConfig.from_dict({k: v for k, v in tiny_config().to_dict().items() if k != "dim"})


@pytest.mark.parametrize(("depth", "projections"), [(3, 2), (4, 3), (5, 5), (1, 1), (7, 2)])
def test_any_split_of_blocks_over_projections_works(depth, projections):
    config = HeadConfig(8, 16, 32, depth, projections)
    head = DiffusionHead(config)
    x, cond = torch.randn(3, 8), torch.randn(3, 16)
    head.loss(x, cond).backward()
    head(x, torch.rand(3), cond)
    used = [p.grad is not None for p in head.net.ada_ln_blocks.parameters()]
    assert all(used)


def test_narrow_heads_have_one_attention_head():
    for architecture in ("transformer", "t2i"):
        config = HeadConfig(8, 16, 32, 1, 1, architecture=architecture)
        assert config.num_heads == 1
        head = DiffusionHead(config)
        assert head(torch.randn(2, 4, 8), torch.rand(2), torch.randn(2, 4, 16)).shape == (2, 4, 8)


def test_a_new_head_predicts_zero_and_learns():
    head = DiffusionHead(HeadConfig(8, 16, 32, 2, 1))
    x, cond = torch.randn(5, 8).sign(), torch.randn(5, 16)
    assert torch.equal(head(x, torch.rand(5), cond), torch.zeros(5, 8))
    head.loss(x, cond).backward()
    grads = [p.grad for p in head.parameters()]
    assert all(grad is None or grad.isfinite().all() for grad in grads)
    assert head.net.final_layer.linear.weight.grad.abs().sum() > 0


def test_head_checks_shapes():
    head = DiffusionHead(HeadConfig(8, 16, 32, 1, 1))
    x, t, cond = torch.randn(2, 8), torch.rand(2), torch.randn(2, 16)
    for bad, message in (
        ((x[:, :7], t, cond), r"x must be \[R, 8\], got \[2, 7\]"),
        ((x, t, cond[:, None]), r"cond must be \[R, 16\], got \[2, 1, 16\]"),
        ((x, t[:1], cond), r"t must be \[R\] = \[2\], got \[1\]"),
        ((x, t, cond[:1]), "must have the same rows"),
    ):
        with pytest.raises(ValueError, match=message):
            head(*bad)


@pytest.mark.parametrize("patch_size", [1, 2, 4])
@pytest.mark.parametrize(("mode", "P"), [("patch", 4), ("standard", 2), ("patch", 1)])
def test_tokens_and_codes_are_inverse(mode, P, patch_size):
    order = generation_order((4, 6), P, mode)
    assert sorted(order.tolist()) == list(range(24))
    codes = torch.randn(2, 3, 4 * patch_size, 6 * patch_size)
    for layout in (torch.contiguous_format, torch.channels_last):
        tokens = latents_to_tokens(codes.contiguous(memory_format=layout), patch_size, order)
        assert tokens.shape == (2, 24, 3 * patch_size**2)
        assert torch.equal(tokens_to_latents(tokens, patch_size, order, (4, 6)), codes)


def test_patches_are_squares_in_raster_order():
    order = generation_order((4, 4), 4, "patch")
    assert order.tolist() == [0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15]
    with pytest.raises(ValueError, match="root divides the grid 4 x 6, got 9"):
        generation_order((4, 6), 9, "patch")
    with pytest.raises(ValueError, match="mode must be 'patch' or 'standard', got 'zigzag'"):
        generation_order((4, 4), 4, "zigzag")


def test_position_embeddings_need_a_fitting_width():
    with pytest.raises(ValueError, match="dim must be a multiple of 4, got 6"):
        position_embedding_2d(torch.arange(3), 3, 6)


def test_training_learns_and_perturbs_only_what_is_fed_in():
    model = tiny_model(perturb_rate=1.0, class_dropout_prob=0.5)
    model.train()
    tokens = torch.randn(3, 16, 8).sign()
    target, _ = model.conditions(tokens, torch.tensor([0, 1, 2]))
    assert torch.equal(target[:12].reshape(3, 16, 8), tokens)
    model(tokens, torch.tensor([0, 1, 2])).backward()
    for name, parameter in model.named_parameters():
        if not name.startswith("vae."):
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name
    with pytest.raises(ValueError, match=r"tokens must be \[3, 16, 8\], got \[3, 15, 8\]"):
        model(tokens[:, 1:], torch.tensor([0, 1, 2]))


def test_perturbation_flips_where_the_draw_says():
    tokens = torch.randn(3, 5, 7).sign()  # 105 bits, no whole number of bytes
    r1, r2 = torch.rand(3, 5, 7), torch.rand(3, 5, 7)
    expected = torch.where(r1 < 0.7 * r2, -tokens, tokens)
    assert torch.equal(perturb(tokens, 0.7, (r1, r2)), expected)
    assert torch.equal(perturb(tokens, 0.0), tokens)
    flipped = perturb(torch.ones(100_000), 0.5).eq(-1).float().mean().item()
    assert abs(flipped - 0.25) < 6 * (0.25 * 0.75 / 100_000) ** 0.5
    with pytest.raises(ValueError, match=r"must be two of shape \[3, 5, 7\], got \[3, 5, 7\] and"):
        perturb(tokens, 0.7, (r1, r2[:2]))
    with pytest.raises(ValueError, match=r"rate must be in \[0, 1\], got 2"):
        perturb(tokens, 2.0)


def test_classes_are_hidden_where_the_draw_says():
    model = tiny_model(class_dropout_prob=0.4, perturb_rate=0.0)
    model.train()
    tokens, drop = torch.randn(2, 16, 8).sign(), torch.tensor([0.39, 0.4])
    _, hidden = model.conditions(tokens, torch.tensor([1, 1]), TrainingDraws(drop=drop))
    model.eval()
    _, shown = model.conditions(tokens, torch.tensor([1, 1]))
    hidden, shown = (cond.unflatten(0, (-1, 2, 4))[0] for cond in (hidden, shown))
    assert torch.equal(hidden[1], shown[1])
    assert not torch.equal(hidden[0], shown[0])


@pytest.mark.parametrize("P", [*(pytest.param(P, marks=pytest.mark.nightly) for P in (1, 4)), 16])
def test_the_loss_compiles_without_a_break(P):
    model = tiny_model(parallel_num=P)
    model.train()
    patch = () if P == 1 else (P,)
    rows, tokens, labels = 2 * 16 // P * 4, torch.randn(2, 16, 8).sign(), torch.tensor([1, 3])
    draws = TrainingDraws(
        flips=(torch.rand(2, 16, 8), torch.rand(2, 16, 8)),
        drop=torch.rand(2), time=torch.randn(rows), noise=torch.randn(rows, *patch, 8),
    )  # fmt: skip
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    losses = [f(tokens, labels, draws) for f in (model, compiled)]
    torch.testing.assert_close(losses[1], losses[0])
    trained = [p for p in model.parameters() if p.requires_grad]
    torch.testing.assert_close(*(torch.autograd.grad(loss, trained) for loss in losses))


def test_training_under_autocast():
    model = tiny_model()
    model.train()
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(torch.randn(2, 16, 8).sign(), torch.tensor([1, 3]))
    assert loss.dtype == torch.float32
    loss.backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad.dtype == torch.float32, name
            assert parameter.grad.isfinite().all(), name


def test_the_autoencoder_is_not_trained():
    trained = {name for name, p in tiny_model().named_parameters() if p.requires_grad}
    assert trained == {name for name, _ in tiny_model().named_parameters() if name[:4] != "vae."}


def test_tables_are_exact_in_every_precision_and_on_every_way_to_a_model():
    model = tiny_model()
    assert not any(name in ("order", "freqs") for name, _ in model.named_buffers())
    freqs, order = model.freqs, model.order
    with torch.device("meta"):
        assigned, filled = BitDanceModel(model.config), BitDanceModel(model.config)
    assigned.load_state_dict(model.state_dict(), assign=True)
    filled.to_empty(device="cpu").load_state_dict(model.state_dict())
    tokens, labels = torch.randn(1, 16, 8).sign(), torch.tensor([2])
    for other in (assigned.eval(), filled.eval(), tiny_model().to(torch.bfloat16)):
        assert torch.equal(other.freqs, freqs)
        assert torch.equal(other.order, order)
    expected = model.conditions(tokens, labels)[1]
    assert torch.equal(assigned.conditions(tokens, labels)[1], expected)
    assert torch.equal(filled.conditions(tokens, labels)[1], expected)


def test_codes_in_any_layout_give_the_same_tokens():
    model = tiny_model(parallel_mode="standard")
    codes = torch.randn(2, 8, 4, 4).sign()
    tokens = model.to_tokens(codes)
    assert torch.equal(tokens, codes.flatten(2).mT)
    assert torch.equal(tokens, model.to_tokens(codes.contiguous(memory_format=torch.channels_last)))
    assert torch.equal(model.to_latents(tokens), codes)
    images = model.decode(tokens)
    assert images.shape == (2, 3, 8, 8)
    assert torch.equal(model.encode(images), model.to_tokens(model.vae.encode(images)))


@pytest.mark.parametrize(
    ("method", "shape", "message"),
    [
        ("encode", (1, 3, 16, 16), r"images must be \[B, 3, 8, 8\], got \[1, 3, 16, 16\]"),
        ("encode", (3, 8, 8), r"images must be \[B, 3, 8, 8\], got \[3, 8, 8\]"),
        ("encode", (1, 4, 8, 8), r"images must be \[B, 3, 8, 8\], got \[1, 4, 8, 8\]"),
        ("to_tokens", (1, 8, 8, 8), r"latents must be \[B, 8, 4, 4\], got \[1, 8, 8, 8\]"),
        ("to_tokens", (1, 7, 4, 4), r"latents must be \[B, 8, 4, 4\], got \[1, 7, 4, 4\]"),
        ("to_latents", (1, 15, 8), r"tokens must be \[B, 16, 8\], got \[1, 15, 8\]"),
        ("decode", (), r"tokens must be \[B, 16, 8\], got \[\]"),
    ],
)
def test_wrong_shapes_are_refused(method, shape, message):
    with pytest.raises(ValueError, match=message):
        getattr(tiny_model(), method)(torch.zeros(shape))


@pytest.mark.parametrize(
    ("shape", "labels", "message"),
    [
        ((1, 16, 8), [5], r"labels must be 0 to 4, got \[5\]"),
        ((1, 16, 8), 1, r"labels must be int64 \[B\], got torch.int64 \[\]"),
        ((2, 16, 8), [1], r"tokens must be \[1, 16, 8\], got \[2, 16, 8\]"),
        ((1, 4, 8, 8), [1], r"tokens must be \[1, 16, 8\], got \[1, 4, 8, 8\]"),
    ],
)
def test_wrong_batches_are_refused(shape, labels, message):
    with pytest.raises(ValueError, match=message):
        tiny_model()(torch.zeros(shape), torch.tensor(labels))


def test_configurations_compare_by_value():
    assert dataclasses.replace(tiny_config(), autoencoder=AUTOENCODER) == tiny_config()
