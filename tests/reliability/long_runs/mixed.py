"""Eight threads that generate and call ops, while the process forks and data workers start and end.

The rules are those of docs/backends.md: a child of ``fork`` first sets PyTorch to one thread.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import random
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bitdance.data.packed_dataset import PackedDataset
from bitdance.data.packed_writer import PackedWriter
from bitdance_kernels import flip_bits, pack_signs, swiglu, unpack_signs
from bitdance_kernels.binary import numpy as front
from bitdance_kernels.testing import cpu_threads
from tests.forked import READY
from tests.model.helpers.tiny import tiny_pipeline

THREADS = 8
ANSWER = 60
"""Seconds after which a process that does not answer hangs."""
_FORK = multiprocessing.get_context("fork")
Work = Callable[[], torch.Tensor]


@dataclass(frozen=True)
class Mixed:
    """What has run beside each other.

    Attributes:
        calls: calls in threads that had the bits that they have alone.
        forks: forked processes in which all calls had them.
        epochs: epochs with two data workers, each of which read all items.
    """

    calls: int
    forks: int
    epochs: int


def run_mixed(calls: int, forks: int, epochs: int, *, seed: int = 0) -> Mixed:
    """Run all of it in a process of its own.

    Args:
        calls: calls of each thread, at least; they go on until forks and epochs are done.
        forks: forked processes.
        epochs: epochs of a data loader with two workers.
        seed: order of the calls.

    Raises:
        AssertionError: a result differs, or a process hangs.
    """
    receiver, sender = READY.Pipe(duplex=False)
    process = READY.Process(target=_answer, args=(sender, calls, forks, epochs, seed))
    process.start()
    sender.close()
    limit = ANSWER * (2 + forks + epochs) + calls
    try:
        assert receiver.poll(limit), f"mixed, seed {seed}: the process hangs"
        found = receiver.recv()
    except EOFError:
        process.join()
        raise AssertionError(f"mixed, seed {seed}: ended with {process.exitcode}") from None
    finally:
        process.kill()
        process.join()
    if isinstance(found, str):
        raise AssertionError(f"mixed, seed {seed}: {found}")
    return Mixed(*found)


def _answer(sender: Any, *arguments: int) -> None:
    try:
        sender.send(_mixed(*arguments))
    except BaseException:
        sender.send(traceback.format_exc())


def _mixed(calls: int, forks: int, epochs: int, seed: int) -> tuple[int, int, int]:
    torch.set_num_threads(2)
    work = _work()
    alone = [one().clone() for one in work]
    with cpu_threads(1):  # as in the children
        single = [one().clone() for one in work]
    with _threads(work, alone, calls, seed) as done, tempfile.TemporaryDirectory() as folder:
        for number in range(max(forks, epochs)):
            if number < forks:
                _fork(work, single, number)
            if number < epochs:
                _read(Path(folder), number)
    return sum(done), forks, epochs


def _work() -> list[Work]:
    """Calls of one pipeline and of ops, large enough for threads."""
    pipeline = tiny_pipeline()
    x = torch.linspace(-1, 1, 1024 * 512, dtype=torch.float32, device="cpu").view(1024, 512).sin_()
    packed = pack_signs(x)

    def draw(number: int) -> Work:
        labels = [(number + i) % 5 for i in range(1 + number % 3)]
        return lambda: pipeline(
            labels, seed=number, num_inference_steps=2, output_type="latent"
        ).images  # fmt: skip

    return [
        *(draw(number) for number in range(6)),
        lambda: pack_signs(x),
        lambda: unpack_signs(packed),
        lambda: flip_bits(packed, 0.3, seed=5),
        lambda: swiglu(x),
        lambda: torch.from_numpy(front.pack_signs(x.numpy(), threads=2)),
    ]


@contextlib.contextmanager
def _threads(
    work: list[Work], alone: list[torch.Tensor], calls: int, seed: int
) -> Iterator[list[int]]:
    """Threads that make the calls in orders of their own; inside and at the end what they did."""
    done, stop = [0] * THREADS, threading.Event()

    def run(thread: int) -> None:
        draws = random.Random(seed * THREADS + thread)
        while done[thread] < calls or not stop.is_set():
            number = draws.randrange(len(work))
            if not torch.equal(work[number](), alone[number]):
                raise AssertionError(f"call {number} of thread {thread} has other bits")
            done[thread] += 1

    with ThreadPoolExecutor(THREADS) as pool:
        running = [pool.submit(run, thread) for thread in range(THREADS)]
        try:
            yield done
        finally:
            stop.set()
        for future in running:
            future.result()


def _fork(work: list[Work], single: list[torch.Tensor], number: int) -> None:
    """A child that makes every call, forked while the threads of its parent make theirs."""
    here, there = _FORK.Pipe(duplex=False)

    def child() -> None:
        torch.set_num_threads(1)
        equal = [torch.equal(one(), known) for one, known in zip(work, single, strict=True)]
        there.send([i for i, same in enumerate(equal) if not same])
        there.close()
        os._exit(0)

    process = _FORK.Process(target=child)
    process.start()
    there.close()
    try:
        assert here.poll(ANSWER), f"fork {number} hangs"
        wrong = here.recv()
    except EOFError:
        process.join()
        raise AssertionError(f"fork {number} ended with {process.exitcode}") from None
    finally:
        process.kill()
        process.join()
        here.close()
    assert not wrong, f"fork {number}: calls {wrong} have other bits"


def _read(folder: Path, number: int) -> None:
    """An epoch with two workers; the data are written once."""
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 256, (64, 4, 2), np.uint8)
    path = folder / "codes"
    if not path.exists():
        with PackedWriter(path, tokens=4, channels=16) as writer:
            writer.write(codes, np.arange(64))
    data = PackedDataset(path)
    loader = torch.utils.data.DataLoader(
        data, batch_size=8, num_workers=2, multiprocessing_context=_FORK, timeout=ANSWER
    )
    found = torch.cat([labels for _, labels in loader])
    assert torch.equal(found, torch.arange(64, dtype=torch.int64, device="cpu")), f"epoch {number}"
