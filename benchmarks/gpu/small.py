"""``python -m benchmarks gpu --only small``: packed bits, entropies, attention within patches."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.gpu import ops
from benchmarks.gpu.worker import Context, Step

OPS = (
    "bit_counts", "flip_bits", "flip_signs", "hamming_distance", "lfq_entropy", "nearest_codes",
    "pack_signs", "packed_linear", "patch_attention", "unpack_signs",
)  # fmt: skip


def steps(context: Context) -> Sequence[Step]:
    """Checks, then every shape."""
    return ops.steps(context, "small", OPS)
