"""Number of splits of a row's cache, for the GPU backends."""

from __future__ import annotations

import functools

import torch

# Untuned until a card has decided.
# Programs per multiprocessor. One tile of query rows waits for memory, so many loads should be in
# flight; many rows wait for the tensor cores and have large parts to combine.
_FEW_ROWS = 16
_PROGRAMS_OF_FEW_ROWS, _PROGRAMS_OF_MANY_ROWS = 4, 2
_MAX_SPLITS = 64
MAX_UNSPLIT_KEYS = 384
"""Rows of a cache up to which it is not split: one launch, where splits need another to combine.

On an H200 a chain of them takes 5.2 us each with one launch and 4.9 with splits for one image of
single tokens, and 5.3 with either for one of 16; one launch leaves more room to overlap.
"""
MAX_CLUSTER = 8
"""Splits that one cluster of blocks combines in one launch, on cards that have clusters."""
MAX_CLUSTER_KEYS = 4096
"""Rows of a cache up to which that is done: each block then has 512 keys at most."""

_H200_MULTIPROCESSORS = 132


def split_count(device: torch.device, programs: int, rows: int, keys: int, tile: int) -> int:
    """Splits for `programs` programs of `rows` query rows, each with `keys` keys in tiles.

    From shapes and the card alone, so that a captured graph serves every length: enough to fill
    the multiprocessors, never more than there are tiles of `tile` keys.
    """
    if keys <= MAX_UNSPLIT_KEYS:
        return 1
    each = _PROGRAMS_OF_FEW_ROWS if rows <= _FEW_ROWS else _PROGRAMS_OF_MANY_ROWS
    wanted = -(-_multiprocessors(device) * each // programs)
    return max(1, min(wanted, -(-keys // tile), _MAX_SPLITS))


@functools.cache
def _multiprocessors(device: torch.device) -> int:
    if device.type != "cuda":  # the interpreter uses the choice for a large card
        return _H200_MULTIPROCESSORS
    return torch.cuda.get_device_properties(device).multi_processor_count
