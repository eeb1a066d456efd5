"""How fast packed codes are read in shuffled batches.

``python -m benchmarks.model.packed_dataset`` prints it. One thread, files in the page cache. Beside
``PackedDataset.take``: the same from one array in memory (numpy's own limit), and image by image
through a ``DataLoader``.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bitdance.data.packed_dataset import PackedDataset, PackedWriter, ShuffledBatches

SHAPES = ((16, 64), (256, 32))  # tokens an image, bits a token


def measure(
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
        ways: dict[str, tuple[Callable[[int], Any], int]] = {
            "PackedDataset.take": (lambda i: data.take(batches.batch(i)), batches.per_epoch),
            "array in memory": (
                lambda i: (torch.from_numpy(codes[batches.batch(i)]), labels[batches.batch(i)]),
                batches.per_epoch,
            ),
            "DataLoader, image by image": (
                lambda i: list(torch.utils.data.DataLoader(some, batch_size=batch_size)), 1,
            ),
        }  # fmt: skip
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(rounds):
            for name, (read, count) in ways.items():
                batches.batch(0)  # the order of the epoch is drawn once, outside the timing
                begin = time.perf_counter()
                for i in range(count):
                    read(i)
                seconds[name].append((time.perf_counter() - begin) / (count * batch_size))
    return rates | {name: 1 / statistics.median(times) for name, times in seconds.items()}


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=60_000)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--shard-size", type=int, default=16_384, help="images a shard")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    for tokens, bits in SHAPES:
        rates = measure(
            tokens, bits, images=options.images, batch_size=options.batch_size,
            shard_size=options.shard_size, rounds=options.rounds,
        )  # fmt: skip
        size = tokens * bits // 8
        print(f"{options.images} images of {tokens} tokens of {bits} bits ({size} bytes)")
        for name, rate in rates.items():
            share = rate / rates["array in memory"]
            print(
                f"  {name:28} {rate:12,.0f} images/s {rate * size / 1e6:8,.0f} MB/s {share:8.3f}x"
            )


if __name__ == "__main__":
    main()
