"""Data sets of packed codes: what is written is read, what is damaged is refused."""

import errno
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from bitdance import packed_dataset
from bitdance.packed_dataset import PackedDataset, PackedDatasetError, PackedWriter, is_packed

ROOT = Path(__file__).parent.parent.parent


def make(folder, count=23, *, shard_size=65536, tokens=4, channels=12):
    generator = np.random.default_rng(0)
    codes = generator.integers(0, 256, (count, tokens, -(-channels // 8)), dtype=np.uint8)
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
    for wrong in (23, -24):
        with pytest.raises(IndexError, match="index must be below 23"):
            data[wrong]
    with pytest.raises(IndexError, match="indices must be 0 to 22"):
        data.take(np.array([0, 23]))


def test_no_image_is_a_data_set_too(tmp_path):
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
    path.write_text("{")
    with pytest.raises(ValueError, match="is not JSON"):
        PackedDataset(tmp_path / "codes")
    path.unlink()
    assert not is_packed(tmp_path / "codes")
    with pytest.raises(FileNotFoundError, match="holds no packed codes"):
        PackedDataset(tmp_path / "codes")


def test_misuse_of_the_writer(tmp_path):
    for name in ("tokens", "channels", "shard_size"):
        sizes = {"tokens": 1, "channels": 8, "shard_size": 1, name: 0}
        with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
            PackedWriter(tmp_path / "x", **sizes)
    with pytest.raises(TypeError):
        PackedWriter(tmp_path / "x", tokens=1, channels=8, metadata={"a": object()})
    with PackedWriter(tmp_path / "x", tokens=2, channels=8) as writer:
        right = np.zeros((3, 2, 1), np.uint8)
        for codes, labels in ((right.astype(np.int8), [0] * 3), (right, [0.5] * 3)):
            with pytest.raises(TypeError, match="packed must be uint8 and labels integers"):
                writer.write(codes, labels)
        for codes, labels in ((right[:, :1], [0] * 3), (right, [0] * 2), (right, [[0]] * 3)):
            with pytest.raises(ValueError, match=r"packed must be \['N', 2, 1\]"):
                writer.write(codes, labels)
        writer.write(right, [0, 1, 2])
    assert len(PackedDataset(tmp_path / "x")) == 3
    with pytest.raises(FileExistsError, match="is not empty"):
        PackedWriter(tmp_path / "x", tokens=2, channels=8)


def test_an_error_leaves_nothing(tmp_path, monkeypatch):
    def broken():
        with PackedWriter(tmp_path / "codes", tokens=1, channels=8, shard_size=2) as writer:
            writer.write(np.zeros((5, 1, 1), np.uint8), [0] * 5)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        broken()
    assert list(tmp_path.iterdir()) == []

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(packed_dataset.np, "save", full)
    with pytest.raises(OSError, match="No space left"):
        make(tmp_path / "codes")
    assert list(tmp_path.iterdir()) == []


WRITE = """
import sys, numpy as np
from bitdance.packed_dataset import PackedWriter
print("ready", flush=True)
with PackedWriter(sys.argv[1], tokens=16, channels=64, shard_size=50) as writer:
    for i in range(20):
        writer.write(np.full((50, 16, 8), i, np.uint8), [i] * 50)
"""


@pytest.mark.slow
def test_killed_writers_leave_all_or_nothing(tmp_path):
    moments = random.Random(0)
    outcomes = set()
    for i in range(8):
        folder = tmp_path / str(i)
        process = subprocess.Popen(
            [sys.executable, "-c", WRITE, str(folder)], stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(moments.uniform(0, 0.1))
        process.kill()
        process.communicate()
        outcomes.add(folder.exists())
        assert not folder.exists() or len(PackedDataset(folder)) == 1000
    assert False in outcomes


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


def test_reading_shuffled_is_fast(tmp_path):
    """The rate that a training run needs by far; `python -m benchmarks` has the measured one."""
    codes = np.zeros((60_000, 64, 4), np.uint8)
    with PackedWriter(tmp_path / "codes", tokens=64, channels=32) as writer:
        writer.write(codes, np.zeros(len(codes), np.int64))
    data = PackedDataset(tmp_path / "codes")
    order = np.random.default_rng(0).permutation(len(data))
    best = 0.0
    for _ in range(5):
        begin = time.perf_counter()
        for i in range(0, len(order), 256):
            data.take(order[i : i + 256])
        best = max(best, len(order) / (time.perf_counter() - begin))
    assert best > 100_000, f"{best:,.0f} images/s"
