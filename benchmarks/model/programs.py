"""``python -m benchmarks model``: programs that time one thing of the models."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from benchmarks.model import decode, head, packed_dataset, training

PROGRAMS: dict[str, Callable[[], dict[str, Any]]] = {
    "head_sampling": torch.no_grad()(head.sampling),
    "head_plans": torch.no_grad()(head.plans),
    "training": training.measure,
    "decode": torch.no_grad()(decode.measure),
    "packed_dataset": packed_dataset.measure,
}
