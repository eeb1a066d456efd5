"""Search among binary codes with ``nearest_codes``.

``python examples/code_search.py`` changes bits of some of 200,000 codes and finds the codes again.
With ``--data FOLDER``, a packed data set, it searches for the images whose bits are nearest to
those of an image, and prints how often they have the same class.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch

from bitdance.data.packed_dataset import PackedDataset
from bitdance_kernels import flip_bits, nearest_codes


def random_bytes(*shape: int, seed: int = 0) -> torch.Tensor:
    """Independent codes, of which any two differ in half of their bits."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, shape, dtype=torch.uint8, generator=generator)


def find_changed(count: int, queries: int, bits: int, k: int) -> None:
    """Print how many changed copies are found, for several shares of changed bits."""
    codes = random_bytes(count, bits // 8)
    wanted = torch.randperm(count, generator=torch.Generator().manual_seed(1))[:queries]
    print(f"{queries} changed copies among {count} codes of {bits} bits")
    for share in (0.05, 0.1, 0.2, 0.3):
        changed = flip_bits(codes[wanted], 2 * share, seed=2)  # a bit flips with half the rate
        start = time.perf_counter()
        indices, distances = nearest_codes(changed, codes, k)
        seconds = time.perf_counter() - start
        found = indices == wanted[:, None]
        print(
            f"  {share:4.0%} of the bits changed: {found[:, 0].float().mean():6.1%} nearest, "
            f"{found.any(1).float().mean():6.1%} among the {k} nearest; distance to the nearest "
            f"{distances[:, 0].float().mean():4.1f} bits; {seconds:.2f} s"
        )


def find_similar(data: PackedDataset, queries: int, k: int) -> None:
    """Print how often the images with the nearest codes are of the same class."""
    packed, labels = data.take(np.arange(len(data)))
    codes = packed.flatten(1)  # the bits of all tokens are one long code
    chosen = torch.randperm(len(codes), generator=torch.Generator().manual_seed(1))[:queries]
    indices, distances = nearest_codes(codes[chosen], codes, min(k + 1, len(codes)))
    same = labels[indices] == labels[chosen, None]
    itself = indices == chosen[:, None]
    others = same & ~itself
    share = others.sum() / (~itself).sum()
    _, counts = labels.unique(return_counts=True)
    chance = ((counts / len(labels)) ** 2).sum()
    print(
        f"{len(chosen)} of {len(codes)} images, {codes.shape[1] * 8} bits each: {share:.1%} of the "
        f"{k} nearest others are of the same class (by chance {chance:.1%}); "
        f"{distances[~itself].float().mean():.0f} bits differ"
    )


def main() -> None:
    """Search."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="a packed data set")
    parser.add_argument("--codes", type=int, default=200_000, help="codes, without a data set")
    parser.add_argument("--bits", type=int, default=64, help="bits per code, without a data set")
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--k", type=int, default=5)
    options = parser.parse_args()
    if options.data is None:
        find_changed(options.codes, options.queries, options.bits, options.k)
    else:
        find_similar(PackedDataset(options.data), options.queries, options.k)


if __name__ == "__main__":
    main()
