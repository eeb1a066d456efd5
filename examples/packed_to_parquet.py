"""Write packed codes to Parquet, query the table, and read them back.

``python examples/packed_to_parquet.py --out out/parquet`` makes a small data set of stripes;
``--data FOLDER`` uses one of ``bitdance tokenize``. Needs pyarrow.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch

from bitdance.data.packed_dataset import PackedDataset
from bitdance.data.packed_writer import PackedWriter
from bitdance.data.parquet import from_parquet, to_parquet
from bitdance_kernels import pack_signs

TOKENS, BITS, CLASSES = 16, 64, 8


def stripes(count: int, seed: int = 0) -> tuple[torch.Tensor, np.ndarray]:
    """Packed codes of `count` images of stripes, with the direction of the stripes as the class.

    An image is cut into 4 x 4 patches of 8 x 8 pixels; the code of a patch is the signs of its
    pixels.
    """
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(CLASSES, (count,), generator=generator)
    angle = labels * torch.pi / CLASSES
    y, x = torch.meshgrid(torch.arange(32.0), torch.arange(32.0), indexing="ij")
    along = torch.cos(angle)[:, None, None] * x + torch.sin(angle)[:, None, None] * y
    images = torch.sin(along + 6 * torch.rand(count, 1, 1, generator=generator))
    patches = images.unfold(1, 8, 8).unfold(2, 8, 8).reshape(count, TOKENS, BITS)
    return pack_signs(patches), labels.numpy()


def main() -> None:
    """Write, query, read."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="a packed data set; by default one is generated")
    parser.add_argument("--out", type=Path, default=Path("out/parquet"))
    parser.add_argument("--images", type=int, default=2000, help="size of a generated data set")
    options = parser.parse_args()

    options.out.mkdir(parents=True, exist_ok=True)
    folder = options.data or options.out / "codes"
    if options.data is None:
        metadata = {"classes": [f"{180 * i / CLASSES:g} degrees" for i in range(CLASSES)]}
        with PackedWriter(folder, tokens=TOKENS, channels=BITS, metadata=metadata) as writer:
            for start in range(0, options.images, 512):  # any batch size
                writer.write(*stripes(min(512, options.images - start), seed=start))

    data = PackedDataset(folder)
    file = options.out / "codes.parquet"
    to_parquet(data, file)
    print(f"{len(data)} images of {data.tokens} tokens of {data.channels} bits: {file}")

    # Any Parquet reader can query the table; here pyarrow, without this library.
    labels = pq.read_table(file, columns=["label"])["label"]
    common = pc.mode(labels)[0]["mode"].as_py()
    names = data.metadata.get("classes") or {}
    print(f"the most frequent class: {names[common] if names else common}")
    chosen = pq.read_table(file, filters=pc.field("label") == common)
    print(f"its images: {len(chosen)}, {chosen['bits'].nbytes} bytes of bits")

    again = from_parquet(file, options.out / "again")
    equal = again.metadata == data.metadata and np.array_equal(again.labels, data.labels)
    everything = np.arange(len(data))
    equal = equal and torch.equal(again.take(everything)[0], data.take(everything)[0])
    print(f"read back: {'equal' if equal else 'DIFFERENT'}")


if __name__ == "__main__":
    main()
