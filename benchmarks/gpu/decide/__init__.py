"""``python -m benchmarks gpu --only decide``: what the new kernels are worth on a card, in minutes.

A design that was made without a card rests on figures that it had to assume. Each step measures one
of them and is recorded at once; the tables of plans and of launches follow from them. A kernel that
is wrong ends all that would use the new kernels.
"""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.gpu.decide import check, decoder, exchange, plans, stages, trunks
from benchmarks.gpu.worker import Context, Step


def steps(context: Context) -> Sequence[Step]:
    """All steps, those first that decide about most."""
    parts = (
        check.steps,
        exchange.steps,
        stages.steps,
        plans.head_steps,
        plans.trunk_steps,
        trunks.steps,
        plans.table_steps,
        decoder.steps,
        plans.image_steps,
    )
    return [step for steps in parts for step in steps(context)]
