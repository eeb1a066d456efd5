"""Sources of training images, and the order of the items."""

import gzip

import numpy as np
import pytest
import torch
from PIL import Image

from bitdance.data.images import FileImages, IdxImages, open_images
from bitdance.data.shuffle import ShuffledBatches
from bitdance.io.image_files import ImageError
from tests.model.helpers.tiny_images import CLASSES, pictures, write_data_set, write_idx


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


@pytest.mark.parametrize("end", ["", ".gz"])
def test_damaged_idx_files_are_refused_by_name(tmp_path, end):
    images, labels = pictures(4, seed=0)
    good, other = (
        tmp_path / f"train-{kind}-ubyte{end}" for kind in ("images-idx3", "labels-idx1")
    )  # fmt: skip

    def refused(message, file=good, kind=ImageError):
        with pytest.raises(kind, match=message) as caught:
            open_images(tmp_path, 8)
        assert str(file) in str(caught.value)
        write_idx(good, images, pack=bool(end))
        write_idx(other, labels, pack=bool(end))

    def write(path, data):
        path.write_bytes(gzip.compress(data) if end else data)

    write_idx(good, images, pack=bool(end))
    refused("none of train-labels-idx1-ubyte", tmp_path, FileNotFoundError)
    for path, array in ((good, images), (other, labels)):
        whole = gzip.decompress(path.read_bytes()) if end else path.read_bytes()
        start = 4 + 4 * array.ndim
        for length in (0, 3, 4, start - 1):
            write(path, whole[:length])
            refused("is not an IDX file|is damaged: it is too short", path)
        write(path, whole[:-1])
        refused(
            f"is damaged: (it must have {array.size} bytes of values, got {array.size - 1}"
            "|it is too short)",
            path,
        )
        write(path, whole + b"\0")
        refused("is damaged: it must have .* bytes of values, got more", path)
        write(path, b"PNG" + whole[3:])
        refused("is not an IDX file of bytes", path)
        write(path, b"\0\0\x08\xff" + b"\0\0\0\1" * 255 + b"\0")
        refused(f"must have {array.ndim} dimensions, got 255", path)
        write(path, whole[:4] + b"\xff" * (start - 4) + whole[start:])
        refused("is damaged: it is too short for the shape", path)
        if end:
            packed = path.read_bytes()
            for damaged in (packed[:-6], packed[:9], b"no gzip", b"", packed[:20] + b"\xff" * 30):
                path.write_bytes(damaged)
                refused("is not an IDX file|is damaged", path)
    write_idx(other, labels[:3], pack=bool(end))
    refused("do not belong together: 4 images and 3 labels")
    for shape in ((4, 0, 6), (0, 6, 6)):
        write_idx(good, np.zeros(shape, np.uint8), pack=bool(end))
        write_idx(other, labels[: shape[0]], pack=bool(end))
        refused("has no pixels")
    assert len(open_images(tmp_path, 8)) == 4


def test_a_zip_bomb_is_not_decompressed(tmp_path, monkeypatch):
    """No more is decompressed than the header says, and impossible headers are refused."""
    write_idx(tmp_path / "train-labels-idx1-ubyte", np.zeros(1))
    bomb = tmp_path / "train-images-idx3-ubyte.gz"
    asked, read = [], gzip.GzipFile.read
    monkeypatch.setattr(gzip.GzipFile, "read", lambda f, n=-1: asked.append(n) or read(f, n))
    for sides, message in ((b"\0\0\0\6", "got more than"), (b"\xff" * 4, "too short")):
        bomb.write_bytes(gzip.compress(b"\0\0\x08\3\0\0\0\1" + sides * 2 + bytes(1 << 24), 1))
        with pytest.raises(ImageError, match=message):
            open_images(tmp_path, 8)
    assert asked
    assert 0 <= min(asked) <= max(asked) <= 6 * 6 + 1


def test_idx_files_and_settings_that_do_not_fit(data):
    with pytest.raises(ValueError, match="size must be at least 6, got 5"):
        open_images(data, 5)
    with pytest.raises(ValueError, match="3 classes, but 2 names"):
        IdxImages(data, 8, classes=("a", "b"))
    for options in ({"background": "black"}, {"on_error": "skip"}):
        with pytest.raises(ValueError, match=f"{next(iter(options))} must be left out for IDX"):
            open_images(data, 8, **options)


def test_classes_of_idx_files_are_those_of_the_training_split(tmp_path):
    images, _ = pictures(4, seed=0)
    for name, labels in (("train", [0, 3, 1, 0]), ("t10k", [1, 1, 0, 0])):
        write_idx(tmp_path / f"{name}-images-idx3-ubyte", images)
        write_idx(tmp_path / f"{name}-labels-idx1-ubyte", np.array(labels))
    assert open_images(tmp_path, 8, split="test").classes == ("0", "1", "2", "3")
    write_idx(tmp_path / "t10k-labels-idx1-ubyte", np.array([4, 0, 0, 0]))
    with pytest.raises(ImageError, match=r"t10k-labels.* has the label 4, but .* have 4 classes"):
        open_images(tmp_path, 8, split="test")
    for kind in ("images-idx3", "labels-idx1"):
        (tmp_path / f"train-{kind}-ubyte").unlink()
    assert len(open_images(tmp_path, 8, split="test").classes) == 5


def test_hidden_idx_files_are_ignored(tmp_path):
    (tmp_path / "._train-images-idx3-ubyte").write_bytes(b"\0\5\x16\7")
    (tmp_path / "cat").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "cat" / "0.png")
    assert open_images(tmp_path, 8).classes == ("cat",)


def test_folders_of_images(tmp_path):
    for part in ("train", "val"):
        for label, name in enumerate(("cat", "dog")):
            (tmp_path / part / name).mkdir(parents=True)
            for i in range(2):
                picture = Image.new("RGB", (20, 12), (100 * label, 10 * i, 0))
                picture.save(tmp_path / part / name / f"{i}.png")
    images = open_images(tmp_path, 8)
    assert isinstance(images, FileImages)
    assert images.classes == ("cat", "dog")
    assert images.labels.tolist() == [0, 0, 1, 1]
    taken = images.take(np.array([3, 0]))
    assert taken.shape == (2, 3, 8, 8)
    assert taken[0, :, 4, 4].tolist() == [100, 10, 0]
    assert len(open_images(tmp_path, 8, split="test")) == 4
    (tmp_path / "train" / "dog" / "2.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"2\.png is not a complete image"):
        open_images(tmp_path, 8).take(np.array([4]))
    with pytest.raises(FileNotFoundError, match="is not a folder of images"):
        open_images(tmp_path / "nothing", 8)


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
    with pytest.raises(ValueError, match="size must be an integer of at least 16, got 15"):
        ShuffledBatches(15, 8, world_size=2)
    with pytest.raises(ValueError, match="rank must be an integer from 0 to 0, got 1"):
        ShuffledBatches(50, 8, rank=1)
