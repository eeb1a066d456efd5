"""The binary autoencoder beyond its golden vectors: inputs, randomness, tiles, gradients, sizes."""

import copy
import math
import re
from pathlib import Path

import pytest
import torch

from bitdance.models.autoencoder.autoencoder import BinaryAutoencoder, to_uint8
from bitdance.models.autoencoder.blocks import depth_to_space
from bitdance.models.autoencoder.packed_weights import PackedConvolution, can_pack, packed
from bitdance.models.autoencoder.quantizer import BinaryQuantizer, pack_latents, unpack_latents
from bitdance.models.config import AUTOENCODER_PRESETS, AutoencoderConfig
from bitdance.sampling import graphs
from bitdance.sampling.image_decoder import ImageDecoder
from bitdance_kernels import CpuGraph
from bitdance_kernels.testing import compare, specials

KEYS = Path(__file__).parent.parent.parent / "golden" / "keys" / "autoencoder_f16c32.txt"

# 12 bits do not fill whole bytes; three levels, so that tiles can begin at several places.
SHAPE = {"ch": 32, "ch_mult": (1, 2, 4), "num_res_blocks": 1, "z_channels": 12, "num_codebooks": 3}
CONFIGS = {
    "plain": AutoencoderConfig(**SHAPE),
    "noise": AutoencoderConfig(**SHAPE, gan_decoder=True),
    "UniWeTok": AutoencoderConfig(
        **SHAPE, architecture="conv_attention", gan_decoder=True, attn_blocks=1, n_heads=4
    ),
}
EVERY_CONFIG = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)


def _model(config):
    model = BinaryAutoencoder(config).eval().requires_grad_(False)
    for parameter in model.parameters():
        if parameter.dim() == 1:  # a new norm's 1 and 0 would hide a wrong one
            parameter.add_(torch.randn_like(parameter), alpha=0.3)
    return model


def _codes(batch=1, height=5, width=7, bits=12):
    return torch.where(torch.randn(batch, bits, height, width) > 0, 1.0, -1.0)


def _noise(config, codes):
    return torch.randn_like(codes) if config.gan_decoder else None


def test_the_preset_has_the_official_names_and_shapes():
    lines = (line.split("\t") for line in KEYS.read_text().splitlines() if line[0] != "#")
    official = {name: tuple(map(int, shape.split("x"))) for name, shape in lines}
    with torch.device("meta"):
        model = BinaryAutoencoder(AUTOENCODER_PRESETS["d16c32"])
    ours = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    assert ours == official


@pytest.mark.parametrize("preset", sorted(AUTOENCODER_PRESETS.keys() - {"UniWeTok"}))
def test_presets_are_named_by_pixels_and_bits_of_a_code(preset):
    config = AUTOENCODER_PRESETS[preset]
    assert preset == f"d{config.downsampling}c{config.z_channels}"
    assert config.code_bits == 8


@EVERY_CONFIG
def test_configurations_survive_json(config):
    assert AutoencoderConfig.from_dict(config.to_dict()) == config


