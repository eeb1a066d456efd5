"""``python -m benchmarks gpu --only decide``: what the new kernels are worth on a card, in minutes.

Each step answers one question of a design that was made without a card, and is recorded at once.
"""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.gpu.decide import exchange
from benchmarks.gpu.worker import Context, Step


def steps(context: Context) -> Sequence[Step]:
    """All steps, those first that decide about most."""
    return exchange.steps(context)
