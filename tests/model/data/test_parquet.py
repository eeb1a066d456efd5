"""Packed codes to Parquet and back: equal bits, labels and metadata; damage is refused."""

import contextlib
import errno
import json
import os
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bitdance.data import parquet
from bitdance.data.packed_dataset import PackedDataset, PackedDatasetError
from bitdance.data.parquet import from_parquet, to_parquet
from tests.model.data.test_packed_dataset import make


@pytest.mark.parametrize(
    ("count", "group", "shard"), [(23, 100, 100), (23, 5, 7), (10, 1, 3), (11, 11, 11)]
)
def test_round_trip(tmp_path, count, group, shard):
    codes, labels = make(tmp_path / "codes", count, shard_size=4)
    to_parquet(tmp_path / "codes", tmp_path / "a.parquet", row_group_size=group)
    table = pq.read_table(tmp_path / "a.parquet")
    assert table.schema.field("bits").type == pa.binary(8)
    assert table.schema.field("label").type == pa.int64()
    assert table["bits"][0].as_py() == codes[0].tobytes()
    assert table["label"].to_pylist() == labels.tolist()
    assert json.loads(table.schema.metadata[b"bitdance"])["metadata"] == {"classes": ["a", "b"]}
    assert pq.ParquetFile(tmp_path / "a.parquet").num_row_groups == -(-count // group)

    data = from_parquet(tmp_path / "a.parquet", tmp_path / "again", shard_size=shard)
    assert (data.tokens, data.channels) == (4, 12)
    assert data.metadata == {"classes": ["a", "b"]}
    taken, of_taken = PackedDataset(tmp_path / "again").take(np.arange(count))
    assert np.array_equal(taken, codes)
    assert np.array_equal(of_taken, labels)
    # A second file has the same bytes.
    to_parquet(data, tmp_path / "b.parquet", row_group_size=group)
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()


def test_a_file_without_images(tmp_path):
    make(tmp_path / "some", 10)
    empty = pq.read_table(save(tmp_path, "some")).slice(0, 0)
    pq.write_table(empty, tmp_path / "none.parquet")
    data = from_parquet(tmp_path / "none.parquet", tmp_path / "none")
    assert len(data) == 0
    to_parquet(data, tmp_path / "again.parquet")
    assert len(from_parquet(tmp_path / "again.parquet", tmp_path / "again")) == 0


def save(folder, name):
    to_parquet(folder / name, folder / f"{name}.parquet")
    return folder / f"{name}.parquet"


def test_files_of_other_writers(tmp_path):
    bits = pa.array([b"ab", b"cd", b"ef"], pa.binary(2))
    path = tmp_path / "other.parquet"
    columns = {"more": ["x"] * 3, "label": pa.array([1, 2, 3], pa.int16()), "bits": bits}
    pq.write_table(pa.table(columns), path)
    with pytest.raises(ValueError, match=r"has no tokens and channels in its metadata: pass them"):
        from_parquet(path, tmp_path / "out")
    with pytest.raises(PackedDatasetError, match="bits must have 4 bytes for 2 tokens of 16"):
        from_parquet(path, tmp_path / "out", tokens=2, channels=16)
    data = from_parquet(path, tmp_path / "out", tokens=2, channels=8)
    assert data.take([2])[0].numpy().tobytes() == b"ef"
    assert data.labels.tolist() == [1, 2, 3]
    for name, column, message in (
        ("bits", pa.array([b"ab", None, b"ef"], pa.binary(2)), "bits must have no nulls, got 1"),
        ("bits", pa.array([b"ab"] * 3), "bits must be fixed_size_binary, got binary"),
        ("label", pa.array([1, None, 2]), "label must have no nulls, got 1"),
        ("label", pa.array([1.0, 2.0, 3.0]), "label must be integer, got double"),
    ):
        pq.write_table(pa.table({**columns, name: column}), path)
        with pytest.raises(PackedDatasetError, match=message):
            from_parquet(path, tmp_path / "new", tokens=2, channels=8)
    pq.write_table(pa.table({"bits": bits}), path)
    with pytest.raises(PackedDatasetError, match="must have one column 'label', got columns"):
        from_parquet(path, tmp_path / "new", tokens=2, channels=8)
    assert not (tmp_path / "new").exists()


def test_damaged_files_are_refused(tmp_path):
    make(tmp_path / "codes", 2000)
    path = save(tmp_path, "codes")
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1  # inside the bits
    for damaged in (b"", b"PAR1", whole[:-1], whole[: len(whole) // 2], bytes(flipped)):
        path.write_bytes(damaged)
        with pytest.raises(PackedDatasetError, match=r"codes.parquet is (damaged|not a complete)"):
            from_parquet(path, tmp_path / "out")
    # A bit of the names, of the row counts, of anything: refused, or without any effect.
    few, _ = make(tmp_path / "few", 9)
    whole_few = save(tmp_path, "few").read_bytes()
    for position in range(0, len(whole_few), 7):
        changed = bytearray(whole_few)
        changed[position] ^= 1 << position % 8
        path.write_bytes(changed)
        folder = tmp_path / f"few-{position}"
        with contextlib.suppress(ValueError):
            data = from_parquet(path, folder)
            assert np.array_equal(data.take(np.arange(9))[0], few)
    path.write_bytes(whole)
    table = pq.read_table(path)
    right = json.loads(table.schema.metadata[b"bitdance"])
    changes = (
        {"format": "x"}, {"format": None}, {"tokens": 0}, {"channels": 40}, {"tokens": []},
        {"tokens": float("inf")}, {"tokens": 2**70}, {"tokens": True}, {"metadata": 3},
    )  # fmt: skip
    for wrong in (
        "{",
        "[]",
        "{}",
        "[" * 100_000,
        *(json.dumps({**right, **change}) for change in changes),
    ):
        pq.write_table(table.replace_schema_metadata({"bitdance": wrong}), path)
        with pytest.raises(PackedDatasetError):
            from_parquet(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(FileNotFoundError, match="no such file"):
        from_parquet(tmp_path / "none", tmp_path / "out")


def test_misuse(tmp_path, monkeypatch):
    make(tmp_path / "codes")
    path = save(tmp_path, "codes")
    with pytest.raises(FileNotFoundError, match="has no packed codes"):
        to_parquet(tmp_path / "none", tmp_path / "x.parquet")
    with pytest.raises(ValueError, match="row_group_size must be at least 1, got 0"):
        to_parquet(tmp_path / "codes", tmp_path / "x.parquet", row_group_size=0)
    with pytest.raises(ValueError, match="has 4 tokens, got 5"):
        from_parquet(path, tmp_path / "out", tokens=5)
    with pytest.raises(FileExistsError, match="is not empty"):
        from_parquet(path, tmp_path / "codes")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    for call in (lambda: to_parquet("a", "b"), lambda: from_parquet("a", "b")):
        with pytest.raises(ImportError, match=r"pip install 'bitdance\[parquet\]'"):
            call()


def test_a_full_disk_keeps_the_earlier_file(tmp_path, monkeypatch):
    make(tmp_path / "codes")
    (tmp_path / "out.parquet").write_text("before")

    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(parquet.PackedDataset, "take", full)
    with pytest.raises(OSError, match=r"cannot write .*out\.parquet: No space left") as caught:
        to_parquet(tmp_path / "codes", tmp_path / "out.parquet")
    assert caught.value.errno == errno.ENOSPC
    assert (tmp_path / "out.parquet").read_text() == "before"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["codes", "out.parquet"]
    with pytest.raises(FileNotFoundError):
        to_parquet(tmp_path / "codes", tmp_path / "no" / "folder.parquet")
