"""Ops in a process that was forked after its parent had used threads."""

import multiprocessing

import numpy as np
import pytest
import torch

from bitdance_kernels import CpuGraph, flip_bits, pack_signs, swiglu, unpack_signs
from bitdance_kernels.binary import numpy as front
from bitdance_kernels.testing import cpu_threads
from tests.forked import READY

ROWS, CHANNELS = 4096, 512


def _compute():
    x = torch.linspace(-1, 1, ROWS * CHANNELS, dtype=torch.float32).view(ROWS, CHANNELS).sin_()
    packed = pack_signs(x)
    return [
        packed,
        unpack_signs(packed),
        flip_bits(packed, 0.3, seed=5),
        swiglu(x),
        torch.from_numpy(front.pack_signs(x.numpy(), threads=2)),
    ]


def _child(connection):
    # PyTorch's own operators hang here.
    torch.set_num_threads(1)
    expected = [tensor.numpy() for tensor in _compute()]
    torch.set_num_threads(2)
    x = torch.from_numpy(expected[1])
    found = [pack_signs(x).numpy(), flip_bits(torch.from_numpy(expected[0]), 0.3, seed=5).numpy()]
    found.append(front.pack_signs(expected[1], threads=2))
    same = [np.array_equal(a, expected[i]) for a, i in zip(found, (0, 2, 0), strict=True)]
    connection.send((same, [a.tobytes() for a in expected]))


def _parent(connection):
    """What a process does that uses threads and then forks."""
    with cpu_threads(2):
        before = [tensor.numpy().tobytes() for tensor in _compute()]
        here, there = multiprocessing.get_context("fork").Pipe(duplex=False)
        child = multiprocessing.get_context("fork").Process(target=_child, args=(there,))
        child.start()
        answered = here.poll(60)  # a child that waits for lost threads never answers
        result = here.recv() if answered else None
        child.kill()
        child.join()
    connection.send((answered, result and result[0], result and result[1] == before))


@pytest.mark.skipif(CpuGraph.unavailable() is not None, reason=str(CpuGraph.unavailable()))
def test_kernels_compute_alone_where_their_threads_are_lost():
    receiver, sender = READY.Pipe(duplex=False)
    process = READY.Process(target=_parent, args=(sender,))
    process.start()
    assert receiver.poll(120)
    assert receiver.recv() == (True, [True] * 3, True)
    process.join()
