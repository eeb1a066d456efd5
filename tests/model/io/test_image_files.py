"""Image files are read as an image viewer shows them, or refused with one error."""

import contextlib
import io
import os
import random
import socket
import struct
import sys
import types
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms

from bitdance.io.image_files import ImageError, is_image, parse_color, read_image, resize_shorter

RED, GREEN, BLUE, WHITE = (250, 10, 10), (10, 240, 20), (10, 10, 250), (255, 255, 255)
# What an EXIF orientation means: the array as it is stored to the array that is seen.
SEEN = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a, 2).swapaxes(0, 1),
    8: lambda a: np.rot90(a, 1),
}


def read(path, **options):
    image = read_image(path, **options)
    assert image.mode == "RGB"
    return np.asarray(image)


def quarters(height=16, width=24):
    """Four quarters of different colors."""
    pixels = np.empty((height, width, 3), np.uint8)
    pixels[: height // 2, : width // 2], pixels[: height // 2, width // 2 :] = RED, GREEN
    pixels[height // 2 :, : width // 2], pixels[height // 2 :, width // 2 :] = BLUE, WHITE
    return pixels


def corners(pixels):
    """The four pixels next to the corners, which compression hardly changes."""
    return pixels[[2, 2, -3, -3], [2, -3, 2, -3]].astype(int)


@pytest.mark.parametrize("orientation", SEEN)
@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp", "a.tiff", "a.mpo", "a.avif"])
def test_orientation_of_a_photo_is_respected(tmp_path, name, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    exact = {"a.webp": {"lossless": True}, "a.jpg": {"quality": 95}, "a.mpo": {"quality": 95}}
    image = Image.fromarray(quarters())
    image.save(tmp_path / name, exif=exif, **exact.get(name, {}))
    seen, expected = read(tmp_path / name), SEEN[orientation](quarters())
    assert seen.shape == expected.shape
    assert abs(corners(seen) - corners(expected)).max() <= (
        0 if name[2:] in ("png", "tiff") else 40
    )


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_orientations_that_do_not_exist_are_ignored(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(quarters()).save(tmp_path / "a.png", exif=exif)
    assert np.array_equal(read(tmp_path / "a.png"), quarters())


def test_orientation_after_the_pixels_of_a_png_is_respected(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    whole = png(2, 8, [bytes(range(9)), bytes(range(9, 18))])
    end = chunk(b"IEND", b"")
    (tmp_path / "a.png").write_bytes(
        whole.removesuffix(end) + chunk(b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0")) + end
    )
    stored = np.arange(18, dtype=np.uint8).reshape(2, 3, 3)
    assert np.array_equal(read(tmp_path / "a.png"), SEEN[6](stored))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp"])
def test_damaged_exif_data_do_not_spoil_the_pixels(tmp_path, name):
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "maker"
    whole = exif.tobytes()
    for end in range(len(whole)):
        Image.fromarray(quarters()).save(tmp_path / name, exif=whole[:end], quality=95)
        assert read(tmp_path / name).shape in ((16, 24, 3), (24, 16, 3))
    Image.fromarray(quarters()).save(tmp_path / name, exif=b"Exif\0\0XX*\0" + whole[10:])
    assert read(tmp_path / name).shape == (16, 24, 3)


def with_hole(mode, hidden):
    """A green square on transparent pixels with a hidden color."""
    if mode == "RGBA":
        pixels = np.zeros((8, 8, 4), np.uint8)
        pixels[..., :3], pixels[2:6, 2:6] = hidden, (*GREEN, 255)
        return Image.fromarray(pixels)
    if mode == "LA":
        pixels = np.zeros((8, 8, 2), np.uint8)
        pixels[..., 0], pixels[2:6, 2:6] = hidden[0], (90, 255)
        return Image.fromarray(pixels)
    image = Image.new("P", (8, 8), 0)
    image.putpalette([*hidden, *GREEN])
    image.paste(1, (2, 2, 6, 6))
    return image


@pytest.mark.parametrize(
    ("mode", "name", "options"),
    [
        ("RGBA", "a.png", {}),
        ("RGBA", "a.webp", {"lossless": True, "exact": True}),
        ("RGBA", "a.tiff", {}),
        ("RGBA", "a.tga", {}),
        ("RGBA", "a.ico", {"sizes": [(8, 8)]}),
        ("RGBA", "a.jp2", {"irreversible": False}),
        ("LA", "a.png", {}),
        ("LA", "a.tiff", {}),
        ("P", "a.png", {"transparency": 0}),
        ("P", "a.png", {"transparency": b"\0\xff"}),
        ("P", "a.gif", {"transparency": 0}),
    ],
)
def test_colors_of_transparent_pixels_are_hidden(tmp_path, mode, name, options):
    for hidden in ((0, 0, 0), (240, 30, 10)):
        with_hole(mode, hidden).save(tmp_path / name, **options)
        for background, behind in (("white", WHITE), ("#102030", (16, 32, 48))):
            seen = read(tmp_path / name, background=background)
            expected = np.full((8, 8, 3), behind, np.uint8)
            expected[2:6, 2:6] = (90, 90, 90) if mode == "LA" else GREEN
            assert np.array_equal(seen, expected)


@pytest.mark.parametrize("name", ["a.png", "a.tiff"])
def test_half_transparent_pixels_are_blended(tmp_path, name):
    pixels = np.zeros((4, 4, 4), np.uint8)
    pixels[..., 0], pixels[..., 3] = 255, 26
    Image.fromarray(pixels).save(tmp_path / name)
    assert read(tmp_path / name)[1, 1].tolist() == [255, 229, 229]
    assert read(tmp_path / name, background="black")[1, 1].tolist() == [26, 0, 0]
    palette = Image.new("P", (4, 4), 0)
    palette.putpalette([255, 0, 0])
    palette.save(tmp_path / "p.png", transparency=bytes([26]))
    assert read(tmp_path / "p.png")[1, 1].tolist() == [255, 229, 229]


def test_premultiplied_alpha_is_not_multiplied_again(tmp_path):
    pixels = np.zeros((4, 4, 4), np.uint8)
    pixels[..., 0], pixels[..., 3] = 128, 128  # full red, half opaque
    Image.fromarray(pixels).save(tmp_path / "a.tiff")
    kind = [struct.pack("<HHIH", 338, 3, 1, alpha) for alpha in (2, 1)]  # the latter: associated
    data = (tmp_path / "a.tiff").read_bytes()
    assert data.count(kind[0]) == 1
    (tmp_path / "a.tiff").write_bytes(data.replace(*kind))
    assert Image.open(tmp_path / "a.tiff").tile[0][3][0] == "RGBa"
    assert read(tmp_path / "a.tiff", background="black")[1, 1].tolist() == [128, 0, 0]


def chunk(kind, data):
    check = struct.pack(">I", zlib.crc32(kind + data))
    return struct.pack(">I", len(data)) + kind + data + check


def png(color_type, depth, rows, *chunks):
    """A PNG file from unfiltered rows, in modes that Pillow does not write."""

    samples = {0: 1, 2: 3}[color_type]
    width = len(rows[0]) * 8 // (depth * samples)
    header = struct.pack(">IIBBBBB", width, len(rows), depth, color_type, 0, 0, 0)
    data = zlib.compress(b"".join(b"\0" + row for row in rows))
    return b"".join(
        [b"\x89PNG\r\n\x1a\n", chunk(b"IHDR", header), *(chunk(*c) for c in chunks),
         chunk(b"IDAT", data), chunk(b"IEND", b"")]
    )  # fmt: skip


@pytest.mark.parametrize(
    ("color_type", "depth", "row", "key", "expected"),
    [
        # Two pixels or more a row; the last is the transparent color.
        (0, 1, b"\x55", b"\0\x01", [(0, 0, 0), BLUE]),
        (0, 2, b"\x1b", b"\0\x03", [(0,) * 3, (85,) * 3, (170,) * 3, BLUE]),
        (0, 4, b"\x1f", b"\0\x0f", [(17,) * 3, BLUE]),
        (0, 8, b"\x07\x08", b"\0\x08", [(7,) * 3, BLUE]),
        (0, 16, b"\x80\x00\x12\x34", b"\x12\x34", [(128,) * 3, BLUE]),
        (2, 8, b"\x01\x02\x03\x04\x05\x06", b"\0\x04\0\x05\0\x06", [(1, 2, 3), BLUE]),
        (2, 16, b"\x01\0\x02\0\x03\0\x04\0\x05\0\x06\0", b"\x04\0\x05\0\x06\0", [(1, 2, 3), BLUE]),
    ],
)
def test_the_transparent_color_of_a_png_at_every_depth(
    tmp_path, color_type, depth, row, key, expected
):
    (tmp_path / "a.png").write_bytes(png(color_type, depth, [row, row], (b"tRNS", key)))
    seen = read(tmp_path / "a.png", background=f"rgb{BLUE}")[0]
    assert [tuple(pixel) for pixel in seen.tolist()][: len(expected)] == expected


def ramp(top, dtype):
    return np.linspace(0, top, 16).round(6).astype(dtype).reshape(2, 8)


@pytest.mark.parametrize(
    ("values", "name"),
    [
        (ramp(65535, np.uint16), "a.png"),
        (ramp(65535, np.uint16), "a.tiff"),
        (ramp(65535, ">u2"), "a.tiff"),
        (ramp(65535, np.int32), "a.tiff"),
        (ramp(65535, np.int32), "a.pgm"),
        (ramp(2**31 - 128, np.int32), "a.tiff"),
        (ramp(255, np.int32), "a.tiff"),
        (ramp(1, np.float32), "a.tiff"),
        (ramp(255, np.float32), "a.tiff"),
        (ramp(9000, np.float32), "a.tiff"),
    ],
)
def test_more_than_8_bits_are_scaled_not_clipped(tmp_path, values, name):
    Image.fromarray(values).save(tmp_path / name)
    expected = np.linspace(0, 255, 16).round().reshape(2, 8)
    seen = read(tmp_path / name)
    assert abs(seen[..., 1] - expected).max() <= 1
    assert (seen[..., :1] == seen).all()


def test_a_dark_image_of_16_bits_stays_dark(tmp_path):
    Image.fromarray(np.full((2, 2), 514, np.uint16)).save(tmp_path / "a.png")
    assert read(tmp_path / "a.png")[0, 0].tolist() == [2, 2, 2]
    Image.fromarray(np.full((2, 2), 514, np.int32)).save(tmp_path / "a.pgm")
    assert read(tmp_path / "a.pgm")[0, 0].tolist() == [2, 2, 2]


def test_colors_of_16_bits_are_scaled(tmp_path):
    row = struct.pack(">6H", 257 * 3, 257 * 200, 65535, 0, 257, 257 * 2)
    (tmp_path / "a.png").write_bytes(png(2, 16, [row]))
    assert read(tmp_path / "a.png")[0].tolist() == [[3, 200, 255], [0, 1, 2]]


def test_a_tiff_of_12_bits_and_one_whose_zero_is_white(tmp_path):
    def tiff(bits, photometric, data):
        tags = [(256, 4), (257, 1), (258, bits), (259, 1), (262, photometric), (273, 8), (277, 1),
                (278, 1), (279, len(data))]  # fmt: skip
        end = struct.pack("<H", len(tags))
        end += b"".join(struct.pack("<HHII", tag, 3, 1, value) for tag, value in tags)
        return b"II*\0" + struct.pack("<I", 8 + len(data)) + data + end + b"\0\0\0\0"

    (tmp_path / "12.tif").write_bytes(tiff(12, 1, bytes.fromhex("000fff800010")))
    assert read(tmp_path / "12.tif")[0, :3, 0].tolist() == [0, 255, 128]
    (tmp_path / "16.tif").write_bytes(tiff(16, 0, struct.pack("<4H", 0, 257, 65535, 65278)))
    assert read(tmp_path / "16.tif")[0, :, 0].tolist() == [255, 254, 0, 1]


def test_values_outside_of_colors(tmp_path):
    values = np.array([[np.nan, -3, 0.5, np.inf]], np.float32)
    Image.fromarray(values).save(tmp_path / "a.tiff")
    assert read(tmp_path / "a.tiff")[0, :, 0].tolist() == [0, 0, 128, 255]
    Image.fromarray(np.array([[-5, 0, 255]], np.int32)).save(tmp_path / "b.tiff")
    assert read(tmp_path / "b.tiff")[0, :, 0].tolist() == [0, 0, 255]


@pytest.mark.parametrize(
    ("image", "name", "expected"),
    [
        (Image.new("RGB", (8, 8), (200, 30, 40)).convert("CMYK"), "a.jpg", (200, 30, 40)),
        (Image.new("RGB", (8, 8), (200, 30, 40)).convert("CMYK"), "a.tiff", (200, 30, 40)),
        (Image.new("YCbCr", (8, 8), (120, 128, 128)), "a.jpg", (120, 120, 120)),
        (Image.new("YCbCr", (8, 8), (120, 128, 128)), "a.tiff", (120, 120, 120)),
        (Image.new("LAB", (8, 8), (130, 128, 128)), "a.tiff", (122, 122, 122)),
        (Image.new("1", (8, 8), 1), "a.png", WHITE),
        (Image.new("1", (8, 8), 1), "a.bmp", WHITE),
        (Image.new("L", (8, 8), 77), "A.PNG", (77, 77, 77)),
        (with_hole("P", RED), "a.bmp", GREEN),
        (Image.new("RGB", (8, 8), GREEN), "ä ö 日本 #1.qoi", GREEN),
    ],
)
def test_color_models_become_rgb(tmp_path, image, name, expected):
    # Pillow 12 does not read the YCbCr that it writes without compression.
    image.save(tmp_path / name, **({"compression": "tiff_lzw"} if image.mode == "YCbCr" else {}))
    assert abs(read(tmp_path / name)[4, 4].astype(int) - expected).max() <= 2


def test_plain_images_keep_every_bit(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (90, 70, 3), dtype=np.uint8)
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for name in ("a.png", "a.bmp", "a.ppm", "a.tiff"):
        Image.fromarray(pixels).save(tmp_path / name)
        assert np.array_equal(read(tmp_path / name), pixels)
    # The red of another maker's sRGB differs in the last digits.
    red = int.from_bytes(srgb[srgb.index(b"rXYZ") + 4 :][:4], "big") + 8
    rounded = srgb[: red + 3] + bytes([srgb[red + 3] ^ 16]) + srgb[red + 4 :]
    other = ImageCms.getOpenProfile(io.BytesIO(rounded))
    converted = ImageCms.profileToProfile(
        Image.fromarray(pixels), other, ImageCms.createProfile("sRGB")
    )
    assert not np.array_equal(np.asarray(converted), pixels)
    for profile in (srgb, rounded):
        Image.fromarray(pixels).save(tmp_path / "a.png", icc_profile=profile)
        assert np.array_equal(read(tmp_path / "a.png"), pixels)
    Image.fromarray(pixels).save(tmp_path / "a.jpg")
    with Image.open(tmp_path / "a.jpg") as image:
        assert np.array_equal(read(tmp_path / "a.jpg"), np.asarray(image))


def other_profile():
    """sRGB with red and blue exchanged."""
    data = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    return data.replace(b"rXYZ", b"swap").replace(b"bXYZ", b"rXYZ").replace(b"swap", b"bXYZ")


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
def test_color_profiles_are_converted_to_srgb(tmp_path, mode):
    image = Image.new("RGB", (8, 8), (255, 0, 0)).convert(mode)
    for name in ("a.png", "a.tiff"):
        image.save(tmp_path / name, icc_profile=other_profile())
        seen = read(tmp_path / name)[4, 4].astype(int)
        assert abs(seen - (0, 0, 255)).max() <= 3, name


@pytest.mark.parametrize("profile", [b"", b"no profile", other_profile()[:300]])
def test_damaged_and_foreign_color_profiles_are_ignored(tmp_path, profile):
    Image.new("RGB", (8, 8), RED).save(tmp_path / "a.png", icc_profile=profile)
    assert read(tmp_path / "a.png")[4, 4].tolist() == list(RED)
    Image.new("L", (8, 8), 77).save(tmp_path / "l.png", icc_profile=other_profile())
    assert read(tmp_path / "l.png")[4, 4].tolist() == [77, 77, 77]


@pytest.mark.parametrize("name", ["a.gif", "a.webp", "a.png", "a.tiff", "a.avif"])
def test_the_first_frame_of_an_animation(tmp_path, name):
    first, *more = (Image.new("RGB", (8, 8), color) for color in (RED, GREEN, BLUE))
    first.save(tmp_path / name, save_all=True, append_images=more)
    assert Image.open(tmp_path / name).n_frames == 3
    assert abs(read(tmp_path / name)[4, 4].astype(int) - RED).max() <= 12


def test_the_content_decides_the_format_not_the_name(tmp_path):
    for name in ("photo", "photo.jpg", "photo.txt"):
        Image.fromarray(quarters()).save(tmp_path / name, format="PNG")
        assert np.array_equal(read(tmp_path / name), quarters())
        assert is_image(tmp_path / name)
    (tmp_path / "text").write_text("P is the first letter")
    assert not is_image(tmp_path / "text")


def test_photos_in_heif_are_read_where_pillow_heif_is_installed(tmp_path, monkeypatch):
    from bitdance.io import image_files

    (tmp_path / "a.HEIC").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    image_files._add_heif.cache_clear()
    assert "no known image format (install pillow-heif for HEIF)" in refused(tmp_path / "a.HEIC")
    calls = []
    fake = types.SimpleNamespace(register_heif_opener=lambda: calls.append(1))
    monkeypatch.setitem(sys.modules, "pillow_heif", fake)
    image_files._add_heif.cache_clear()
    for _ in range(2):
        refused(tmp_path / "a.HEIC")
    assert calls == [1]
    image_files._add_heif.cache_clear()


def refused(path):
    with pytest.raises(ImageError) as caught:
        read_image(path)
    text = str(caught.value)
    assert text.startswith(str(path)), text
    assert "\n" not in text
    return text


def test_special_files_are_refused_without_waiting(tmp_path):
    (tmp_path / "scan.png").mkdir()
    assert "but a folder" in refused(tmp_path / "scan.png")
    os.mkfifo(tmp_path / "pipe.png")
    assert "but a pipe" in refused(tmp_path / "pipe.png")
    (tmp_path / "link.png").symlink_to(tmp_path / "pipe.png")
    assert "but a pipe" in refused(tmp_path / "link.png")
    (tmp_path / "broken.png").symlink_to(tmp_path / "nothing.png")
    assert "No such file" in refused(tmp_path / "broken.png")
    (tmp_path / "loop.png").symlink_to(tmp_path / "loop.png")
    assert "levels of symbolic links" in refused(tmp_path / "loop.png")
    (tmp_path / "null.png").symlink_to("/dev/zero")
    assert "but a device" in refused(tmp_path / "null.png")
    with socket.socket(socket.AF_UNIX) as server:
        folder = os.getcwd()
        os.chdir(tmp_path)  # such names have at most 107 bytes
        try:
            server.bind("socket.png")
        finally:
            os.chdir(folder)
    assert "but a socket" in refused(tmp_path / "socket.png")


def test_bombs_empty_files_and_text_are_refused_by_name(tmp_path, monkeypatch):
    (tmp_path / "empty.png").write_bytes(b"")
    assert "no known image format" in refused(tmp_path / "empty.png")
    (tmp_path / "text.jpg").write_text("no image")
    assert "no known image format" in refused(tmp_path / "text.jpg")
    (tmp_path / "a.eps").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n")
    assert "no known image format" in refused(tmp_path / "a.eps")
    Image.new("1", (64, 64)).save(tmp_path / "big.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2000)
    assert "decompression bomb" in refused(tmp_path / "big.png")
    assert is_image(tmp_path / "big.png")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 3000)
        assert "decompression bomb" in refused(tmp_path / "big.png")


def test_a_name_that_is_not_text_can_be_printed(tmp_path):
    path = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.png")
    with pytest.raises(ImageError) as caught:
        read_image(path)
    assert r"caf\udce9.png" in str(caught.value).encode("utf-8").decode()
    Image.fromarray(quarters()).save(path)
    assert np.array_equal(read(path), quarters())


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("a.png", {}), ("a.jpg", {}), ("a.gif", {}), ("a.tif", {"compression": "tiff_lzw"}),
        ("a.tif", {}), ("a.webp", {}), ("a.bmp", {}), ("a.ppm", {}), ("a.tga", {}), ("a.ico", {}),
        ("a.jp2", {}), ("a.avif", {}), ("a.qoi", {}), ("a.pcx", {}), ("a.sgi", {}), ("a.dds", {}),
    ],
)  # fmt: skip
def test_any_damage_is_an_image_error_with_the_name_of_the_file(tmp_path, name, options):
    """Truncated and overwritten files of many formats give some image or an ImageError."""
    draw = random.Random(name)
    pixels = np.random.default_rng(0).integers(0, 255, (24, 24, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    format = Image.registered_extensions()[os.path.splitext(name)[1]]
    Image.fromarray(pixels).save(buffer, format=format, **options)
    whole, failures = buffer.getvalue(), 0
    for trial in range(60):
        damaged = bytearray(whole)
        if trial % 3 == 0:
            damaged = damaged[: draw.randrange(len(damaged))]
        for _ in range(draw.choice((1, 2, 6)) if trial % 3 else 0):
            damaged[draw.randrange(min(len(damaged), 300))] = draw.randrange(256)
        (tmp_path / name).write_bytes(bytes(damaged))
        with contextlib.suppress(ImageError):
            read_image(tmp_path / name)
            continue
        refused(tmp_path / name)
        failures += 1
    assert failures


@pytest.mark.parametrize("color", ["", "no color", "#12", "#11223344", 5, None, (0, 0, 0)])
def test_backgrounds_must_be_opaque_colors(color):
    with pytest.raises(ValueError, match="background must be an opaque color"):
        parse_color(color)


def test_resizing_keeps_the_proportions_and_is_limited():
    image = Image.new("RGB", (30, 20))
    assert resize_shorter(image, 8, Image.Resampling.BICUBIC).size == (12, 8)
    assert resize_shorter(image.rotate(90, expand=True), 8, Image.Resampling.BICUBIC).size == (
        8,
        12,
    )
    assert resize_shorter(Image.new("RGB", (1000, 3)), 1, Image.Resampling.BICUBIC).size == (333, 1)
    with pytest.raises(ValueError, match="resized to 65535000 x 1000, it has more than"):
        resize_shorter(Image.new("RGB", (65535, 1)), 1000, Image.Resampling.BICUBIC)
