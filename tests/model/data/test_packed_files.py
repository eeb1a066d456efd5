"""Files of packed data sets: nothing outside of the folder, no invalid content."""

import copy
import hashlib
import io
import json
import os
import pickle

import numpy as np
import pytest
import torch

from bitdance.data import packed_files
from bitdance.data.packed_dataset import PackedDataset, PackedDatasetError
from bitdance.data.packed_writer import PackedWriter
from bitdance.io import files, outputs
from tests.model.data.test_packed_dataset import make
from tests.model.test_nonsense import NONSENSE


def put(folder, index):
    """An index with its checksum."""
    index = {name: value for name, value in index.items() if name != "sha256"}
    index["sha256"] = hashlib.sha256(json.dumps(index, sort_keys=True).encode()).hexdigest()
    (folder / "index.json").write_text(json.dumps(index))


@pytest.fixture
def packed(tmp_path):
    make(tmp_path / "codes", shard_size=10)
    return tmp_path / "codes", json.loads((tmp_path / "codes" / "index.json").read_text())


@pytest.mark.parametrize("verify", [True, False])
@pytest.mark.parametrize("kind", ["codes", "labels"])
def test_files_must_lie_in_the_folder(packed, verify, kind):
    """Valid files outside of the folder are refused."""
    folder, index = packed
    put(folder, index)
    assert len(PackedDataset(folder, verify=verify)) == 23
    name = index["shards"][0][kind]["file"]
    outside = folder.parent / name
    outside.write_bytes((folder / name).read_bytes())
    for other in (f"../{name}", str(outside), f"./{name}", f"../codes/{name}", "", "a" * 300):
        changed = copy.deepcopy(index)
        changed["shards"][0][kind]["file"] = other
        put(folder, changed)
        with pytest.raises(PackedDatasetError, match="there is no file"):
            PackedDataset(folder, verify=verify)


def test_the_writer_keeps_copies_of_what_it_is_given(tmp_path):
    codes, labels = np.arange(24, dtype=np.uint8).reshape(6, 4, 1), np.arange(6)
    expected = codes.copy()
    with PackedWriter(tmp_path / "x", tokens=4, channels=8, shard_size=4) as writer:
        for part in (slice(0, 3), slice(3, 6)):
            buffer, numbers = codes[part].copy(), labels[part].copy()
            writer.write(buffer, numbers)
            buffer[:], numbers[:] = 255, 99  # as whoever uses one buffer for all batches does
        tensor, of_tensor = torch.full((2, 4, 1), 7, dtype=torch.uint8), torch.tensor([6, 7])
        writer.write(tensor, of_tensor)
        tensor.fill_(255)
        of_tensor.fill_(99)
    data = PackedDataset(tmp_path / "x")
    found, numbers = data.take(np.arange(8))
    assert np.array_equal(found[:6].numpy(), expected)
    assert (found[6:] == 7).all()
    assert numbers.tolist() == list(range(8))


PLACES = [
    ("format",), ("tokens",), ("channels",), ("images",), ("shards",), ("shards", 0),
    ("metadata",), ("shards", 0, "images"), ("shards", 0, "codes"), ("shards", 0, "codes", "file"),
    ("shards", 0, "codes", "sha256"), ("shards", 0, "labels"), ("shards", 0, "labels", "file"),
]  # fmt: skip


@pytest.mark.parametrize("place", PLACES, ids=lambda place: ".".join(map(str, place)))
def test_every_key_refuses_every_nonsense_value(packed, place):
    folder, index = packed
    accepted = set()
    for name, value in NONSENSE.items():
        changed = copy.deepcopy(index)
        parent = changed
        for key in place[:-1]:
            parent = parent[key]
        parent[place[-1]] = value
        put(folder, changed)
        try:
            PackedDataset(folder)
            accepted.add(name)
        except PackedDatasetError as error:
            message = str(error)
        assert name in accepted or "\n" not in message
    assert accepted == ({"mapping"} if place == ("metadata",) else set())
    changed = copy.deepcopy(index)
    parent = changed
    for key in place[:-1]:
        parent = parent[key]
    del parent[place[-1]]
    put(folder, changed)
    with pytest.raises(PackedDatasetError):
        PackedDataset(folder)


