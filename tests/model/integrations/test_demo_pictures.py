"""Bits as images and files, and a visitor's pictures through the autoencoder and back."""

import io
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from bitdance.integrations.demo import reconstruction
from bitdance.integrations.demo.bit_map import bit_map, npy_file, unpack_bits
from bitdance.integrations.demo.models import InputError, demo_model
from bitdance.integrations.demo.reconstruction import read_picture, rebuild, sides
from bitdance.integrations.demo.runner import Run, Runner
from bitdance.integrations.demo.studio import reconstruct
from bitdance.models.autoencoder.autoencoder import to_uint8
from tests.model.helpers.demo import CLASSES, TEXTS, pixels_of, text_pipeline
from tests.model.helpers.tiny import tiny_pipeline


@pytest.fixture(scope="module")
def classes():
    return demo_model(tiny_pipeline(), "tiny")


@pytest.fixture(scope="module")
def texts():
    return demo_model(text_pipeline(), "words")


@pytest.fixture(scope="module")
def patches():
    """A model whose tokens have the bits of several places."""
    return demo_model(tiny_pipeline(patch_size=2, resolution=16), "patches")


@pytest.fixture
def runner():
    made = Runner()
    yield made
    made.close()


@pytest.mark.parametrize("kind", ["classes", "patches", "texts"])
def test_bits_lie_where_the_decoder_takes_them(kind, request, runner):
    model = request.getfixturevalue(kind)
    settings = model.settings(**(TEXTS if kind == "texts" else CLASSES))
    *_, (picture, _) = runner.draw(model, settings, Run())
    bits = model.bits(picture)
    packed = np.packbits(bits, axis=-1, bitorder="little")
    assert np.array_equal(unpack_bits(packed, bits.shape[-1]), bits)
    with torch.no_grad():
        decoded = to_uint8(model.autoencoder.decode(torch.from_numpy(packed)[None]))
    assert np.array_equal(decoded[0].permute(1, 2, 0), picture.image)


@pytest.mark.parametrize("channels", [1, 7, 8, 32])
def test_a_map_has_a_pixel_for_each_bit(channels):
    bits = np.random.default_rng(0).integers(0, 2, (3, 5, channels), np.uint8)
    image = np.asarray(bit_map(bits))
    inside = image[image != 128]
    assert inside.size == bits.size
    assert set(np.unique(inside)) <= {0, 255}
    height = {1: 1, 7: 1, 8: 2, 32: 4}[channels]
    width = channels // height
    assert image.shape == (3 * (height + 1) - 1, 5 * (width + 1) - 1)
    cell = image[2 * (height + 1) :, 4 * (width + 1) :]
    assert np.array_equal(cell.flatten() == 255, bits[2, 4] == 1)


def png(width, height, body=b""):
    """The beginning of a PNG file, or with a body all of it."""

    def chunk(name, content):
        crc = struct.pack(">I", zlib.crc32(name + content))
        return struct.pack(">I", len(content)) + name + content + crc

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "a.png is not a complete image: no known image format"),
        (b"hello", "a.png is not a complete image: no known image format"),
        (png(8, 8, b"damaged"), "a.png is not a complete image"),
        (png(8000, 8000), "a.png has too many pixels; pictures of at most 50 million"),
        (png(100_000, 100_000), "a.png has too many pixels"),
        (b"\0" * 3000, "a.png is too large; files of at most"),
    ],
    ids=["empty", "text", "damaged", "large", "bomb", "file"],
)
def test_pictures_that_cannot_be_read(content, message, monkeypatch):
    monkeypatch.setattr(reconstruction, "MAX_FILE_BYTES", 2000)
    with pytest.raises(InputError, match=message) as error:
        read_picture(io.BytesIO(content), "a.png")
    assert len(str(error.value)) < 200


@pytest.mark.parametrize("size", [(8, 8), (37, 21), (1, 300), (400, 5), (3, 3)])
def test_a_picture_of_any_size_is_rebuilt(classes, size):
    draw = np.random.default_rng(0)
    picture = Image.fromarray(draw.integers(0, 256, (size[1], size[0], 3), np.uint8))
    assert sides(classes) == (8, 16, 32)
    for side in sides(classes):
        rebuilt = rebuild(classes, picture, side)
        assert rebuilt.image.size == rebuilt.original.size
        width, height = rebuilt.original.size
        assert min(width, height) == side
        assert max(width, height) <= 2 * side
        assert rebuilt.bits.shape == (height // 2, width // 2, 8)
        assert rebuilt.packed.shape == (height // 2, width // 2, 1)
        error = np.square(np.subtract(rebuilt.image, rebuilt.original, dtype=float)).mean()
        assert rebuilt.psnr_db == pytest.approx(10 * np.log10(255**2 / error))
        assert 0 < rebuilt.kept <= 1


def test_bits_of_a_rebuilt_picture_decode_to_it(classes):
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8))
    rebuilt = rebuild(classes, picture, 8)
    saved = np.load(io.BytesIO(npy_file(rebuilt.packed[None])))
    with torch.no_grad():
        decoded = to_uint8(classes.autoencoder.decode(torch.from_numpy(saved)))
        again = classes.autoencoder.encode(decoded / 127.5 - 1, packed=True)
    assert np.array_equal(decoded[0].permute(1, 2, 0), rebuilt.image)
    same = unpack_bits(again[0].numpy(), 8) == rebuilt.bits
    assert rebuilt.kept == same.mean()


def test_a_picture_of_a_visitor_on_the_page(classes, runner, tmp_path):
    path = tmp_path / "<b>.png"
    Image.new("RGB", (20, 10), "red").save(path)
    shown = reconstruct(classes, runner, str(path), 16)
    assert "&lt;b&gt;.png, 32 x 16 pixels" in shown
    assert "<b>" not in shown
    assert "8 x 16 codes of 8 bits = 128 bytes, 8.33% of the 1,536 bytes" in shown
    original, rebuilt, bits = pixels_of(shown)
    assert original.shape == rebuilt.shape == (16, 32, 3)
    assert bits.shape == (8 * 3 - 1, 16 * 5 - 1)
    assert "Choose a picture first" in reconstruct(classes, runner, None, 16)
    assert "Choose one of the sizes" in reconstruct(classes, runner, str(path), 10**6)
    path.write_text("not a picture")
    assert "not a complete image" in reconstruct(classes, runner, str(path), 16)
