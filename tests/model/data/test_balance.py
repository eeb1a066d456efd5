"""Small classes come more often, and what is repeated is the image itself."""

import numpy as np
import pytest
import torch
from PIL import Image

from bitdance.data.balance import repeat_classes
from bitdance.training.config import DataConfig, parse_run
from bitdance.training.datasets import augmentation, open_training_images
from tests.model.helpers.tiny_images import write_data_set

LABELS = np.repeat([3, 0, 7, 1], [64, 4, 16, 1])


@pytest.mark.parametrize(
    ("balance", "counts"), [(0, [4, 1, 64, 16]), (0.5, [16, 8, 64, 32]), (1, [64, 64, 64, 64])]
)
def test_counts_lie_between_the_classes_own_and_the_largest(balance, counts):
    items = repeat_classes(LABELS, balance)
    classes, found = np.unique(LABELS[items], return_counts=True)
    assert classes.tolist() == [0, 1, 3, 7]
    assert found.tolist() == counts
    times = np.bincount(items, minlength=len(LABELS))
    for label in classes:  # every image, and equally often
        of_class = times[label == LABELS]
        assert of_class.min() >= 1
        assert np.ptp(of_class) <= 1


@pytest.fixture
def folder(tmp_path):
    """Nine red images and a blue one."""
    for i in range(10):
        path = tmp_path / ("blue" if i == 9 else "red") / f"{i}.png"
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (8, 8), (0, 0, 200) if i == 9 else (20 * i, 0, 0)).save(path)
    return tmp_path


@pytest.mark.parametrize("labeled", [True, False])
def test_training_images_are_repeated(folder, labeled):
    images = open_training_images(DataConfig(folder, 8, balance=1.0), labeled=labeled)
    assert len(images) == 18
    taken = images.take(np.arange(18))
    for label, pixels in zip(images.labels, taken, strict=True):
        assert bool(pixels[2].any()) == (images.classes[label] == "blue")
    red = taken[images.labels == images.classes.index("red")]
    assert sorted(red[:, 0, 0, 0].tolist()) == [20 * i for i in range(9)]
    plain = open_training_images(DataConfig(folder, 8))
    assert images.identity() == plain.identity()
    assert len(plain) == 10


def test_repetitions_are_changed_each_in_its_own_way(folder):
    noise = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    Image.fromarray(noise).save(folder / "blue" / "9.png")
    config = parse_run({
        "data": {"path": str(folder), "size": 8, "balance": 1.0, "shift": 2},
        "autoencoder": {"ch_mult": [1, 1]}, "optim": {"steps": 200},
    })  # fmt: skip
    images = open_training_images(config.data, labeled=False)
    blue = np.flatnonzero(images.labels == images.classes.index("blue"))
    taken = augmentation(config).take(images, blue, 0)
    assert len(torch.unique(taken.flatten(1), dim=0)) > 4


def test_balance_needs_classes(folder, tmp_path_factory):
    with pytest.raises(ValueError, match=r"data\.balance must be 0 without classes, got 0\.5"):
        open_training_images(DataConfig(folder / "red", 8, balance=0.5))
    data = write_data_set(tmp_path_factory.mktemp("idx"))
    assert len(open_training_images(DataConfig(data, 8, balance=1.0))) == 60