def test_official_configuration_files_are_understood():
    shape = {"double_z": False, "z_channels": 32, "in_channels": 3, "out_ch": 3, "ch": 256}
    shape |= {"ch_mult": [1, 1, 2, 2, 4], "num_res_blocks": 4}
    plain = {"_class_name": "VQModel", "ddconfig": shape, "checkpoint": None, "gan_decoder": False}
    assert AutoencoderConfig.from_dict(plain) == AUTOENCODER_PRESETS["d16c32"]
    uni = {"ddconfig": {**shape, "resolution": 256, "attn_blocks": 2, "n_heads": 16}}
    config = AutoencoderConfig.from_dict(uni)
    assert (config.architecture, config.gan_decoder) == ("conv_attention", True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ch": 40}, "ch must be a multiple of the 32 norm groups, got 40"),
        ({"ch": 0}, "ch must be at least 1, got 0"),
        ({"ch": 32.5}, "ch must be an integer, got 32.5"),
        ({"ch_mult": []}, "ch_mult must be not empty"),
        ({"ch_mult": [1, 0]}, r"ch_mult[1] must be at least 1, got 0"),
        ({"num_codebooks": 5}, "num_codebooks must be a divisor of z_channels = 12"),
        ({"gan_decoder": 1}, "gan_decoder must be true or false, got 1"),
        ({"architecture": "vit"}, "architecture must be 'conv' or 'conv_attention'"),
        ({"double_z": True}, "double_z must be false"),
        ({"channels": 3}, "unknown key channels"),
        ({"ddconfig": 3}, "ddconfig must be a section of keys and values, got 3"),
        (
            {"architecture": "conv_attention", "ch_mult": [2, 2]},
            "ch_mult must be a list that begins with 1 for 'conv_attention', got (2, 2)",
        ),
        (
            {"architecture": "conv_attention", "n_heads": 5},
            "n_heads must be such that 4 * n_heads divides the middle's width 128, got 5",
        ),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_a_bad_configuration_is_refused_in_words(change, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        AutoencoderConfig.from_dict({**SHAPE, **change})


IMAGES, CODES = torch.zeros(1, 3, 8, 12), torch.ones(1, 12, 2, 3)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda m: m.encode(IMAGES.byte()), TypeError, "images must be floating point"),
        (lambda m: m.encode(IMAGES[0]), ValueError, "images must be [B, 3, H, W], got [3, 8, 12]"),
        (lambda m: m.encode(IMAGES[:, :2]), ValueError, "images must be [B, 3, H, W], got [1, 2,"),
        (lambda m: m.encode(IMAGES[..., :10]), ValueError, "multiples of 4 and at least 4, got [8"),
        (lambda m: m.encode(IMAGES[..., :0]), ValueError, "multiples of 4 and at least 4, got [8"),
        (lambda m: m.encode_list([]), ValueError, "images must be a sequence of at least one"),
        (
            lambda m: m.encode_list([IMAGES], patch_size=0),
            ValueError,
            "patch_size must be at least",
        ),
        (lambda m: m.encode_list([IMAGES], patch_size=2), ValueError, "got 2 for 2 x 3"),
        (
            lambda m: m.encode_list([IMAGES], max_batch=0),
            ValueError,
            "max_batch must be at least 1",
        ),
        (
            lambda m: m.quantize(CODES[:, :4]),
            ValueError,
            "features must be [B, 12, ...], got [1, 4",
        ),
        (
            lambda m: m.decode(CODES.long()),
            TypeError,
            "latents must be floating point or packed uint8",
        ),
        (lambda m: m.decode(CODES[:, :8]), ValueError, "latents must be [B, 12, h, w], got [1, 8"),
        (lambda m: m.decode(CODES.byte()), ValueError, "packed latents must be [B, h, w, 2], got"),
        (
            lambda m: m.decode(CODES[..., :1, :1]),
            ValueError,
            "latents must have at least 2 positions",
        ),
        (lambda m: m.decode(CODES, noise=CODES), ValueError, "noise must be None"),
        (
            lambda m: m.decode_tiled(CODES, tiled_levels=4),
            ValueError,
            "tiled_levels must be between",
        ),
        (
            lambda m: m.decode_tiled(CODES, tiled_levels=0),
            ValueError,
            "tiled_levels must be between",
        ),
        (lambda m: m.decode_tiled(CODES, tile_size=1), ValueError, "tile_size must be at least 2"),
        (lambda m: to_uint8(IMAGES.long()), TypeError, "images must be floating point"),
        (lambda m: depth_to_space(CODES, 5), ValueError, "x must be [B, 25 C, H, W]"),
        (
            lambda m: BinaryQuantizer(12, 5),
            ValueError,
            "num_codebooks must be a divisor of dim = 12",
        ),
    ],
)
def test_a_bad_argument_is_refused_in_words(call, error, message):
    with pytest.raises(error, match=re.escape(message)):
        call(_model(CONFIGS["plain"]))


def test_noise_of_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"noise must be \[1, 12, 2, 3\] like latents, got"):
        _model(CONFIGS["noise"]).decode(CODES, noise=CODES[..., :2])


def test_uniwetok_refuses_an_image_of_one_code_a_side():
    with pytest.raises(ValueError, match="at least 8"):
        _model(CONFIGS["UniWeTok"]).encode(IMAGES[:, :, :4])


@EVERY_CONFIG
def test_a_row_of_codes_decodes(config):
    model, codes = _model(config), _codes(height=1, width=2)
    image = model.decode(codes, noise=_noise(config, codes))
    assert image.shape == (1, 3, 4, 8)
    assert image.isfinite().all()


@EVERY_CONFIG
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_codes_and_bits_are_interchangeable(config, dtype):
    model = _model(config).to(dtype)
    images = torch.rand(2, 3, 16, 12) * 2 - 1
    codes, packed = model.encode(images), model.encode(images, packed=True)
    assert codes.dtype == dtype
    assert codes.shape == (2, 12, 4, 3)
    assert packed.dtype == torch.uint8
    assert packed.shape == (2, 4, 3, 2)
    assert torch.equal(unpack_latents(packed, 12, dtype), codes)
    assert torch.equal(pack_latents(codes), packed)
    noise = _noise(config, codes)
    assert torch.equal(model.decode(codes, noise=noise), model.decode(packed, noise=noise))


