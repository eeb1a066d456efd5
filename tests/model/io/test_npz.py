"""The ``.npz`` files of images: NumPy reads them, and they need the memory of one block."""

import os
import tracemalloc
import zipfile

import numpy as np
import pytest

from bitdance.io.npz import ImageArray, NpzError, read_arrays, write_images

IMAGES = np.random.default_rng(0).integers(0, 256, (7, 4, 6, 3), np.uint8)
LABELS = np.array([3, 1, 4, 1, 5, 9, 2])


def _write(path, images=IMAGES, labels=LABELS):
    write_images(path, (images[i : i + 3] for i in range(0, len(images), 3)), labels, (4, 6))
    return path


def test_numpy_reads_what_is_written(tmp_path):
    path = _write(tmp_path / "a.npz")
    with np.load(path) as content:
        assert content.files == ["arr_0", "arr_1"]
        assert content["arr_0"].dtype == np.uint8
        assert content["arr_1"].dtype == np.int64
        assert np.array_equal(content["arr_0"], IMAGES)
        assert np.array_equal(content["arr_1"], LABELS)
    assert path.read_bytes() == _write(tmp_path / "b.npz").read_bytes()


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_what_numpy_writes_is_read(tmp_path, save):
    save(tmp_path / "a.npz", IMAGES, LABELS)
    save(tmp_path / "b.npz", images=IMAGES)
    for name in ("a", "b"):
        with ImageArray(tmp_path / f"{name}.npz") as images:
            assert len(images) == 7
            assert images.shape == IMAGES.shape
            for start, stop in ((0, 0), (0, 2), (3, 4), (4, 7)):
                assert np.array_equal(images.read(start, stop), IMAGES[start:stop])
            with pytest.raises(ValueError, match="must be from 7 to 7, got 0 and 2"):
                images.read(0, 2)


def test_the_memory_is_that_of_a_block(tmp_path):
    block = np.zeros((16, 64, 64, 3), np.uint8)
    count = 40
    tracemalloc.start()
    write_images(
        tmp_path / "a.npz", (block.copy() for _ in range(count)), np.zeros(16 * count), (64, 64)
    )
    with ImageArray(tmp_path / "a.npz") as images:
        for start in range(0, len(images), 16):
            images.read(start, start + 16)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert len(images) * block[0].nbytes > 8 * peak > 8 * block.nbytes


def test_wrong_blocks_leave_no_file(tmp_path):
    for blocks, labels in (
        ([IMAGES], LABELS[:6]), ([IMAGES[:6]], LABELS), ([IMAGES[:, :3]], LABELS),
        ([IMAGES.astype(np.int8)], LABELS),
    ):  # fmt: skip
        with pytest.raises(ValueError, match="write_images: blocks must"):
            write_images(tmp_path / "a.npz", blocks, labels, (4, 6))
    assert not any(tmp_path.iterdir())


def test_damaged_and_other_files_are_named(tmp_path):
    path = _write(tmp_path / "a.npz")
    content = bytearray(path.read_bytes())
    at = bytes(content).index(IMAGES[:1].tobytes())
    (tmp_path / "short.npz").write_bytes(content[:-40])
    content[at + 5] ^= 1
    (tmp_path / "altered.npz").write_bytes(content)
    np.savez(tmp_path / "float.npz", IMAGES.astype(np.float32))
    np.savez(tmp_path / "two.npz", a=IMAGES, b=IMAGES)
    np.savez(tmp_path / "gray.npz", IMAGES[..., :1])
    with zipfile.ZipFile(tmp_path / "none.npz", "w") as archive:
        archive.writestr("arr_0.npy", b"no array")
    for name, message in (
        ("short", "is not a complete .npz file"), ("altered", "is damaged"),
        ("float", "must be uint8"), ("two", "must have an array arr_0"),
        ("gray", "must be uint8"), ("none", "is damaged"),
    ):  # fmt: skip
        with (
            pytest.raises(NpzError, match=f"{name}.npz.*{message}"),
            ImageArray(tmp_path / f"{name}.npz") as images,
        ):
            images.read(0, len(images))
    with pytest.raises(FileNotFoundError, match="no such file"):
        ImageArray(tmp_path / "nothing.npz")


def test_the_header_must_be_of_the_whole_array(tmp_path):
    """Otherwise the checksum, which is compared at the end, would never be."""
    path = tmp_path / "a.npz"
    write_images(path, [np.zeros((500, 4, 6, 3), np.uint8)], np.zeros(500, np.int64), (4, 6))
    content = path.read_bytes()
    for old, new in (("(500, 4", "(400, 4"), (", 6, 3)", ", 2, 3)")):
        assert content.count(old.encode()) == 1
        path.write_bytes(content.replace(old.encode(), new.encode()))
        with pytest.raises(NpzError, match=r"arr_0.npy must have \d+ bytes for \[\d+, 4, \d, 3"):
            ImageArray(path)


def test_small_arrays_must_have_the_size_that_they_claim(tmp_path):
    """Before memory is taken for it."""
    path = tmp_path / "a.npz"
    np.savez(path, mu=np.zeros(50), sigma=np.asfortranarray(np.eye(50)))
    assert len(read_arrays(path, ("mu", "sigma"))) == 2
    path.write_bytes(path.read_bytes().replace(b"(50, 50)", b"(90, 90)"))
    with pytest.raises(NpzError, match=r"sigma.npy must have \d+ bytes for \[90, 90\], at most"):
        read_arrays(path, ("mu", "sigma"))


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.mkdir()], ids=["pipe", "folder"])
def test_what_is_no_file_is_not_opened(tmp_path, make):
    make(tmp_path / "a.npz")
    for read in (ImageArray, lambda path: read_arrays(path, ("mu",))):
        with pytest.raises(NpzError, match="must be a file, got a"):
            read(tmp_path / "a.npz")


def test_small_arrays_by_name(tmp_path):
    np.savez(tmp_path / "a.npz", mu=np.arange(3.0), sigma=np.eye(3))
    mu, sigma = read_arrays(tmp_path / "a.npz", ("mu", "sigma"))
    assert np.array_equal(mu, np.arange(3))
    assert np.array_equal(sigma, np.eye(3))
    assert read_arrays(tmp_path / "a.npz", ("mu", "other")) is None
