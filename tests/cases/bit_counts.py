"""bit_counts: the codes of a data set."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from bitdance_kernels import bit_counts
from bitdance_kernels.testing import Call, Case, Timing


def samples(device: torch.device) -> Iterator[Call]:
    generator = torch.Generator().manual_seed(0)
    for shape in [(5, 8), (1, 1), (0, 4), (3, 7, 5), (1,), (300, 17)]:
        packed = torch.randint(256, shape, generator=generator, dtype=torch.uint8)
        yield Call(f"{list(shape)}", (packed.to(device),))
    yield Call("all ones", (torch.full((70, 2), 255, dtype=torch.uint8, device=device),))


def _timing(rows: int, width: int, *devices: str) -> Timing:
    name = f"[{rows}, {width}]"

    def make(device: torch.device) -> Call:
        return Call(name, (torch.randint(256, (rows, width), dtype=torch.uint8, device=device),))

    return Timing(name, make, bytes=rows * width, devices=devices or ("cpu", "cuda"))


def numpy_unpackbits(packed: torch.Tensor) -> torch.Tensor:
    bits = np.unpackbits(packed.numpy().reshape(-1, packed.shape[-1]), axis=1, bitorder="little")
    return torch.from_numpy(bits.sum(0, dtype=np.int64))


CASES = (
    Case(
        op=bit_counts,
        rule="exact",
        samples=samples,
        timings=(_timing(2**18, 32), _timing(2**25, 32, "cuda")),
        baselines={"numpy": numpy_unpackbits},
    ),
)
