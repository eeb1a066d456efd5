"""Packed codes with captions: what is written is read, and nothing else is."""

import itertools
import json
import pickle

import numpy as np
import pytest

from bitdance.data.captioned_dataset import CaptionedDataset
from bitdance.data.captioned_writer import CaptionedWriter
from bitdance.data.packed_dataset import PackedDataset
from bitdance.data.packed_files import PackedDatasetError

TEXTS = ["a red fox", "", "ثعلب أحمر 🦊", "x" * 10_000]


def write(folder, count=7, channels=12, **options):
    """Images on three grids, with one to three captions each."""
    rng, written = np.random.default_rng(0), []
    with CaptionedWriter(folder, channels=channels, metadata={"a": 1}, **options) as writer:
        for i in range(count):
            height, width = ((4, 2), (2, 2), (2, 6))[i % 3]
            codes = rng.integers(0, 256, (height, width, -(-channels // 8)), np.uint8)
            codes[..., -1] &= (1 << (channels % 8 or 8)) - 1
            captions = [f"{TEXTS[(i + j) % 4]} {i}" for j in range(1 + i % 3)]
            writer.write(f"image-{i} ü", codes, captions)
            written.append((f"image-{i} ü", (height, width), codes, captions))
    return written


@pytest.mark.parametrize("shard_size", [1, 2, 100])
def test_what_is_written_is_read(tmp_path, shard_size):
    written = write(tmp_path / "data", shard_size=shard_size)
    data = CaptionedDataset(tmp_path / "data")
    assert (len(data), data.channels, data.metadata) == (7, 12, {"a": 1})
    found = {data.id(i): i for i in range(len(data))}
    for name, grid, codes, captions in written:
        i = found[name]
        assert tuple(data.grids[i]) == grid
        assert np.array_equal(data.codes(i), codes.reshape(-1, codes.shape[2]))
        assert data.captions(i) == captions
        assert [data.caption(i, n) for n in range(data.caption_count(i))] == captions
        with pytest.raises(IndexError):
            data.caption(i, len(captions))
    copy = pickle.loads(pickle.dumps(data))
    assert (copy.captions(3), copy.identity) == (data.captions(3), data.identity)
    with pytest.raises(IndexError):
        data.codes(7)


def test_numpy_alone_reads_it(tmp_path):
    """The lines of the page, on one shard."""
    written = write(tmp_path / "data")
    folder = tmp_path / "data"
    shard = json.loads((folder / "index.json").read_text())["shards"][0]
    codes, texts, ends, firsts = (
        np.load(folder / shard[name]["file"]) for name in ("codes", "texts", "ends", "firsts")
    )
    starts = np.r_[0, ends[:-1]]
    strings = [texts[a:b].tobytes().decode() for a, b in zip(starts, ends, strict=True)]
    images = [strings[a:b] for a, b in itertools.pairwise(firsts)]
    of_grid = [(name, *captions) for name, grid, _, captions in written if grid == (2, 2)]
    assert shard["grid"] == [2, 2]
    assert [tuple(texts) for texts in images] == of_grid
    assert codes.shape == (2, 4, 2)


@pytest.mark.parametrize(
    ("codes", "captions", "message"),
    [
        (np.zeros((2, 2, 2), np.uint8), [], "captions of 'id' must be one or more, got none"),
        (np.zeros((2, 2, 2), np.uint8), ["a", " \n"], "captions of 'id' must not be empty"),
        (np.zeros((2, 2, 2), np.uint8), "a fox", "captions of 'id' must be a list of texts"),
        (np.zeros((2, 2, 2), np.uint8), [None], "captions of 'id' must be text, got"),
        (np.zeros((2, 2, 2), np.uint8), ["\ud800"], "captions of 'id' must be Unicode"),
        (np.zeros((2, 2, 3), np.uint8), ["a"], r"packed must be \['h', 'w', 2\]"),
        (np.zeros((0, 2, 2), np.uint8), ["a"], r"packed must be \['h', 'w', 2\]"),
        (np.zeros((2, 2, 2), np.float32), ["a"], "packed must be uint8"),
        (np.full((2, 2, 2), 255, np.uint8), ["a"], "packed must have 0 in the bits after"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path, codes, captions, message):
    with CaptionedWriter(tmp_path / "data", channels=12) as writer:
        writer.write("before", np.zeros((1, 1, 2), np.uint8), ["ok"])
        with pytest.raises((TypeError, ValueError), match=message):
            writer.write("id", codes, captions)
    assert len(CaptionedDataset(tmp_path / "data")) == 1


def test_damage_is_found(tmp_path):
    write(tmp_path / "data")
    for path in sorted((tmp_path / "data").iterdir()):
        content = path.read_bytes()
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        with pytest.raises(PackedDatasetError, match=r"is (altered|damaged)"):
            CaptionedDataset(tmp_path / "data")
        path.unlink()
        with pytest.raises((PackedDatasetError, FileNotFoundError), match=r"no (file|packed)"):
            CaptionedDataset(tmp_path / "data")
        path.write_bytes(content)
    CaptionedDataset(tmp_path / "data")


@pytest.mark.parametrize(
    ("name", "values", "problem"),
    [
        ("ends", [3, 2], "ends of texts"),
        ("ends", [1, 2], "ends of texts"),
        ("firsts", [1, 2], "numbers of captions"),
        ("firsts", [0, 1], "numbers of captions"),
        ("firsts", [0, 2, 2], "must be int64"),
    ],
)
def test_numbers_that_contradict_each_other(tmp_path, name, values, problem):
    with CaptionedWriter(tmp_path / "data", channels=8) as writer:
        writer.write("i", np.zeros((1, 1, 1), np.uint8), ["cap"])
    np.save(tmp_path / "data" / f"{name}-00000.npy", np.array(values, "<i8"))
    with pytest.raises(PackedDatasetError, match=problem):
        CaptionedDataset(tmp_path / "data", verify=False)


def test_texts_that_are_not_utf_8(tmp_path):
    with CaptionedWriter(tmp_path / "data", channels=8) as writer:
        writer.write("i", np.zeros((1, 1, 1), np.uint8), ["cap"])
    np.save(tmp_path / "data" / "texts-00000.npy", np.frombuffer(b"ic\xffp", "u1"))
    data = CaptionedDataset(tmp_path / "data", verify=False)
    assert data.id(0) == "i"
    for read in (lambda: data.captions(0), lambda: data.caption(0, 0)):
        with pytest.raises(PackedDatasetError, match="text 1 is not UTF-8: "):
            read()


def test_the_other_format_is_named(tmp_path):
    write(tmp_path / "data")
    with pytest.raises(PackedDatasetError, match="format must be 'bitdance-packed-1' or"):
        PackedDataset(tmp_path / "data")
    with (
        pytest.raises(PackedDatasetError, match="there are no images to write"),
        CaptionedWriter(tmp_path / "none", channels=8),
    ):
        pass
    assert not (tmp_path / "none").exists()
