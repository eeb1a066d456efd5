"""Crops with the pixels of ADM's preprocessing."""

import math

import numpy as np
import pytest
from PIL import Image

from bitdance.data.crops import CropDraw, center_crop, random_crop
from bitdance.data.images import open_images

SIZES = [(64, 64), (131, 97), (97, 401), (500, 333), (40, 30), (64, 65)]


def photo(size, seed=0):
    """Noise with a gradient: every pixel matters."""
    width, height = size
    noise = np.random.default_rng(seed).integers(0, 128, (height, width, 3))
    return Image.fromarray((noise + np.arange(width)[:, None] % 128).astype(np.uint8))


def resized(image, side):
    """Halve by box averages while that leaves the side, then bicubic."""
    while min(image.size) >= 2 * side:
        image = image.resize(tuple(x // 2 for x in image.size), resample=Image.BOX)
    scale = side / min(image.size)
    return np.array(
        image.resize(tuple(round(x * scale) for x in image.size), resample=Image.BICUBIC)
    )


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_the_middle_has_the_pixels_of_adm(size):
    image, side = photo(size), 32
    whole = resized(image, side)
    top, left = ((n - side) // 2 for n in whole.shape[:2])
    assert np.array_equal(
        center_crop(image, side, side), whole[top : top + side, left : left + side]
    )


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_random_crops_have_the_pixels_of_adm(size):
    image, side = photo(size), 32
    largest = math.ceil(side / 0.8)
    for wanted in range(side, largest + 1):
        whole = resized(image, wanted)
        rows, columns = (n - side + 1 for n in whole.shape[:2])
        for top, left in ((0, 0), (rows - 1, columns - 1), (rows // 2, columns // 3)):
            draw = CropDraw(
                0.8,
                (wanted - side + 0.5) / (largest - side + 1),
                (top + 0.5) / rows,
                (left + 0.5) / columns,
            )
            expected = whole[top : top + side, left : left + side]
            assert np.array_equal(random_crop(image, side, draw), expected)


def test_draws_at_their_limits_stay_inside():
    last = np.nextafter(1, 0)
    for size in SIZES:
        for draw in (CropDraw(0.8, 0, 0, 0), CropDraw(0.8, last, last, last)):
            assert random_crop(photo(size), 24, draw).size == (24, 24)


def test_a_long_strip_is_cropped_before_it_is_resized(monkeypatch):
    strip = photo((3000, 2))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 40_000)
    middle = strip.crop((1497, 0, 1503, 2))
    assert np.array_equal(center_crop(strip, 32, 32), center_crop(middle, 32, 32))
    assert center_crop(strip, 32, 96).size == (96, 32)
    assert random_crop(strip, 32, CropDraw(0.8, 0.9, 0.9, 0.9)).size == (32, 32)


def test_a_folder_of_images_gives_them(tmp_path):
    for i, size in enumerate(SIZES[:2]):
        photo(size, i).save(tmp_path / f"{i}.png")
    images, draw = open_images(tmp_path, 32), CropDraw(0.8, 0.7, 0.2, 0.5)
    taken = images.take(np.array([1, 0, 1]), [None, draw, draw])
    expected = [
        center_crop(photo(SIZES[1], 1), 32, 32),
        random_crop(photo(SIZES[0], 0), 32, draw),
        random_crop(photo(SIZES[1], 1), 32, draw),
    ]
    for pixels, square in zip(taken, expected, strict=True):
        assert np.array_equal(pixels.permute(1, 2, 0), square)
