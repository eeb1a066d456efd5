"""The heap of a command's process keeps what is freed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from bitdance import cli
from bitdance.cli import heap
from bitdance.cli.main import main
from tests.reliability.long_runs import growth

ROOT = Path(__file__).parents[3]

CODE = """
import ctypes
from bitdance.cli.heap import keep_freed_memory
from tests.reliability.long_runs.growth import Mallinfo
libc = ctypes.CDLL(None)
libc.mallinfo2.restype = Mallinfo
libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
def stays(size):
    before = libc.mallinfo2().arena
    libc.free(libc.malloc(size))
    return libc.mallinfo2().arena - before > size // 2
before = stays(30 << 20)
keep_freed_memory()
print(before, stays(30 << 20))
"""


def run(**environment):
    """Whether 30 MiB stay, before and after."""
    kept = {name: value for name, value in os.environ.items() if name not in heap._VARIABLES}
    done = subprocess.run(
        [sys.executable, "-c", CODE], cwd=ROOT, env=kept | environment, check=True,
        capture_output=True, text=True,
    )  # fmt: skip
    return done.stdout.split()


@pytest.mark.skipif(not growth.is_available(), reason="needs glibc 2.33 on Linux")
def test_what_is_freed_is_kept():
    assert run() == ["False", "True"]


@pytest.mark.skipif(not growth.is_available(), reason="needs glibc 2.33 on Linux")
def test_the_environment_has_the_last_word():
    assert run(MALLOC_MMAP_THRESHOLD_=str(1 << 20)) == ["False", "False"]


def test_the_heap_is_set_for_a_process_of_its_own_alone(monkeypatch):
    calls = []
    monkeypatch.setattr(cli, "keep_freed_memory", lambda: calls.append(1))
    monkeypatch.setattr(sys, "argv", ["bitdance", "info", "emoji", "--json"])
    assert main(sys.argv[1:]) == 0
    assert not calls
    assert cli.run() == 0
    assert calls == [1]
