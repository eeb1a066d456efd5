"""Long runs at a small size, and leaks that are planted and found."""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable

import pytest
import torch

from bitdance_kernels import CpuGraph
from tests.reliability import long_runs
from tests.reliability.long_runs import growth, mixed

WATCHED = pytest.mark.skipif(not growth.is_available(), reason="needs glibc 2.33 on Linux")


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bitdance.training.log.Log.plot", lambda *_: None)


OPS = ("pack_signs", "swiglu", "denoise_step", "rope_append")
KEPT: list[object] = []


def _file(_: int) -> None:
    KEPT.append(os.open(os.devnull, os.O_RDONLY))


def _thread(_: int) -> None:
    threading.Thread(target=threading.Event().wait, args=(20,), daemon=True).start()


LEAKS: dict[str, tuple[Callable[[int], object], str]] = {
    "a tensor": (lambda _: KEPT.append(torch.zeros(64, dtype=torch.float32, device="cpu")), "heap"),
    "32 bytes of C": (lambda _: ctypes.CDLL(None).malloc(32), "heap"),
    "a list": (lambda i: KEPT.append([i]), "objects"),
    "a string": (lambda i: KEPT.append(f"call {i}"), "blocks"),
    "mapped memory": (lambda _: KEPT.append(bytearray(1 << 12)), "memory"),
    "a file": (_file, "files"),
    "a thread": (_thread, "threads"),
}


@WATCHED
@pytest.mark.parametrize("name", LEAKS)
def test_a_planted_leak_is_found(name: str) -> None:
    action, what = LEAKS[name]
    calls = 16 if name in ("a file", "a thread") else 2400
    try:
        with pytest.raises(AssertionError, match=rf"planted: over {calls} calls grew .*{what} by"):
            growth.flat("planted", action, calls, warm_up=2, points=5)
    finally:
        for kept in KEPT:
            if isinstance(kept, int):
                os.close(kept)
        KEPT.clear()


@WATCHED
def test_what_grows_once_is_no_leak() -> None:
    def action(number: int) -> None:
        if number == 50:
            KEPT.append([[i] for i in range(10_000)])

    assert growth.flat("a cache", action, 100, warm_up=2) == 100
    KEPT.clear()


@WATCHED
def test_images_and_op_calls_leave_nothing_behind() -> None:
    assert long_runs.watch_images(24) == 24
    assert long_runs.watch_ops(0, OPS) % 8 == 0


@pytest.mark.skipif(CpuGraph.unavailable() is not None, reason=str(CpuGraph.unavailable()))
def test_threads_forks_and_workers_mix() -> None:
    found = mixed.run_mixed(3, 2, 1)
    assert found.calls >= 3 * mixed.THREADS
    assert (found.forks, found.epochs) == (2, 1)
