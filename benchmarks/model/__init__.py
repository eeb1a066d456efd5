"""What is timed of the models: whole images, decoding, a step of training."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from torch import Tensor


class Comparison(NamedTuple):
    """Ways to do the same work, the first of which is this library's.

    Attributes:
        what: such as "decoder".
        shape: such as "bundled model, 1 image".
        ways: by name.
        flops: of the products and convolutions that the work needs.
        weight: what the work must read, where that may take longer than the products.
        memory: whether the peak of the memory is measured too.
    """

    what: str
    shape: str
    ways: Mapping[str, Callable[[], object]]
    flops: float = 0.0
    weight: Tensor | None = None
    memory: bool = False
