"""Images in memory are those of the files, which are read once."""

import numpy as np
import pytest
import torch
from PIL import Image

from bitdance.data import cached_images, images
from bitdance.data.cached_images import CachedImages
from bitdance.data.crops import CropDraw
from bitdance.data.images import ImageError, open_images
from bitdance.training.config import DataConfig
from bitdance.training.datasets import open_training_images
from tests.model.helpers.tiny_images import write_data_set


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    for i in range(5):
        path = tmp_path / ("a" if i < 3 else "b") / f"{i}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (9, 12, 3), np.uint8)).save(path)
    return tmp_path


@pytest.mark.parametrize("at_once", [2, 5, 1024])
def test_they_are_those_of_the_files(folder, monkeypatch, at_once):
    monkeypatch.setattr(cached_images, "_AT_ONCE", at_once)
    plain = open_images(folder, 8)
    cached = CachedImages(plain)
    items = np.array([4, 0, 0, 3])
    assert torch.equal(cached.take(items), plain.take(items))
    assert torch.equal(cached.take(items, [None] * 4), plain.take(items))
    assert (len(cached), cached.size, cached.source) == (5, 8, plain.source)
    assert (cached.classes, cached.identity()) == (plain.classes, plain.identity())
    assert cached.labels.tolist() == plain.labels.tolist()
    with pytest.raises(ValueError, match=r"CachedImages.take: crops must be None"):
        cached.take(items[:1], [CropDraw(0.5, 0.1, 0.2, 0.3)])


def test_a_run_reads_each_file_once(folder, monkeypatch):
    read, original = [], images._load
    monkeypatch.setattr(
        images, "_load", lambda file, *rest: read.append(file) or original(file, *rest)
    )
    data = open_training_images(DataConfig(folder, 8, cache=True, balance=1.0))
    for _ in range(3):
        data.take(np.arange(len(data)))
    assert sorted(read) == sorted(set(read))
    assert len(read) == 5


def test_a_damaged_file_ends_it_before_the_first_step(folder):
    (folder / "a" / "1.png").write_bytes(b"no image")
    with pytest.raises(ImageError, match=r"1\.png"):
        open_training_images(DataConfig(folder, 8, cache=True))


def test_settings_that_exclude_it(tmp_path):
    with pytest.raises(ValueError, match="cache"):
        DataConfig(tmp_path, 8, cache=True, min_crop=0.5)
    write_data_set(tmp_path)
    with pytest.raises(ValueError, match=r"data\.cache must be left out, since .* holds IDX files"):
        open_training_images(DataConfig(tmp_path, 32, cache=True))
