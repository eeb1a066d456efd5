"""How fast packed codes are read in shuffled batches.

One thread, files in the page cache. Beside ``PackedDataset.take``: the same from one array in
memory (numpy's own limit), and image by image through a ``DataLoader``.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import timing
from bitdance.data.packed_dataset import PackedDataset
from bitdance.data.packed_writer import PackedWriter
from bitdance.data.shuffle import ShuffledBatches

SHAPES = ((16, 64), (256, 32))  # tokens an image, bits a token


def reading(
    tokens: int, bits: int, *, images: int = 60_000, batch_size: int = 256,
    shard_size: int = 16_384, rounds: int = 5,
) -> dict[str, float]:  # fmt: skip
    """Images a second of each way to read, the median of `rounds` epochs; they take turns."""
    generator = np.random.default_rng(0)
    codes = generator.integers(0, 256, (images, tokens, bits // 8), dtype=np.uint8)
    labels = generator.integers(0, 1000, images)
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent) / "codes"
        begin = time.perf_counter()
        with PackedWriter(folder, tokens=tokens, channels=bits, shard_size=shard_size) as writer:
            writer.write(codes, labels)
        rates = {"written, synced": images / (time.perf_counter() - begin)}
        begin = time.perf_counter()
        data = PackedDataset(folder)
        rates["opened, checksums compared"] = images / (time.perf_counter() - begin)

        batches = ShuffledBatches(images, batch_size)
        some = torch.utils.data.Subset(data, batches.batch(0).tolist())

        def epoch(read: Callable[[np.ndarray], Any]) -> None:
            for i in range(batches.per_epoch):
                read(batches.batch(i))

        ways: dict[str, Callable[[], object]] = {
            "PackedDataset.take": lambda: epoch(data.take),
            "array in memory": lambda: epoch(lambda i: (torch.from_numpy(codes[i]), labels[i])),
            "DataLoader, image by image": lambda: list(
                torch.utils.data.DataLoader(some, batch_size=batch_size)
            ),
        }
        seconds = timing.medians(timing.take_turns(ways, rounds))
    read = dict.fromkeys(ways, batches.per_epoch * batch_size)
    read["DataLoader, image by image"] = batch_size  # of one batch
    return rates | {name: read[name] / seconds[name] for name in ways}


def measure() -> dict[str, Any]:
    """Images a second of every shape, on one thread."""
    torch.set_num_threads(1)
    return {f"{n} x {bits} bits, images/s": reading(n, bits) for n, bits in SHAPES}
