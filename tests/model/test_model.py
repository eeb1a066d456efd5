import dataclasses
from pathlib import Path

import pytest
import torch

from bitdance.config import AUTOENCODER_PRESETS, HEAD_PRESETS, PRESETS, HeadConfig, ModelConfig
from bitdance.diffusion_head import DiffusionHead
from bitdance.generation import guidance_at
from bitdance.model import BitDanceModel
from bitdance.projectors import TextToImageProjection, position_embedding_2d
from bitdance.token_order import codes_to_tokens, generation_order, tokens_to_codes
from bitdance.transformer import rope_table_2d
from tests.model.tiny import AUTOENCODER, tiny_config, tiny_model

KEYS = Path(__file__).parent.parent / "golden" / "keys"
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
    tokenizer = _keys(KEYS / "autoencoder_f16c32.txt")
    assert _shapes(model) == expected | {f"vae.{name}": s for name, s in tokenizer.items()}
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
    assert set(AUTOENCODER_PRESETS) == {"d16c32", "d32c128", "d32c256"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dim": 30}, r"dim must be a multiple of 4 \* 2, got 30"),
        ({"n_layer": 0}, "n_layer must be an integer of at least 1, got 0"),
        ({"parallel_num": 8}, "parallel_num must be a square whose root"),
        ({"parallel_num": 5, "parallel_mode": "standard"}, "such that 16 tokens make"),
        ({"parallel_mode": "spiral"}, "parallel_mode must be one of patch, standard, got 'spiral'"),
        ({"resolution": 9}, "resolution must be a multiple of 2, got 9"),
        ({"latent_dim": 16}, "latent_dim must be the autoencoder's z_channels = 8, got 16"),
        ({"perturb_rate": 1.5}, r"perturb_rate must be in \[0, 1\], got 1.5"),
        ({"diff_adanln_layers": 3}, "depth_adanln must be at most depth_latent = 2, got 3"),
        ({"time_shift": 0.0}, "time_shift must be greater than 0, got 0.0"),
    ],
)
def test_impossible_configurations_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        tiny_config(**changes)


def test_unknown_configuration_keys_are_refused():
    with pytest.raises(ValueError, match="unknown keys colour"):
        ModelConfig.from_dict({**tiny_config().to_dict(), "colour": 3})
    with pytest.raises(ValueError, match=r"missing .* 'dim'"):
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
        tokens = codes_to_tokens(codes.contiguous(memory_format=layout), patch_size, order)
        assert tokens.shape == (2, 24, 3 * patch_size**2)
        assert torch.equal(tokens_to_codes(tokens, patch_size, order, (4, 6)), codes)


def test_patches_are_squares_in_raster_order():
    order = generation_order((4, 4), 4, "patch")
    assert order.tolist() == [0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15]
    with pytest.raises(ValueError, match="root divides the grid 4 x 6, got 9"):
        generation_order((4, 6), 9, "patch")
    with pytest.raises(ValueError, match="mode must be 'patch' or 'standard', got 'zigzag'"):
        generation_order((4, 4), 4, "zigzag")


def test_tables_need_fitting_widths():
    with pytest.raises(ValueError, match="head_dim must be a multiple of 4, got 6"):
        rope_table_2d(torch.zeros(3, 2), 6)
    with pytest.raises(ValueError, match="dim must be a multiple of 4, got 6"):
        position_embedding_2d(torch.arange(3), 3, 6)


@pytest.mark.parametrize(("P", "patch_size"), [(1, 1), (4, 1), (16, 1), (4, 2), (1, 2)])
def test_decoding_steps_equal_one_pass(P, patch_size):
    """What the cached steps see is what training sees: hidden states agree position by position."""
    model = tiny_model(parallel_num=P, patch_size=patch_size, resolution=16)
    labels = torch.tensor([1, 3])
    hidden = []
    tokens = model.sample(
        labels, steps=1, seeds=[1, 2], on_step=lambda result: hidden.append(result.hidden)
    )
    _, cond = model.conditions(tokens, labels)
    decoded = torch.cat([hidden[0][:, -P:], *hidden[1:]], dim=1) + model.pos_for_diff.weight
    whole = cond[: cond.shape[0] // model.config.diff_batch_mul].reshape(decoded.shape)
    torch.testing.assert_close(decoded, whole, rtol=1e-4, atol=1e-4)


def test_an_image_does_not_depend_on_its_batch():
    model = tiny_model()
    labels = torch.tensor([0, 4, 2, 2])
    seeds, ids = [7, 7, 9, 7], [0, 1, 0, 3]
    together = model.sample(labels, steps=3, cfg_scale=2.0, seeds=seeds, sample_ids=ids)
    for i in (3, 1, 0, 2):
        alone = model.sample(
            labels[i : i + 1], steps=3, cfg_scale=2.0, seeds=[seeds[i]], sample_ids=[ids[i]]
        )
        assert torch.equal(alone[0], together[i])
    assert not torch.equal(together[2], together[3])


def test_guidance_schedules():
    linear = [guidance_at(i, 4, 3.0, "linear") for i in range(4)]
    assert linear == [1.0, 1.5, 2.0, 2.5]
    assert [guidance_at(i, 4, 3.0, "constant") for i in range(4)] == [3.0] * 4
    with pytest.raises(ValueError, match="must be 'linear' or 'constant', got 'cosine'"):
        guidance_at(0, 4, 3.0, "cosine")


def test_without_guidance_no_unconditional_rows_are_computed():
    model = tiny_model()
    rows = []
    for cfg in (0.5, 1.0, 1.5):
        model.sample(
            torch.tensor([1]), steps=1, cfg_scale=cfg, seeds=[0],
            on_step=lambda result: rows.append(len(result.tokens)),
        )  # fmt: skip
    assert rows == [1] * 8 + [2] * 4


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.tensor([5]), r"labels must be 0 to 4, got \[5\]"),
        (torch.tensor([-1]), r"labels must be 0 to 4, got \[-1\]"),
        (torch.tensor([[1]]), r"labels must be int64 \[B\], got torch.int64 \[1, 1\]"),
        (torch.tensor([1.0]), r"labels must be int64 \[B\], got torch.float32 \[1\]"),
    ],
)
def test_wrong_labels_are_refused(labels, message):
    with pytest.raises(ValueError, match=message):
        tiny_model().sample(labels, seeds=[0])


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


def test_the_cache_is_reused():
    model = tiny_model()
    first = model.sample(torch.tensor([1, 2]), steps=1, seeds=[0, 1])
    cache = model._cache
    again = model.sample(torch.tensor([1, 2]), steps=1, seeds=[0, 1])
    assert model._cache is cache
    assert torch.equal(first, again)


def test_low_precision_models_sample():
    model = tiny_model().to(torch.bfloat16)
    tokens = model.sample(torch.tensor([1]), steps=2, cfg_scale=2.0, seeds=[0])
    assert tokens.abs().eq(1).all()
    assert model.decode(tokens.to(torch.bfloat16)).isfinite().all()


def test_configurations_compare_by_value():
    assert dataclasses.replace(tiny_config(), autoencoder=AUTOENCODER) == tiny_config()
