"""Images of 8 bits in bounded memory: in tiles, and one by one."""

import copy
import pickle

import pytest
import torch

from bitdance.models.autoencoder.autoencoder import BinaryAutoencoder
from bitdance.models.autoencoder.packed_weights import packed
from bitdance.models.autoencoder.tiling import Tiling
from bitdance.models.config import AutoencoderConfig
from bitdance.models.live_memory import LiveMemory
from bitdance.sampling import graphs, image_decoder
from bitdance.sampling.finite import NotFiniteError
from bitdance.sampling.image_decoder import MAX_CAPTURED_PIXELS, ImageDecoder
from bitdance_kernels import CpuGraph
from tests.model.helpers.tiny import tiny_pipeline
from tests.model.models.test_text_to_image import tiny
from tests.model.pipelines.test_text_to_image import SIZE, Words

SHAPE = AutoencoderConfig(ch=32, ch_mult=(1, 2, 2), num_res_blocks=1, z_channels=8, num_codebooks=1)


def decoder(**changes):
    torch.manual_seed(0)
    values = {**SHAPE.to_dict(), **changes}
    return ImageDecoder(BinaryAutoencoder(AutoencoderConfig.from_dict(values)).eval())


def latents(batch, height, width, device="cpu"):
    made = torch.randn(
        batch, 8, height, width, generator=torch.Generator().manual_seed(1), dtype=torch.float32
    )
    return torch.where(made > 0, 1.0, -1.0).to(device)


@pytest.mark.parametrize("gan_decoder", [False, True])
@torch.no_grad()
def test_tiles_are_those_of_the_whole_image_but_for_rounding(gan_decoder):
    """A level of 255 at most, where a value is near the next one; estimates differ by more."""
    decode, bits = decoder(gan_decoder=gan_decoder), latents(1, 6, 10)
    noise = torch.randn_like(bits) if gan_decoder else None
    whole = decode(bits, noise=noise).int()
    decode.autoencoder.enable_tiling(16)
    tiled = decode(bits, noise=noise)
    assert tiled.dtype == torch.uint8
    assert tiled.is_contiguous(memory_format=torch.channels_last)
    assert not tiled.is_inference()
    difference = (tiled.int() - whole).abs()
    assert difference.max() <= 1
    assert (difference > 0).double().mean() < 0.01
    decode.autoencoder.enable_tiling(16, exact=False)
    estimated = (decode(bits, noise=noise).int() - whole).double()
    assert 0 < estimated.square().mean() < whole.double().var() / 100
    decode.autoencoder.disable_tiling()
    assert torch.equal(decode(bits, noise=noise).int(), whole)


@torch.no_grad()
def test_slices_have_the_bits_of_a_batch():
    decode, bits = decoder(), latents(3, 4, 4)
    together = decode(bits)
    decode.autoencoder.enable_slicing()
    for _ in range(3):  # captured after some calls
        assert torch.equal(decode(bits), together)
    assert decode(bits).is_contiguous(memory_format=torch.channels_last)
    decode.autoencoder.disable_slicing()
    assert torch.equal(decode(bits), together)


@pytest.mark.skipif(CpuGraph.unavailable() is not None, reason="the C++ module was not built here")
@pytest.mark.parametrize("gan_decoder", [False, True])
@torch.no_grad()
def test_an_image_has_the_bits_that_it_has_alone_from_the_first_call_on(gan_decoder, monkeypatch):
    made, bits = decoder(gan_decoder=gan_decoder), latents(19, 4, 4)
    noise = torch.randn_like(bits) if gan_decoder else None
    made.autoencoder.requires_grad_(False)
    monkeypatch.setitem(MAX_CAPTURED_PIXELS, "cpu", 7 * 16 * 16)
    alone = [
        ImageDecoder(made.autoencoder)(
            bits[i : i + 1], noise=None if noise is None else noise[i : i + 1]
        )
        for i in range(len(bits))
    ]
    for batch in (1, 2, 7, 8, 19):
        decode = ImageDecoder(made.autoencoder)
        for _ in range(graphs.CALLS_BEFORE_CAPTURE + 2):
            found = decode(bits[:batch], noise=None if noise is None else noise[:batch])
            assert torch.equal(found, torch.cat(alone[:batch])), batch


