"""Where training gets its images from, and in which order."""

import gzip

import numpy as np
import pytest
import torch
from PIL import Image

from bitdance.train.batches import ShuffledBatches
from bitdance.train.images import FolderImages, IdxImages, augment, open_images
from tests.model.tiny_images import CLASSES, pictures, write_data_set, write_idx


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data_set(tmp_path_factory.mktemp("idx"))


def test_idx_files(data):
    train, test = open_images(data, 8), open_images(data, 10, split="test", classes=CLASSES)
    assert (len(train), len(test)) == (60, 30)
    assert (train.classes, test.classes) == (("0", "1", "2"), CLASSES)
    images, labels = pictures(30, seed=30)
    taken = test.take(np.array([3, 29]))
    assert taken.shape == (2, 3, 10, 10)
    assert torch.equal(taken[1, 2, 2:8, 2:8], torch.from_numpy(images[29]))
    assert int(taken[:, :, :2].max()) == 0
    assert np.array_equal(test.labels, labels)


def test_damaged_idx_files(data, tmp_path):
    images, labels = pictures(4, seed=0)
    good = tmp_path / "train-images-idx3-ubyte"
    other = tmp_path / "train-labels-idx1-ubyte"
    write_idx(good, images)
    with pytest.raises(FileNotFoundError, match="train-labels-idx1-ubyte"):
        open_images(tmp_path, 8)
    write_idx(other, labels[:3])
    with pytest.raises(ValueError, match="do not belong together"):
        open_images(tmp_path, 8)
    write_idx(other, labels)
    with pytest.raises(ValueError, match="size must be at least 6, got 5"):
        open_images(tmp_path, 5)
    with pytest.raises(ValueError, match="3 classes, but 2 names"):
        IdxImages(tmp_path, 8, classes=("a", "b"))
    good.write_bytes(good.read_bytes()[:-1])
    with pytest.raises(ValueError, match="is damaged: 143 bytes"):
        open_images(tmp_path, 8)
    good.write_bytes(b"PNG")
    with pytest.raises(ValueError, match="is no IDX file"):
        open_images(tmp_path, 8)
    packed = good.with_suffix(".gz")
    good.unlink()
    packed.write_bytes(gzip.compress(b"\0\0\x08\1")[:-6])
    with pytest.raises(ValueError, match="is damaged"):
        open_images(tmp_path, 8)


def test_folders_of_images(tmp_path):
    for part in ("train", "val"):
        for label, name in enumerate(("cat", "dog")):
            (tmp_path / part / name).mkdir(parents=True)
            for i in range(2):
                picture = Image.new("RGB", (20, 12), (100 * label, 10 * i, 0))
                picture.save(tmp_path / part / name / f"{i}.png")
    images = open_images(tmp_path, 8)
    assert isinstance(images, FolderImages)
    assert images.classes == ("cat", "dog")
    assert images.labels.tolist() == [0, 0, 1, 1]
    taken = images.take(np.array([3, 0]))
    assert taken.shape == (2, 3, 8, 8)
    assert taken[0, :, 4, 4].tolist() == [100, 10, 0]
    assert len(open_images(tmp_path, 8, split="test")) == 4
    (tmp_path / "train" / "dog" / "2.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"2\.png is no whole image"):
        open_images(tmp_path, 8).take(np.array([4]))
    with pytest.raises(FileNotFoundError, match="is no folder of images"):
        open_images(tmp_path / "nothing", 8)


def test_augmentation_moves_and_mirrors():
    image = torch.arange(16, dtype=torch.uint8).view(1, 1, 4, 4).repeat(64, 1, 1, 1)
    torch.manual_seed(0)
    assert augment(image, flip=False, shift=0) is image
    mirrored = augment(image, flip=True, shift=0)
    kinds = {tuple(m.flatten().tolist()) for m in mirrored}
    assert kinds == {
        tuple(image[0].flatten().tolist()),
        tuple(image[0].flip(-1).flatten().tolist()),
    }
    moved = augment(image, flip=False, shift=1)
    assert moved.dtype == torch.uint8
    assert len({tuple(m.flatten().tolist()) for m in moved}) == 9
    assert {int(m[0, 1, 1]) for m in moved} == {0, 1, 2, 4, 5, 6, 8, 9, 10}


def test_batches_cover_every_epoch_and_every_rank():
    ranks = [ShuffledBatches(50, 8, seed=3, rank=r, world_size=2) for r in range(2)]
    assert ranks[0].per_epoch == 3
    for epoch in range(2):
        seen = np.concatenate([b.batch(3 * epoch + i) for b in ranks for i in range(3)])
        assert len(set(seen.tolist())) == 48
    assert not np.array_equal(ranks[0].batch(0), ranks[0].batch(3))
    again = ShuffledBatches(50, 8, seed=3, world_size=2)
    assert np.array_equal(again.batch(4), ranks[0].batch(4))
    assert not np.array_equal(ShuffledBatches(50, 8, seed=4, world_size=2).batch(4), again.batch(4))
    with pytest.raises(ValueError, match="size must be at least 16, got 15"):
        ShuffledBatches(15, 8, world_size=2)
    with pytest.raises(ValueError, match="rank below"):
        ShuffledBatches(50, 8, rank=1)