def test_a_disk_that_is_full_within_an_array_is_noticed(tmp_path):
    """NumPy's own writer leaves a small array to a buffer, whose last write it does not check."""
    resource = pytest.importorskip("resource")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    array = np.arange(100, dtype=np.uint8).reshape(25, 4)
    for save in (
        lambda: packed_files.save_array(tmp_path, "codes.npy", array),
        lambda: outputs.save_array(array, tmp_path / "bits.npy"),
    ):
        resource.setrlimit(resource.RLIMIT_FSIZE, (150, limits[1]))  # the head has 128 bytes
        try:
            with pytest.raises(OSError, match="File too large"):
                save()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        save()
    for name, values in (("codes.npy", array), ("bits.npy", array[::-1].T)):
        np.save(tmp_path / "own.npy", np.ascontiguousarray(values))
        if name == "bits.npy":
            outputs.save_array(values, tmp_path / name)
        assert (tmp_path / name).read_bytes() == (tmp_path / "own.npy").read_bytes()


def npy(shape, descr="|u1", body=b""):
    file = io.BytesIO()
    header = {"descr": descr, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)
    return file.getvalue() + body


def test_invalid_arrays(packed):
    folder, index = packed
    name = index["shards"][0]["codes"]["file"]
    for images, data in (
        (10, npy((10**13, 4, 2))), (0, npy((10**13, 4, 2))), (0, npy((0, 4, 10**18))),
        (10, npy((10, 4, 2), "|O", pickle.dumps([1]))), (10, npy((10, 4, 2), "<f8", bytes(640))),
        (10, b"\x93NUMPY\x01\x00\x10\x00{'descr': (((((("), (10, b"\x93NUMPY\x09\x00"), (10, b""),
        (10, npy((10, 4, 2), body=bytes(79))),
    ):  # fmt: skip
        (folder / name).write_bytes(data)
        changed = copy.deepcopy(index)
        changed["images"] += images - changed["shards"][0]["images"]
        changed["shards"][0]["images"] = images
        changed["shards"][0]["codes"]["sha256"] = hashlib.sha256(data).hexdigest()
        put(folder, changed)
        for verify in (True, False):
            with pytest.raises(PackedDatasetError, match=name):
                PackedDataset(folder, verify=verify)


class Touch:
    """Makes a file where its pickle is read."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return self.path.touch, ()


@pytest.mark.parametrize("images", [0, 10])
def test_a_pickle_in_place_of_an_array_runs_no_code(packed, tmp_path, images):
    folder, index = packed
    name, made = index["shards"][0]["codes"]["file"], tmp_path / "made"
    (folder / name).write_bytes(pickle.dumps(Touch(made)))
    index["images"] += images - index["shards"][0]["images"]
    index["shards"][0]["images"] = images
    index["shards"][0]["codes"]["sha256"] = files.sha256(folder / name)
    put(folder, index)
    for verify in (True, False):
        with pytest.raises(PackedDatasetError, match=name):
            PackedDataset(folder, verify=verify)
    assert not made.exists()
    pickle.loads((folder / name).read_bytes())
    assert made.exists(), "it would have"


def test_a_flipped_bit_raises_no_other_error(packed):
    """Without checksums values may differ, but no other error is raised."""
    folder, _ = packed
    original = PackedDataset(folder)
    expected = original.take(np.arange(23))
    for path in sorted(folder.iterdir()):
        whole = path.read_bytes()
        for byte in range(0, min(len(whole), 400), 5):
            data = whole[:byte] + bytes([whole[byte] ^ (1 << byte % 8)]) + whole[byte + 1 :]
            path.write_bytes(data)
            for verify in (True, False):
                try:
                    found = PackedDataset(folder, verify=verify)
                except PackedDatasetError:
                    continue
                if verify:
                    assert all(map(torch.equal, found.take(np.arange(23)), expected))
        path.write_bytes(whole)


def test_special_files_are_refused(packed):
    folder, index = packed
    name = index["shards"][0]["codes"]["file"]
    for make_other in (os.mkfifo, lambda p: p.mkdir(), lambda p: p.symlink_to("/dev/zero")):
        (folder / name).rename(folder / "kept")
        make_other(folder / name)
        with pytest.raises(PackedDatasetError, match="there is no file"):
            PackedDataset(folder)
        (folder / name).rmdir() if (folder / name).is_dir() else (folder / name).unlink()
        (folder / "kept").rename(folder / name)
    assert len(PackedDataset(folder)) == 23
    assert files.sha256(folder / name) == index["shards"][0]["codes"]["sha256"]