@pytest.mark.skipif(CpuGraph.unavailable() is not None, reason="the C++ module was not built here")
def test_weights_are_packed_once_for_all_shapes_and_threads(monkeypatch):
    decode, packs = decoder(), []
    decode.autoencoder.requires_grad_(False)
    monkeypatch.setattr(image_decoder, "packed", lambda plain: packs.append(plain) or packed(plain))
    for batch in (1, 2, 1):
        decode(latents(batch, 4, 4))
        with decode._graphs.lease():  # held by another thread
            decode(latents(batch, 4, 4))
    assert len(packs) == 1
    assert copy.deepcopy(decode)._packed._latest is None, "copies pack their own weights"
    assert pickle.loads(pickle.dumps(decode))._packed._latest is None
    decode.autoencoder.decoder.conv_out.weight.mul_(2)
    decode(latents(1, 4, 4))
    assert len(packs) == 2
    decode.clear()
    assert decode._packed._latest is None


def peak(side, batch=1, **settings):
    """Bytes of maps at a time, counted on the meta device."""
    decode = ImageDecoder(BinaryAutoencoder(SHAPE, device="meta").eval())
    if settings.get("tile_size"):
        decode.autoencoder.enable_tiling(settings["tile_size"], exact=False)
    decode.autoencoder.use_slicing = settings.get("slicing", False)
    with LiveMemory() as memory:
        decode(latents(batch, side // 4, side // 4, "meta"))
    return memory.peak


def test_memory_depends_on_the_tile_and_on_the_image_itself():
    image = 3 * 4 * 256**2 * 4  # its pixels as they are before and while they are rounded
    whole, small = peak(256), peak(64)
    tiled, of_small = peak(256, tile_size=64), peak(128, tile_size=64)
    assert whole > 15 * small
    assert tiled - image < 1.5 * of_small
    assert tiled < whole / 4
    assert peak(64, tile_size=64) == small, "no more pixels than a tile: decoded whole"
    assert peak(64, batch=4) > 3.9 * small
    assert peak(64, batch=4, slicing=True) < 1.2 * small
    assert peak(128, batch=4, tile_size=64) < 1.3 * of_small


@pytest.mark.parametrize(
    ("height", "width", "levels"),
    [(512, 512, 0), (256, 1024, 0), (512, 528, 1), (1024, 1024, 1), (1024, 1040, 2),
     (4096, 4096, 3), (10**5, 10**5, 5)],
)  # fmt: skip
def test_levels_follow_from_the_size(height, width, levels):
    assert Tiling(512, exact=True).levels(height, width, 5) == levels


def test_an_image_that_is_not_finite_is_named():
    decode, bits = decoder(), latents(3, 2, 4)
    bits[1] = torch.nan
    for enable in (decode.autoencoder.enable_slicing, lambda: decode.autoencoder.enable_tiling(8)):
        enable()
        with pytest.raises(NotFiniteError) as caught:
            decode(bits)
        assert list(caught.value.images) == [1]


def test_bad_arguments_are_refused():
    autoencoder = decoder().autoencoder
    for size, kind in ((3, ValueError), (0, ValueError), ("a", TypeError), (8.5, ValueError)):
        with pytest.raises(kind, match="enable_tiling: tile_size must be an integer of at least 4"):
            autoencoder.enable_tiling(size)
    assert autoencoder.tiling is None


def _pipelines():
    from bitdance import BitDanceT2IPipeline

    text = BitDanceT2IPipeline(tiny(), Words())
    text.set_progress_bar_config(disable=True)
    return ((tiny_pipeline(), ([0, 1],), {}), (text, (["a fox", "an owl"],), SIZE))


def test_both_pipelines_decode_so():
    for pipeline, arguments, settings in _pipelines():
        call = {**settings, "num_inference_steps": 1, "seed": 2, "output_type": "uint8"}
        expected = pipeline(*arguments, **call).images
        pipeline.enable_vae_slicing()
        assert torch.equal(pipeline(*arguments, **call).images, expected)
        pipeline.enable_vae_tiling(4)
        with_tiles = pipeline(*arguments, **call).images
        assert (with_tiles.int() - expected.int()).abs().max() <= 1
        assert pipeline.model.get_submodule(
            "ae" if hasattr(pipeline.model, "ae") else "vae"
        ).tiling == Tiling(4, exact=True)
        bits = pipeline(*arguments, **call | {"output_type": "latent"}).images
        assert torch.equal(
            pipeline.decode(bits, **settings, seed=2, output_type="uint8"), with_tiles
        )
        pipeline.disable_vae_tiling()
        pipeline.disable_vae_slicing()
        assert torch.equal(pipeline(*arguments, **call).images, expected)
