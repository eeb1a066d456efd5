"""Codes that are kept in the order in which they are searched."""

import os

import numpy as np
import pytest
import torch

from bitdance_kernels import BackendError, CodeIndex, explain, hamming_distance, nearest_codes
from bitdance_kernels._shared import native
from bitdance_kernels.testing import cpu_isa, cpu_isas


def _codes(rows, width):
    return torch.randint(256, (rows, width), dtype=torch.uint8)


@pytest.mark.parametrize("isa", cpu_isas())
@pytest.mark.parametrize("width", [1, 7, 8, 16, 32, 33])
@pytest.mark.parametrize("queries", [0, 1, 2, 3, 7, 8, 21])
def test_few_queries_many_queries_and_an_index_agree(queries, width, isa):
    """One by one codes are compared as they lie; in blocks, those of the last one are not full."""
    a, b = _codes(queries, width), _codes(333, width + 2)[:, 1:-1]
    index = CodeIndex(b)
    expected = hamming_distance(a, b, backend="reference")
    order = expected.sort(dim=1, stable=True)
    with cpu_isa(isa):
        for codes in (b, index):
            assert torch.equal(hamming_distance(a, codes), expected)
            found, distance = nearest_codes(a, codes, 9)
            assert torch.equal(found, order.indices[:, :9])
            assert torch.equal(distance, order.values[:, :9])
    assert torch.equal(index.codes(), b)


@pytest.mark.parametrize("first", [0, 1, 63, 64, 65, 200])
def test_codes_are_added_behind_the_others(first):
    codes = _codes(700, 5)
    index = CodeIndex(codes[:first])
    for begin, end in ((first, first + 1), (first + 1, first + 1), (first + 1, 400), (400, 700)):
        index.append(codes[begin:end])
    assert len(index) == 700
    assert torch.equal(index.codes(), codes)
    a = _codes(4, 5)
    assert torch.equal(hamming_distance(a, index), hamming_distance(a, codes))


def test_without_the_compiled_module_the_reference_searches(monkeypatch):
    codes, a = _codes(130, 4), _codes(5, 4)
    expected = nearest_codes(a, codes, 3)
    monkeypatch.setattr(type(native.cpu), "unavailable", lambda *_: "it was not built")
    index = CodeIndex(codes)
    for found, known in zip(nearest_codes(a, index, 3), expected, strict=True):
        assert torch.equal(found, known)
    with pytest.raises(BackendError, match=r"nearest_codes: backend 'cpu' cannot run .* not built"):
        nearest_codes(a, index, 3, backend="cpu")


def test_many_neighbours_are_the_references():
    codes, a = _codes(400, 4), _codes(3, 4)
    found = nearest_codes(a, CodeIndex(codes), 200)
    expected = nearest_codes(a, codes, 200, backend="reference")
    assert all(map(torch.equal, found, expected))


@pytest.mark.parametrize("mmap", [False, True])
@pytest.mark.parametrize("count", [0, 1, 64, 333])
def test_a_file_holds_an_index(count, mmap, tmp_path):
    codes, more, path = _codes(count, 6), _codes(70, 6), tmp_path / "codes.index"
    index = CodeIndex(codes[: count // 2])
    index.append(codes[count // 2 :])  # has more memory than codes
    index.save(path)
    (tmp_path / "any").touch()
    assert path.stat().st_mode == (tmp_path / "any").stat().st_mode
    (tmp_path / "any").unlink()
    loaded = CodeIndex.load(path, mmap=mmap)
    assert torch.equal(loaded.codes(), codes)
    assert repr(loaded) == f"CodeIndex({count} codes of 48 bits)"
    before = path.read_bytes()
    loaded.append(more)
    assert torch.equal(loaded.codes(), torch.cat([codes, more]))
    assert path.read_bytes() == before
    loaded.save(path)
    assert torch.equal(CodeIndex.load(path).codes(), torch.cat([codes, more]))
    assert [p.name for p in tmp_path.iterdir()] == ["codes.index"]


def test_a_damaged_file_is_refused(tmp_path):
    path = tmp_path / "codes.index"
    CodeIndex(_codes(100, 4)).save(path)
    good = path.read_bytes()
    for at in (64, 200, len(good) - 1):
        path.write_bytes(good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :])
        with pytest.raises(ValueError, match="is damaged: its checksum differs"):
            CodeIndex.load(path)
    for at in (16, 24, 33):  # numbers that fit as many blocks, and their own checksum
        path.write_bytes(good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :])
        for mmap in (False, True):
            with pytest.raises(ValueError, match="is damaged: its header's checksum differs"):
                CodeIndex.load(path, mmap=mmap)
    for content in (good[:-1], good + b"0", good[:64]):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=f"must have {len(good)} bytes, got {len(content)}"):
            CodeIndex.load(path, mmap=True)
    for content in (b"", b"BDKCODES", b"another file, of more than sixty-four bytes" * 3):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="path must be an index, got"):
            CodeIndex.load(path)
    path.write_bytes(good[:8] + np.uint32(9).tobytes() + good[12:])
    with pytest.raises(ValueError, match="must be of version 2, got 9"):
        CodeIndex.load(path)


