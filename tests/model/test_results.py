"""Results have the shapes and dtypes that are documented, in half precision and under autocast."""

import pytest
import torch

from bitdance.models.autoencoder.autoencoder import BinaryAutoencoder, to_uint8
from bitdance.models.autoencoder.quantizer import BinaryQuantizer, pack_latents, unpack_latents
from bitdance.models.config import AutoencoderConfig
from bitdance.models.projectors import position_embedding_2d
from bitdance.models.qwen3 import rope_frequencies, rope_table
from bitdance.models.transformer import cell_centers, rope_table_2d
from bitdance.sampling.class_conditional import ClassConditionalSampler
from bitdance.sampling.finite import largest
from bitdance.sampling.flow_sampler import Schedule, binarize, sample_patch
from bitdance.sampling.image_decoder import ImageDecoder
from bitdance_kernels import noise_keys
from tests.model.helpers.tiny import AUTOENCODER, tiny_head, tiny_model, tiny_patch

HALF, FULL, WIDE, BYTE = torch.bfloat16, torch.float32, torch.float64, torch.uint8


def kinds(results):
    """(shape, dtype) of every tensor in nested results."""
    if isinstance(results, torch.Tensor):
        return [(tuple(results.shape), results.dtype)]
    return [kind for result in results for kind in kinds(result)]


def autocast(on):
    return torch.autocast("cpu", HALF, enabled=on)


PRECISIONS = pytest.mark.parametrize(
    ("dtype", "on"), [(FULL, False), (FULL, True), (HALF, False), (HALF, True), (WIDE, False)]
)


