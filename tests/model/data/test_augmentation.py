"""Random changes of training items, a function of seed, step and item."""

import numpy as np
import pytest
import torch

from bitdance.data.augmentation import Augmentation
from bitdance.data.images import open_images
from tests.model.helpers.tiny_images import write_data_set


class Numbered:
    """Images whose pixels are 0 to 15, and a record of the crops that were asked for."""

    size, source, classes = 4, (4, 4), ("",)

    def __init__(self, count=64):
        self.labels, self.crops = np.zeros(count, np.int64), None

    def __len__(self):
        return len(self.labels)

    def take(self, indices, crops=None):
        self.crops = crops
        image = torch.arange(16, dtype=torch.uint8).view(1, 1, 4, 4)
        return image.repeat(len(indices), 3, 1, 1)


ITEMS = np.arange(64)
PLAIN = torch.arange(16).view(4, 4)


def kinds(images):
    return {tuple(m[0].flatten().tolist()) for m in images}


def test_nothing_is_changed_unless_asked_for():
    images = Numbered()
    assert kinds(Augmentation(3).take(images, ITEMS, 0)) == {tuple(PLAIN.flatten().tolist())}
    assert images.crops is None


def test_items_are_mirrored_and_moved():
    mirrored = Augmentation(0, flip=True).take(Numbered(), ITEMS, 0)
    assert kinds(mirrored) == {
        tuple(PLAIN.flatten().tolist()), tuple(PLAIN.flip(-1).flatten().tolist())
    }  # fmt: skip
    moved = Augmentation(0, shift=1).take(Numbered(), ITEMS, 0)
    assert moved.dtype == torch.uint8
    assert len(kinds(moved)) == 9
    assert {int(m[0, 1, 1]) for m in moved} == {0, 1, 2, 4, 5, 6, 8, 9, 10}


def test_the_draws_of_an_item_depend_on_seed_step_and_item_alone():
    every = Augmentation(5, flip=True, shift=1, min_crop=0.8)

    def drawn(items, step=7, augmentation=every):
        images = Numbered()
        return augmentation.take(images, items, step), images.crops

    pixels, crops = drawn(ITEMS)
    order = np.random.default_rng(0).permutation(64)
    for part in (order[:10], order[10:]):  # as on several processes
        others, some = drawn(part)
        assert torch.equal(others, pixels[part])
        assert some == [crops[i] for i in part]
    for other in (drawn(ITEMS, 8), drawn(ITEMS, 7, Augmentation(6, True, 1, 0.8))):
        assert not torch.equal(other[0], pixels)
        assert other[1] != crops
    assert len(set(crops)) == 64
    assert all(0 <= value < 1 for crop in crops for value in crop[1:])
    assert drawn(ITEMS, 7, Augmentation(2**64 - 1, min_crop=0.8))[1] != crops


def test_the_share_of_random_crops_falls_between_two_steps():
    decaying = Augmentation(0, min_crop=0.8, crop_decay=(100, 200))
    items, counts = np.arange(2000), []
    for step in (0, 100, 150, 175, 200, 300):
        images = Numbered()
        decaying.take(images, items, step)
        counts.append(sum(crop is not None for crop in images.crops))
        assert abs(counts[-1] / 2000 - decaying.cropped_share(step)) < 0.04
    assert counts[:2] == [2000, 2000]
    assert counts[4:] == [0, 0]
    assert [decaying.cropped_share(step) for step in (150, 175)] == [0.5, 0.25]
    assert Augmentation(0, min_crop=0.8).cropped_share(10**7) == 1
    assert Augmentation(0).cropped_share(0) == 0


def test_draws_are_even():
    images = Numbered(4000)
    Augmentation(1, min_crop=0.8).take(images, np.arange(4000), 3)
    values = np.array([crop[1:] for crop in images.crops])
    assert np.abs(values.mean(0) - 0.5).max() < 0.03
    assert np.abs(values.var(0) - 1 / 12).max() < 0.01
    assert np.abs(np.corrcoef(values.T) - np.eye(3)).max() < 0.06


def test_padded_images_have_no_random_crops(tmp_path):
    images = open_images(write_data_set(tmp_path), 8)
    with pytest.raises(ValueError, match="crops must be None, since images are padded"):
        Augmentation(0, min_crop=0.8).take(images, np.arange(2), 0)
