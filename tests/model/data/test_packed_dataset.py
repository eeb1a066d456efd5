"""Data sets of packed codes: round trips, damage, killed writers and the order of items."""

import errno
import itertools
import json
import pickle
import re
import signal
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import bitdance.data.shuffle
from benchmarks.model.packed_dataset import SHAPES, reading
from bitdance.data import packed_files
from bitdance.data.packed_dataset import PackedDataset, PackedDatasetError, is_packed
from bitdance.data.packed_writer import PackedWriter
from bitdance.data.shuffle import ShuffledBatches
from bitdance.io import files, staging
from tests.forked import READY

ROOT = Path(__file__).parent.parent.parent.parent


def make(folder, count=23, *, shard_size=65536, tokens=4, channels=12):
    generator = np.random.default_rng(0)
    codes = generator.integers(0, 256, (count, tokens, -(-channels // 8)), dtype=np.uint8)
    if channels % 8:
        codes[..., -1] &= (1 << channels % 8) - 1
    labels = generator.integers(0, 1000, count)
    metadata = {"classes": ["a", "b"]}
    with PackedWriter(
        folder, tokens=tokens, channels=channels, metadata=metadata, shard_size=shard_size
    ) as writer:
        writer.write(codes[:10], labels[:10].tolist())
        writer.write(torch.from_numpy(codes[10:]), torch.from_numpy(labels[10:]))
    return codes, labels


@pytest.mark.parametrize("shard_size", [1, 4, 10, 100])
def test_what_is_written_is_read(tmp_path, shard_size):
    codes, labels = make(tmp_path / "new" / "codes", shard_size=shard_size)
    data = PackedDataset(tmp_path / "new" / "codes")
    assert (len(data), data.tokens, data.channels) == (23, 4, 12)
    assert data.metadata == {"classes": ["a", "b"]}
    assert np.array_equal(data.labels, labels)
    for order in (np.arange(23), np.random.default_rng(1).permutation(23), np.array([7, 7, 0])):
        taken, of_taken = data.take(order)
        assert np.array_equal(taken.numpy(), codes[order])
        assert np.array_equal(of_taken.numpy(), labels[order])
    one, label = data[-1]
    assert np.array_equal(one.numpy(), codes[22])
    assert label == labels[22]
    loader = torch.utils.data.DataLoader(data, batch_size=5)
    assert torch.equal(torch.cat([x for x, _ in loader]), torch.from_numpy(codes))
    for same in (order.tolist(), torch.from_numpy(order), order.astype(np.uint16)):
        assert torch.equal(data.take(same)[0], taken)
    for wrong in (23, -24):
        with pytest.raises(IndexError, match="index must be below 23"):
            data[wrong]
    for wrong in ([0, 23], [-1, 0]):
        with pytest.raises(IndexError, match="indices must be 0 to 22, got"):
            data.take(np.array(wrong))
    with pytest.raises(TypeError, match="indices must be integers, got bool"):
        data.take(np.ones(23, bool))
    with pytest.raises(ValueError, match="must have 1 dimension, got 2"):
        data.take([[1]])
    with pytest.raises(TypeError, match="float"):
        data[1.0]


def test_worker_processes_map_the_files_themselves(tmp_path, monkeypatch):
    codes, labels = make(tmp_path / "codes", shard_size=10)
    monkeypatch.chdir(tmp_path)
    data = PackedDataset("codes")
    pickled = pickle.dumps(data)
    assert len(pickled) < 1000
    monkeypatch.chdir("/")
    again = pickle.loads(pickled)
    assert np.array_equal(again.take(np.arange(23))[0], codes)
    assert np.array_equal(again.labels, labels)


def test_one_shard_is_mapped(tmp_path):
    make(tmp_path / "codes")
    data = PackedDataset(tmp_path / "codes")
    assert isinstance(data.labels, np.memmap)
    assert not data.labels.flags.writeable
    raw = np.load(tmp_path / "codes" / "labels-00000.npy")
    assert raw.dtype.str == "<i8"


def test_a_data_set_without_images(tmp_path):
    with PackedWriter(tmp_path / "none", tokens=2, channels=8):
        pass
    data = PackedDataset(tmp_path / "none")
    assert len(data) == 0
    assert data.take(np.empty(0, np.int64))[0].shape == (0, 2, 1)


def test_changed_bytes_are_refused(tmp_path):
    make(tmp_path / "codes", shard_size=10)
    for path in sorted((tmp_path / "codes").glob("*.npy")):
        whole = path.read_bytes()
        for damaged in (whole[:-1], whole[:-1] + bytes([whole[-1] ^ 1]), whole + b"\0", b""):
            path.write_bytes(damaged)
            with pytest.raises(PackedDatasetError, match=f"{path.name} is altered"):
                PackedDataset(tmp_path / "codes")
        path.write_bytes(whole[:-1])
        with pytest.raises(PackedDatasetError, match=f"{path.name} is damaged"):
            PackedDataset(tmp_path / "codes", verify=False)
        path.unlink()
        with pytest.raises(PackedDatasetError, match="there is no file"):
            PackedDataset(tmp_path / "codes")
        path.write_bytes(whole)
    assert len(PackedDataset(tmp_path / "codes")) == 23


def test_a_damaged_index_is_refused(tmp_path):
    make(tmp_path / "codes")
    path = tmp_path / "codes" / "index.json"
    index = json.loads(path.read_text())
    changes = [
        {"format": "bitdance-packed-0"}, {"tokens": 5}, {"channels": "many"}, {"images": 22},
        {"shards": [{}]}, {"shards": None},
        {"shards": [{**index["shards"][0], "codes": {"file": "../x.npy", "sha256": ""}}]},
    ]  # fmt: skip
    for change in changes:
        path.write_text(json.dumps({**index, **change}))
        with pytest.raises(PackedDatasetError):
            PackedDataset(tmp_path / "codes")
        if "format" not in change:
            with pytest.raises(PackedDatasetError, match=r"index.json is (altered|damaged)"):
                PackedDataset(tmp_path / "codes")
    for key in ("channels", "metadata"):
        other = {"channels": 11, "metadata": {"classes": ["b", "a"]}}[key]
        path.write_text(json.dumps({**index, key: other}))
        with pytest.raises(PackedDatasetError, match=r"index.json is altered"):
            PackedDataset(tmp_path / "codes")
    path.write_text("{")
    with pytest.raises(PackedDatasetError, match="is not JSON"):
        PackedDataset(tmp_path / "codes")
    path.unlink()
    assert not is_packed(tmp_path / "codes")
    with pytest.raises(FileNotFoundError, match="has no packed codes"):
        PackedDataset(tmp_path / "codes")


def test_misuse_of_the_writer(tmp_path):
    for name in ("tokens", "channels", "shard_size"):
        sizes = {"tokens": 1, "channels": 8, "shard_size": 1, name: 0}
        with pytest.raises(ValueError, match=f"{name} must be an integer of at least 1, got 0"):
            PackedWriter(tmp_path / "x", **sizes)
        for wrong, error in ((1.5, ValueError), (True, TypeError), ("1", TypeError)):
            message = re.escape(f"{name} must be an integer of at least 1, got {wrong!r}")
            with pytest.raises(error, match=message):
                PackedWriter(tmp_path / "x", **{**sizes, name: wrong})
    for metadata in ({"a": object()}, {"a": float("nan")}, 3):
        with pytest.raises(TypeError):
            PackedWriter(tmp_path / "x", tokens=1, channels=8, metadata=metadata)
    assert list(tmp_path.iterdir()) == []
    with PackedWriter(tmp_path / "x", tokens=2, channels=8) as writer:
        right = np.zeros((3, 2, 1), np.uint8)
        for codes, labels in (
            (right.astype(np.int8), [0] * 3),
            (right, [0.5] * 3),
            (right, [np.inf] * 3),
            (right, [2.0**60] * 3),
            (right, [True] * 3),
            (right, ["0"] * 3),
        ):
            with pytest.raises(TypeError, match="packed must be uint8 and labels integers"):
                writer.write(codes, labels)
        for codes, labels in ((right[:, :1], [0] * 3), (right, [0] * 2), (right, [[0]] * 3)):
            with pytest.raises(ValueError, match=r"packed must be \['N', 2, 1\]"):
                writer.write(codes, labels)
        with pytest.raises(ValueError, match="labels must fit int64, got 18446744073709551615"):
            writer.write(right[:1], np.array([2**64 - 1], np.uint64))
        writer.write(right[:0], [])
        writer.write(right, torch.arange(3, dtype=torch.int16))
        writer.write(right, [3.0, 4.0, 5.0])
    assert PackedDataset(tmp_path / "x").labels.tolist() == [0, 1, 2, 3, 4, 5]
    for late in (lambda: writer.write(right, [0, 1, 2]), writer.close):
        with pytest.raises(PackedDatasetError, match="is closed; nothing more can be written"):
            late()
    with PackedWriter(tmp_path / "y", tokens=1, channels=9) as writer:
        with pytest.raises(ValueError, match="0 in the bits after channel 9, got 1"):
            writer.write(np.array([[[255, 2]]], np.uint8), [0])
        writer.write(np.array([[[255, 1]]], np.uint8), [0])
    with pytest.raises(FileExistsError, match="is not empty"):
        PackedWriter(tmp_path / "x", tokens=2, channels=8)
    (tmp_path / "file").touch()
    with pytest.raises(FileExistsError, match="is not a folder"):
        PackedWriter(tmp_path / "file", tokens=2, channels=8)
    with pytest.raises(FileExistsError, match=r"cannot write .*file/x: File exists: .*file$"):
        PackedWriter(tmp_path / "file" / "x", tokens=2, channels=8)


def test_an_unwritable_folder_is_named(tmp_path, monkeypatch):
    def forbidden(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(files.tempfile, "mkdtemp", forbidden)
    with pytest.raises(PermissionError, match=r"cannot write .*codes: Permission denied"):
        PackedWriter(tmp_path / "codes", tokens=2, channels=8)


def test_a_folder_that_somebody_filled_meanwhile_is_left_alone(tmp_path):
    def late():
        with PackedWriter(tmp_path / "codes", tokens=1, channels=8) as writer:
            writer.write(np.zeros((1, 1, 1), np.uint8), [0])
            make(tmp_path / "codes")

    with pytest.raises(OSError, match=r"cannot write .*codes: Directory not empty"):
        late()
    assert len(PackedDataset(tmp_path / "codes")) == 23
    assert [path.name for path in tmp_path.iterdir()] == ["codes"]


def test_an_error_leaves_no_files(tmp_path, monkeypatch):
    def broken():
        with PackedWriter(tmp_path / "codes", tokens=1, channels=8, shard_size=2) as writer:
            writer.write(np.zeros((5, 1, 1), np.uint8), [0] * 5)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        broken()
    assert list(tmp_path.iterdir()) == []


FULL = OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("broken", ["save", "fsync", "index", "commit"])
def test_a_full_disk_leaves_no_files(tmp_path, monkeypatch, broken):
    def full(*_, **__):
        raise FULL

    target, name = {
        "save": (packed_files, "write_array"),
        "fsync": (packed_files, "os"),
        "index": (packed_files.files, "write_text"),
        "commit": (Path, "replace"),
    }[broken]
    monkeypatch.setattr(target, name, SimpleNamespace(fsync=full) if name == "os" else full)
    with pytest.raises(OSError, match="No space left") as caught:
        make(tmp_path / "codes")
    assert caught.value.errno == errno.ENOSPC
    assert list(tmp_path.iterdir()) == []


def test_a_writer_that_lost_images_stays_broken(tmp_path, monkeypatch):
    """Even if the caller ignores the error and the disk has space again."""

    def full(*_, **__):
        raise FULL

    def lossy():
        with PackedWriter(tmp_path / "codes", tokens=1, channels=8, shard_size=2) as writer:
            monkeypatch.setattr(packed_files, "write_array", full)
            with pytest.raises(OSError, match=r"cannot write .*codes: No space left"):
                writer.write(np.zeros((5, 1, 1), np.uint8), [0] * 5)
            monkeypatch.undo()

    with pytest.raises(PackedDatasetError, match="is broken: a write failed"):
        lossy()
    assert list(tmp_path.iterdir()) == []


WRITE = """
import os, signal, sys
import numpy as np
from bitdance.data.packed_writer import PackedWriter

calls = 0

def hook(event, arguments):
    global calls
    if event in ("open", "shutil.rmtree") or event.startswith("os."):
        calls += 1
        if calls == killed_before:
            os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(hook)
with PackedWriter(folder, tokens=16, channels=64, shard_size=50) as writer:
    for i in range(3):
        writer.write(np.full((50, 16, 8), i, np.uint8), [i] * 50)
"""


@pytest.mark.slow
def test_killed_writers_leave_all_or_nothing(tmp_path):
    """The writer is killed before each of its file operations in turn."""
    outcomes = []
    for i in itertools.count(1):
        folder = tmp_path / str(i)
        scope = {"folder": str(folder), "killed_before": i}
        process = READY.Process(target=exec, args=(WRITE, scope))
        process.start()
        process.join(120)
        outcomes.append(folder.exists())
        if folder.exists():
            assert len(PackedDataset(folder)) == 150
        else:  # the next writer has the place, and removes what the killed one left
            make(folder)
            assert len(PackedDataset(folder)) == 23
        assert not list(tmp_path.glob(f".{i}.*"))
        if process.exitcode != -signal.SIGKILL:
            break
    assert process.exitcode == 0, "the last one reached its end"
    assert outcomes == sorted(outcomes), "nothing until one call, and then all"
    assert outcomes.index(True) > 10


def test_files_of_a_living_writer_are_not_removed(tmp_path):
    with PackedWriter(tmp_path / "codes", tokens=1, channels=8) as first:
        first.write(np.zeros((1, 1, 1), np.uint8), [7])
        (tmp_path / ".codes.abcd.staged").mkdir()
        second = staging.StagedFolder(tmp_path / "codes")
        left = {path for path in tmp_path.iterdir() if path.name.startswith(".codes.")}
        assert len(left) == 2, "the first writer's, the second's, and not the leftover"
        second.discard()
    assert PackedDataset(tmp_path / "codes").labels.tolist() == [7]
    assert [path.name for path in tmp_path.iterdir()] == ["codes"]


def test_five_lines_of_numpy_read_it(tmp_path):
    """As docs/packed_format.md shows."""
    codes, labels = make(tmp_path / "codes")
    page = (ROOT / "docs/packed_format.md").read_text()
    block = page.split("```python")[1].split("```")[0]
    scope = {"folder": str(tmp_path / "codes")}
    exec(block, scope)
    assert np.array_equal(
        scope["bits"][..., :12], np.unpackbits(codes, axis=-1, bitorder="little")[..., :12]
    )
    assert np.array_equal(scope["labels"], labels)


def test_batches_resume_in_the_middle_of_an_epoch():
    straight = ShuffledBatches(1000, 32, seed=7)
    first = [straight.batch(i) for i in range(100)]
    assert straight.position(57) == (1, 57 - straight.per_epoch)
    bitdance.data.shuffle._order.cache_clear()  # as in a new process
    resumed = ShuffledBatches(1000, 32, seed=7)
    for i in (57, 3, 99):  # in any order
        assert np.array_equal(resumed.batch(i), first[i])
    resumed.batch(4)[:] = 0
    assert np.array_equal(resumed.batch(4), first[4])
    with pytest.raises(ValueError, match="index must be an integer of at least 0, got -1"):
        resumed.batch(-1)
    for wrong in ({"size": 0}, {"seed": -1}, {"batch_size": 0}):
        with pytest.raises(ValueError, match=r"must be an integer of at least"):
            ShuffledBatches(**{"size": 9, "batch_size": 1, "drop_last": False, **wrong})
    with pytest.raises(ValueError, match=r"batch_size must be an integer of at least 1, got 1\.5"):
        ShuffledBatches(9, 1.5)
    with pytest.raises(TypeError, match="index must be an integer of at least 0, got '4'"):
        resumed.batch("4")
    assert np.array_equal(ShuffledBatches(1e3, np.int8(32), seed=7.0).batch(4.0), first[4])


@pytest.mark.parametrize(
    ("size", "batch", "world"), [(50, 8, 2), (50, 8, 1), (7, 8, 3), (2, 1, 4), (48, 8, 2)]
)
def test_the_rest_of_an_epoch_is_divided_among_ranks(size, batch, world):
    ranks = [
        ShuffledBatches(size, batch, rank=r, world_size=world, drop_last=False)
        for r in range(world)
    ]
    count = ranks[0].per_epoch
    assert count == -(-size // (batch * world))
    for epoch in range(2):
        seen = [[b.batch(epoch * count + i) for b in ranks] for i in range(count)]
        assert sorted(np.concatenate([x for row in seen for x in row]).tolist()) == [*range(size)]
        for row in seen[:-1]:
            assert [len(x) for x in row] == [batch] * world
        last = [len(x) for x in seen[-1]]
        assert max(last) - min(last) <= 1


@pytest.mark.parametrize(("tokens", "bits"), SHAPES)
def test_reading_shuffled_is_fast(tokens, bits):
    """Ten times what a training run needs; see benchmarks/model/packed_dataset.py."""
    rates = reading(tokens, bits, images=20_000, shard_size=8_000, rounds=3)
    assert rates["PackedDataset.take"] > 100_000, rates
