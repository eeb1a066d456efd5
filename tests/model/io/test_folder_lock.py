"""The lock of a folder: whose it is, and when what is left of it does not count."""

import errno
import json
import os
import socket

import pytest

from bitdance.io.folder_lock import LOCK, FolderLock
from tests.forked import READY


@pytest.fixture(params=["flock", "no flock"])
def system(request, monkeypatch):
    """With the locks of the system, and on a disk that has none."""
    if request.param == "no flock":
        monkeypatch.setattr("bitdance.io.folder_lock.fcntl", None)
    return request.param


def left(folder, **owner):
    (folder / LOCK).write_text(json.dumps({"host": socket.gethostname(), **owner}))


def ended():
    process = READY.Process(target=int)
    process.start()
    process.join()
    return process.pid


def test_one_lock_at_a_time(tmp_path, system):
    first = FolderLock(tmp_path)
    owner = json.loads((tmp_path / LOCK).read_text())
    assert owner == {"host": socket.gethostname(), "pid": os.getpid()}
    with pytest.raises(OSError, match=f"in use by another run, process {os.getpid()} of"):
        FolderLock(tmp_path)
    first.release()
    assert not (tmp_path / LOCK).exists()
    FolderLock(tmp_path).release()


def test_the_lock_of_an_ended_process_of_this_machine_does_not_count(tmp_path, system):
    left(tmp_path, pid=ended())
    lock = FolderLock(tmp_path)
    assert json.loads((tmp_path / LOCK).read_text())["pid"] == os.getpid()
    lock.release()


@pytest.mark.parametrize("pid", [os.getppid(), None, "x"])
def test_without_locks_of_the_system_a_living_process_counts(tmp_path, monkeypatch, pid):
    monkeypatch.setattr("bitdance.io.folder_lock.fcntl", None)
    left(tmp_path, pid=pid)
    with pytest.raises(OSError, match="is in use by another run"):
        FolderLock(tmp_path)
    for written in ("", "[" * 100_000):  # its owner is about to write; or nobody of ours wrote it
        (tmp_path / LOCK).write_text(written)
        with pytest.raises(OSError, match=r"is in use by another run$"):
            FolderLock(tmp_path)


def test_a_lock_that_cannot_be_written_is_not_left(tmp_path, system, monkeypatch):
    def fail(descriptor):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr("bitdance.io.folder_lock.os.fsync", fail)
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        FolderLock(tmp_path)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["a pipe", "a link to a device", "a link to itself", "a folder"])
def test_what_is_no_file_is_refused_and_not_read(tmp_path, system, kind):
    path = tmp_path / LOCK
    {
        "a pipe": lambda: os.mkfifo(path),
        "a link to a device": lambda: path.symlink_to("/dev/zero"),
        "a link to itself": lambda: path.symlink_to(LOCK),
        "a folder": path.mkdir,
    }[kind]()
    with pytest.raises(OSError, match=r"\.lock"):
        FolderLock(tmp_path)
    assert os.path.lexists(path)


def test_the_lock_of_another_machine_counts(tmp_path, system):
    left(tmp_path, pid=ended(), host="elsewhere")
    before = (tmp_path / LOCK).read_text()
    with pytest.raises(OSError, match=r"of elsewhere; if that has ended, delete \.lock there$"):
        FolderLock(tmp_path)
    assert (tmp_path / LOCK).read_text() == before