@pytest.mark.parametrize("channels", [1, 7, 8, 12, 32])
def test_packing_keeps_every_channel(channels):
    codes = _codes(batch=2, bits=channels)
    packed = pack_latents(codes)
    assert torch.equal(unpack_latents(packed, channels), codes)
    for c in range(channels):
        bit = packed[..., c // 8] >> (c % 8) & 1
        assert torch.equal(bit.bool(), codes[:, c] > 0)


@EVERY_CONFIG
def test_decoding_draws_from_the_generator_only(config):
    model, codes = _model(config), _codes()
    draw = [
        model.decode(codes, generator=torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)
    ]
    assert torch.equal(draw[0], draw[1])
    assert torch.equal(draw[0], draw[2]) != config.gan_decoder
    noise = torch.randn(codes.shape, generator=torch.Generator().manual_seed(1))
    if config.gan_decoder:
        assert torch.equal(draw[0], model.decode(codes, noise=noise))


@EVERY_CONFIG
@pytest.mark.parametrize(
    ("levels", "tile_size"), [(1, 8), (2, 8), (3, 8), (3, 1000)], ids=lambda value: str(value)
)
def test_tiles_give_the_image_of_the_whole_decode(config, levels, tile_size):
    # Long enough for tiles whose borders reach no edge of the map.
    model, codes = _model(config), _codes(batch=2 if levels == 1 else 1, height=2, width=15)
    noise = _noise(config, codes)
    whole = model.decode(codes, noise=noise)
    tiled = model.decode_tiled(codes, noise=noise, tiled_levels=levels, tile_size=tile_size)
    truth = model.double().decode(codes, noise=noise)
    compare("staged", tiled, whole, truth, "tiled decode")


def test_a_single_tile_has_exact_statistics_at_once():
    model, codes = _model(CONFIGS["plain"]), _codes()
    whole = model.decode(codes)
    tiled = model.decode_tiled(codes, tile_size=1000, exact=False)
    compare("staged", tiled, whole, model.double().decode(codes), "one tile")


def test_estimated_statistics_come_near_the_whole_decode():
    model, codes = _model(CONFIGS["plain"]), _codes(height=16, width=16)
    whole = model.decode(codes)
    estimate = model.decode_tiled(codes, tile_size=16, exact=False) - whole
    assert estimate.square().mean() < whole.var() / 100


def test_tiled_decoding_draws_the_same_noise():
    model, codes = _model(CONFIGS["noise"]), _codes(batch=2)
    draws = [torch.Generator().manual_seed(3) for _ in range(2)]
    tiled = model.decode_tiled(codes, generator=draws[0], exact=False, tile_size=1000)
    noise = torch.randn(codes.shape, generator=draws[1])
    assert torch.equal(tiled, model.decode_tiled(codes, noise=noise, exact=False, tile_size=1000))


def test_no_map_of_a_tiled_level_is_larger_than_a_tile_and_its_border():
    model = _model(CONFIGS["plain"])
    seen = []
    for module in model.decoder.up[0].modules():
        module.register_forward_pre_hook(lambda _, args: seen.append(args[0].shape[2:]))
    model.decode_tiled(_codes(height=32, width=32), tile_size=16, exact=False)
    # conv_out and the level's two convolutions reach 3 pixels, 2 cells of the level before, whose
    # upsampling convolution reaches 1 more: 3 cells are 6 pixels on either side.
    assert max(max(shape) for shape in seen) == 16 + 2 * 6


@pytest.mark.parametrize("groups", [1, 2, 3, 12])
def test_indices_are_little_endian_within_a_group(groups):
    quantizer = BinaryQuantizer(12, groups)
    features = torch.randn(2, 12, 3, 5)
    features[0, :, 0, 0] = 0.0
    features[0, :6, 0, 1] = -0.0
    codes, packed, _ = quantizer(features)
    assert torch.equal(codes, torch.where(features > 0, 1.0, -1.0))
    indices = quantizer.to_indices(packed)
    assert indices.shape == (groups, 2 * 3 * 5)
    bits = (features > 0).long().unflatten(1, (groups, -1))  # B G d h w
    place = 2 ** torch.arange(12 // groups).view(-1, 1, 1)
    assert torch.equal(indices, (bits * place).sum(2).movedim(1, 0).flatten(1))
    assert torch.equal(quantizer.from_indices(indices), codes.movedim(1, -1).flatten(0, -2))


def test_whole_bytes_are_indices():
    quantizer = BinaryQuantizer(32, 4)
    features = torch.randn(3, 32, 2, 2)
    _, packed, _ = quantizer(features)
    assert torch.equal(quantizer.to_indices(packed), packed.flatten(0, 2).T.long())
    assert torch.equal(unpack_latents(packed, 32), torch.where(features > 0, 1.0, -1.0))


def test_special_values_have_the_sign_rule_of_the_bits():
    values = torch.tensor(specials(torch.float32))
    codes, _, _ = BinaryQuantizer(1)(values.view(-1, 1, 1, 1))
    assert torch.equal(codes.flatten(), torch.where(values > 0, 1.0, -1.0))


@pytest.mark.parametrize("groups", [1, 2])
def test_losses_are_those_of_the_softmax_over_all_codes(groups):
    features = (torch.randn(2, 8, 3, 3) * 0.05).double()
    quantizer = BinaryQuantizer(8, groups, sample_weight=0.7, codebook_weight=1.3)
    bits = quantizer.code_bits
    losses = quantizer(features, with_losses=True).losses
    corners = quantizer.from_indices(torch.arange(2**bits).expand(groups, -1))[:, :bits].double()
    x = features.movedim(1, -1).reshape(-1, bits)
    p = (2 * x @ corners.T / 0.01).softmax(-1)
    mean = p.mean(0)
    sample, codebook = -(p * p.log()).sum(-1).mean(), -(mean * (mean + 1e-5).log()).sum()
    commitment = (features.abs() - 1).square().mean()
    expected = (sample, codebook, 0.7 * sample - 1.3 * codebook, commitment)
    for name, got, want in zip(losses._fields, losses, expected, strict=True):
        torch.testing.assert_close(
            got.double(), want, msg=lambda text, name=name: f"{name}: {text}"
        )


def test_training_reaches_every_parameter_through_the_signs():
    model = BinaryAutoencoder(CONFIGS["UniWeTok"]).train()
    images = torch.rand(2, 3, 16, 16) * 2 - 1
    reconstruction, quantized = model(images)
    losses = quantized.losses
    assert losses.entropy.requires_grad
    total = (reconstruction - images).square().mean() + losses.entropy + losses.commitment
    total.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


def test_the_straight_through_gradient_is_the_identity():
    features = torch.randn(1, 12, 2, 2, requires_grad=True)
    codes, _, losses = BinaryQuantizer(12, 3)(features)
    assert all(loss == 0 for loss in losses)
    weights = torch.randn_like(codes)
    (gradient,) = torch.autograd.grad((codes * weights).sum(), features)
    assert torch.equal(gradient, weights)


def test_a_list_of_images_keeps_its_order():
    model = _model(CONFIGS["plain"])
    sizes = [(8, 16), (16, 8), (8, 16), (8, 8), (8, 16)]
    images = [torch.rand(3, *size) * 2 - 1 for size in sizes]
    images[1] = images[1][None]
    tokens = model.encode_list(images, patch_size=2, max_batch=2)
    expected = []
    for image in images:
        codes = model.encode(image.view(1, *image.shape[-3:]))[0]
        _, h, w = codes.shape
        expected += [
            codes[:, y + dy, x + dx]
            for y in range(0, h, 2)
            for x in range(0, w, 2)
            for dy in range(2)
            for dx in range(2)
        ]
    assert torch.equal(tokens, torch.stack(expected))


def test_depth_to_space_puts_the_channel_last_in_a_block():
    x = torch.arange(2 * 12 * 2 * 3).view(2, 12, 2, 3)
    out = depth_to_space(x, 2)
    assert out.shape == (2, 3, 4, 6)
    for dy in range(2):
        for dx in range(2):
            first = (2 * dy + dx) * 3
            assert torch.equal(out[:, :, dy::2, dx::2], x[:, first : first + 3])
    assert torch.equal(depth_to_space(x.contiguous(memory_format=torch.channels_last), 2), out)


def test_eight_bits_cut_off_the_fraction_and_clamp():
    x = torch.tensor([-2.0, -1.0, -0.5, 0.0, 0.5, 0.996, 1.0, 3.0])
    assert to_uint8(x).tolist() == [0, 0, 64, 128, 191, 254, 255, 255]
    assert torch.equal(to_uint8(x.bfloat16()), to_uint8(x.bfloat16().float()))


@EVERY_CONFIG
def test_maps_are_channels_last_from_end_to_end(config):
    model, codes = _model(config), _codes()
    layouts = []

    def seen(module, args, result):
        for tensor in (args[0], result):
            layouts.append(tensor.is_contiguous(memory_format=torch.channels_last))

    for module in model.decoder.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.register_forward_hook(seen)
    model.decode(codes, noise=_noise(config, codes))
    assert len(layouts) > 20
    assert all(layouts)


def test_channels_last_weights_give_the_same_image():
    model, codes = _model(CONFIGS["plain"]), _codes()
    contiguous = model.decode(codes)
    last = model.to(memory_format=torch.channels_last).decode(codes)
    truth = model.double().decode(codes)
    compare("staged", last, contiguous, truth, "channels last")


def test_pixels_are_those_of_the_image():
    model, codes = _model(CONFIGS["noise"]), _codes(batch=2)
    noise = _noise(CONFIGS["noise"], codes)
    decode = ImageDecoder(model)
    pixels = decode(codes, noise=noise)
    assert torch.equal(pixels, to_uint8(model.decode(codes, noise=noise)))
    assert pixels.permute(0, 2, 3, 1).is_contiguous(), "a picture library takes them as they are"
    pixels.add_(1)  # no inference tensor
    drawn = [decode(codes, generator=torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)]
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


def _distance(decode, codes):
    """Grey levels between pixels and the image, at most."""
    pixels, expected = decode(codes), to_uint8(decode.autoencoder.decode(codes))
    return (pixels.int() - expected.int()).abs().max().item()


@pytest.mark.skipif(CpuGraph.unavailable() is not None, reason="the C++ module was not built here")
def test_pixels_come_from_packed_weights_that_follow_the_others():
    model = _model(CONFIGS["plain"])
    decode = ImageDecoder(model)
    wide, narrow = _codes(batch=3), _codes(batch=1)
    for _ in range(2 * graphs.CALLS_BEFORE_CAPTURE):
        assert max(_distance(decode, wide), _distance(decode, narrow)) <= 1
    for parameter in model.decoder.parameters():
        parameter.mul_(1.1)
    before = to_uint8(model.decode(wide))
    model.decoder.conv_out = copy.deepcopy(model.decoder.conv_out)
    model.decoder.conv_out.weight.neg_()
    assert not torch.equal(before, to_uint8(model.decode(wide)))
    for _ in range(2 * graphs.CALLS_BEFORE_CAPTURE):
        assert _distance(decode, wide) <= 1


@pytest.mark.skipif(CpuGraph.unavailable() is not None, reason="the C++ module was not built here")
def test_a_packed_decoder_shares_all_but_its_convolutions_weights():
    model, codes = _model(CONFIGS["plain"]).requires_grad_(True), _codes(batch=2)
    assert not can_pack(model.decoder), "what is trained is not packed"
    model.requires_grad_(False)
    assert can_pack(model.decoder)
    decoder = packed(model.decoder)
    plain = [m for m in model.decoder.modules() if isinstance(m, torch.nn.Conv2d)]
    left = [m for m in decoder.modules() if isinstance(m, torch.nn.Conv2d)]
    last = model.decoder.conv_out
    assert [m for m in plain if m.out_channels % 16 != 0] == [last]
    assert left == [], "the last one too"
    copied = {id(m.weight) for m in plain} | {id(last.bias)}
    shared = {id(p) for p in model.decoder.parameters()} - copied
    assert {id(p) for p in decoder.parameters()} == shared
    assert any(isinstance(m, PackedConvolution) for m in decoder.modules())
    torch.testing.assert_close(decoder(codes), model.decoder(codes))


@EVERY_CONFIG
def test_encoding_and_decoding_compile_to_one_graph(config):
    model, codes = _model(config), _codes()
    noise = _noise(config, codes)
    images = model.decode(codes, noise=noise)
    decode = torch.compile(model.decode, backend="aot_eager", fullgraph=True)
    assert torch.equal(decode(codes, noise=noise), images)
    encode = torch.compile(model.encode, backend="aot_eager", fullgraph=True)
    assert torch.equal(encode(images), model.encode(images))


def test_per_group_sees_a_channel_that_is_constant_in_one_group():
    """The mean distribution of the groups, which the official code takes, hardly does."""
    signs = torch.randint(0, 2, (4096, 8), generator=torch.Generator().manual_seed(0)) * 2.0 - 1
    constant = signs.clone()
    constant[:, 5] = 1.0
    lost = {}
    for per_group in (False, True):
        quantizer = BinaryQuantizer(8, 2, per_group=per_group)
        even, missing = (
            quantizer(x, with_losses=True).losses.codebook_entropy.item() for x in (signs, constant)
        )
        assert even == pytest.approx(4 * math.log(2), rel=1e-2)
        lost[per_group] = even - missing
    assert lost[True] == pytest.approx(math.log(2) / 2, rel=1e-2)
    assert lost[False] < 0.4 * lost[True]
