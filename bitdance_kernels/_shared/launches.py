"""Launches that may begin before the one before them has ended.

On cards of capability 9.0 and 10.0 a kernel can be launched while the one before it on the stream
still runs (programmatic dependent launch). It then fetches what no kernel of the chain writes, and
waits for the other before it reads anything else. Whoever opens the context vouches for that.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

__all__ = ["overlapping_launches"]


class _State(threading.local):
    contexts = 0  # that are open
    launched = False  # in the innermost one


_STATE = _State()


@contextlib.contextmanager
def overlapping_launches() -> Iterator[None]:
    """A context in which kernels of this library begin while those before them still run.

    It holds for this thread, for the products with packed weights, for ``patch_attention`` by
    Triton and for ``block_decode_attention``, on cards of capability 9.0 or 10.0; all others ignore
    it. The first kernel of a context
    waits for everything before it. A later one reads its weight and bias, its norm's weight and
    bias, the scale, shift and gate of its modulation, and the step and keys of its noise while
    kernels before it may still run, so whoever writes one of these inside of a context begins
    another one afterwards. A context within another one begins a new chain, and so does what
    follows it.

    Example:
        >>> import torch
        >>> x, weight = torch.ones(1, 16), pack_weight(torch.eye(16))
        >>> with overlapping_launches():
        ...     y = linear(linear(x, weight), weight)
    """
    _STATE.contexts += 1
    _STATE.launched = False
    try:
        yield
    finally:
        _STATE.contexts -= 1
        _STATE.launched = False


def programmatic() -> int:
    """1 if the launch that follows may begin early, which the first one of a context may not."""
    early = _STATE.launched
    _STATE.launched = _STATE.contexts > 0
    return int(early)