def test_nothing_else_is_written_over(tmp_path, monkeypatch):
    path = tmp_path / "letter.txt"
    path.write_text("dear reader")
    with pytest.raises(FileExistsError, match=r"CodeIndex.save: path must be an index or new, got"):
        CodeIndex(_codes(3, 4)).save(path)
    assert path.read_text() == "dear reader"

    def full(_):
        raise OSError("no space")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="no space"):
        CodeIndex(_codes(3, 4)).save(tmp_path / "new")
    assert [p.name for p in tmp_path.iterdir()] == ["letter.txt"]


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.mkdir()], ids=["pipe", "folder"])
def test_what_is_no_file_is_not_opened(tmp_path, make):
    make(tmp_path / "codes.index")
    with pytest.raises(ValueError, match="path must be a file, got"):
        CodeIndex.load(tmp_path / "codes.index")
    with pytest.raises(FileExistsError, match="path must be an index or new, got"):
        CodeIndex(_codes(3, 4)).save(tmp_path / "codes.index")


def test_leftovers_of_killed_processes_are_removed_and_nothing_else(tmp_path):
    fcntl = pytest.importorskip("fcntl")
    left, written = ".codes.index.0123456789abcdef", ".codes.index.1123456789abcdef"
    others = [".codes.index.0123", ".other.index.0123456789abcdef", written]
    for name in (left, *others):
        (tmp_path / name).write_bytes(b"BDK")
    descriptor = os.open(tmp_path / written, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)  # as a process that is writing it
    CodeIndex(_codes(3, 4)).save(tmp_path / "codes.index")
    os.close(descriptor)
    assert {path.name for path in tmp_path.iterdir()} == {"codes.index", *others}


A = _codes(3, 4)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: CodeIndex([1]), TypeError, "CodeIndex: codes must be a"),
        (lambda: CodeIndex(A.int()), TypeError, "CodeIndex: codes must be uint8, got int32"),
        (lambda: CodeIndex(A[0]), ValueError, "CodeIndex: codes must be of 2 dimensions"),
        (lambda: CodeIndex(A[:, :0]), ValueError, r"codes must be \[M, C / 8\] with C > 0, got"),
        (lambda: CodeIndex(A.to("meta")), ValueError, "codes must be on the CPU, got meta"),
        (lambda: CodeIndex(A).append(A[:, :3]), ValueError, r"append: codes must be \[N, 4\], got"),
        (lambda: hamming_distance(A[:, :3], CodeIndex(A)), ValueError, "a must be of shape"),
        (lambda: hamming_distance(A.to("meta"), CodeIndex(A)), ValueError, "where an index is"),
        (lambda: nearest_codes(A, CodeIndex(A), 4), ValueError, "k must be in 1 to M = 3, got 4"),
        (lambda: nearest_codes(A, CodeIndex(A), 1.5), TypeError, "k must be"),
        (
            lambda: hamming_distance(A, CodeIndex(A), backend="triton"), BackendError,
            "backend 'triton' cannot run this call: it does not take a CodeIndex",
        ),
        (lambda: hamming_distance(A, CodeIndex(A), backend="own"), ValueError, "must be one of"),
    ],
)  # fmt: skip
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_explain_takes_an_index():
    reasons = explain(nearest_codes, A, CodeIndex(A), 2)
    assert reasons["reference"] is None
    assert (reasons["cpu"] is None) == bool(cpu_isas())
    assert reasons["cuda"] is not None