@PRECISIONS
@pytest.mark.parametrize("size", [8, 12])
def test_of_the_quantizer(dtype, on, size):
    features = torch.randn(2, size, 3, 5).to(dtype).requires_grad_()
    losses = WIDE if dtype is WIDE else FULL
    quantizer = BinaryQuantizer(size, size // 4)
    with autocast(on):
        for with_losses in (True, False):
            result = quantizer(features, with_losses=with_losses)
            expected = [((2, size, 3, 5), dtype), ((2, 3, 5, -(-size // 8)), BYTE)]
            assert kinds(result) == expected + 4 * [((), losses)]
        packed = quantizer(features).packed
        indices = quantizer.to_indices(packed)
        assert kinds(indices) == [((size // 4, 30), torch.int64)]
        assert kinds(quantizer.from_indices(indices)) == [((30, size), FULL)]
        assert kinds(quantizer.from_indices(indices, dtype)) == [((30, size), dtype)]
        assert kinds(pack_latents(features)) == [((2, 3, 5, -(-size // 8)), BYTE)]
        assert kinds(unpack_latents(packed, size)) == [((2, size, 3, 5), FULL)]
        assert kinds(unpack_latents(packed, size, dtype)) == [((2, size, 3, 5), dtype)]
    whole = features.detach().to(losses)
    for mine, reference in zip(
        quantizer(features, with_losses=True).losses,
        quantizer(whole, with_losses=True).losses,
        strict=True,
    ):
        torch.testing.assert_close(mine, reference)  # as exact as the features are
    (gradient,) = torch.autograd.grad(
        quantizer(features, with_losses=True).losses.entropy, features
    )
    assert gradient.dtype == dtype


CONFIGS = {
    "conv": AUTOENCODER,
    "conv_attention": AutoencoderConfig(
        ch=32, ch_mult=(1, 1), num_res_blocks=1, z_channels=8, num_codebooks=1,
        architecture="conv_attention", gan_decoder=True, attn_blocks=1, n_heads=2,
    ),
}  # fmt: skip


@PRECISIONS
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("given", [FULL, HALF])
def test_of_the_autoencoder(dtype, on, config, given):
    model = BinaryAutoencoder(config, dtype=dtype).eval()
    products = HALF if on else dtype
    images = torch.rand(2, 3, 8, 12).to(given)
    image, latent = ((2, 3, 8, 12), products), ((2, 8, 4, 6), products)
    with torch.no_grad(), autocast(on):
        assert kinds(model.features(images)) == [latent]
        assert kinds(model.encode(images)) == [latent]
        packed = model.encode(images, packed=True)
        assert kinds(packed) == [((2, 4, 6, 1), BYTE)]
        assert kinds(model.encode_list(list(images))) == [((48, 8), products)]
        assert kinds(model.decode(packed)) == [image]
        assert kinds(model.decode(model.encode(images))) == [image]
        assert kinds(model.decode_tiled(packed, tile_size=8)) == [image]
        assert kinds(ImageDecoder(model)(packed)) == [((2, 3, 8, 12), BYTE)]
        assert kinds(to_uint8(images)) == [((2, 3, 8, 12), BYTE)]
        for training in (False, True):
            reconstruction, quantized = model.train(training)(images)
            assert kinds(reconstruction) == [image]
            losses = WIDE if products is WIDE else FULL
            assert kinds(quantized) == [latent, ((2, 4, 6, 1), BYTE)] + 4 * [((), losses)]


@PRECISIONS
@pytest.mark.parametrize("architecture", ["mlp", "transformer", "t2i"])
def test_of_the_head(dtype, on, architecture):
    head = tiny_head(architecture, depth_latent=1, depth_adanln=1).to(dtype)
    patch = () if tiny_patch(architecture) is None else (4,)
    x, cond = torch.randn(3, *patch, 8).to(dtype), torch.randn(3, *patch, 24).to(dtype)
    with autocast(on), torch.no_grad():
        result = head(x, torch.rand(3), cond)
        assert kinds(result) == [(tuple(x.shape), HALF if on else dtype)]
        loss = (3, 4) if architecture == "t2i" else ()
        assert kinds(head.loss(x, cond)) == [(loss, FULL)]
        schedule = Schedule.of(head.net, 2)
        assert kinds([schedule.table, schedule.times, schedule.steps]) == [
            ((3, 3), FULL), ((3,), FULL), ((3,), torch.int64)
        ]  # fmt: skip
        keys = noise_keys([1, 2, 3], [0, 0, 0], stream=0)
        for use_kernels in (True, False):
            bits = sample_patch(head.net, schedule, cond, keys=keys, use_kernels=use_kernels)
            assert kinds(bits) == [(tuple(x.shape), FULL)]
        assert kinds(binarize(bits)) == [
            (tuple(x.shape), FULL), ((3, *patch, 1), BYTE)
        ]  # fmt: skip


@pytest.mark.parametrize(
    ("dtype", "on"), [(FULL, False), (FULL, True), (HALF, False), (HALF, True)]
)
@pytest.mark.parametrize("P", [1, 4])
def test_of_the_class_conditional_model(dtype, on, P):
    model = tiny_model(parallel_num=P, n_layer=1, diff_layers=1).to(dtype)
    patch, rows = ((4,), 8) if P == 4 else ((), 32)
    images, labels = torch.rand(2, 3, 8, 8), torch.tensor([1, 2])
    steps = []
    with torch.no_grad(), autocast(on):
        tokens = model.encode(images)
        assert kinds(tokens) == [((2, 16, 8), HALF if on else dtype)]
        assert kinds(model.decode(tokens)) == [((2, 3, 8, 8), HALF if on else dtype)]
        assert kinds(model.embed(tokens)) == [((2, 16, 32), dtype)]
        assert kinds(model.prefix(labels)) == [((2, 3 + P - 1, 32), dtype)]
        times = model.config.diff_batch_mul
        for given in (FULL, HALF):
            assert kinds(model.conditions(tokens.to(given), labels)) == [
                ((times * rows, *patch, 8), given), ((times * rows, *patch, 32), dtype)
            ]  # fmt: skip
            for training in (False, True):
                assert kinds(model.train(training)(tokens.to(given), labels)) == [((), FULL)]
        model.eval()
        found = ClassConditionalSampler(model).sample(
            labels, num_inference_steps=1, guidance_scale=2.0, seeds=[1, 2], on_step=steps.append
        )
        assert kinds(found) == [((2, 16, 8), FULL)]
        length = model.config.prefix + 16 - P
        assert kinds([model.order, model.freqs]) == [((16,), torch.int64), ((length, 8, 2), FULL)]
    for step in steps:
        assert kinds([step.prediction, step.tokens, step.packed]) == [
            ((4, P, 8), FULL), ((4, P, 8), FULL), ((4, P, 1), BYTE)
        ]  # fmt: skip


@pytest.mark.parametrize("on", [False, True])
@pytest.mark.parametrize("dtype", [FULL, HALF, WIDE])
def test_of_tables(on, dtype):
    with autocast(on):
        assert kinds(cell_centers(3, 4)) == [((12, 2), FULL)]
        for centers in (cell_centers(3, 4).to(dtype), cell_centers(3, 4).int()):
            assert kinds(rope_table_2d(centers, 8, prefix=2)) == [((14, 4, 2), FULL)]
        frequencies = rope_frequencies(8, 1e4)
        assert kinds(frequencies) == [((4,), FULL)]
        assert kinds(rope_table(5, frequencies.to(dtype))) == [((5, 4, 2), FULL)]
        assert kinds(position_embedding_2d(torch.arange(6), 3, 8)) == [((6, 8), FULL)]
        assert kinds(largest(torch.randn(2, 3).to(dtype))) == [((2,), FULL)]
