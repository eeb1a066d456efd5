"""``python -m benchmarks gpu --only attention``: attention, forward, backward and decoding."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.gpu import ops
from benchmarks.gpu.worker import Context, Step

OPS = ("block_causal_attention", "block_decode_attention")


def steps(context: Context) -> Sequence[Step]:
    """Checks, then every shape."""
    return ops.steps(context, "attention", OPS)
