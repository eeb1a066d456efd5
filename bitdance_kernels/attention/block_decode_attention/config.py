"""How many splits the cache of a row is read in: what the GPU backends share."""

from __future__ import annotations

import functools

import torch

# Untuned until a card has decided.
_PROGRAMS_PER_MULTIPROCESSOR = 4
_MOST_SPLITS = 64
_H200_MULTIPROCESSORS = 132


def split_count(device: torch.device, programs: int, tiles: int) -> int:
    """Splits for `programs` programs that each have up to `tiles` tiles of keys.

    From shapes and the card alone, so that a captured graph serves every length: enough to fill
    the multiprocessors, never more than there are tiles.
    """
    wanted = -(-_multiprocessors(device) * _PROGRAMS_PER_MULTIPROCESSOR // programs)
    return max(1, min(wanted, tiles, _MOST_SPLITS))


@functools.cache
def _multiprocessors(device: torch.device) -> int:
    if device.type != "cuda":  # the interpreter takes what a large card would
        return _H200_MULTIPROCESSORS
    return torch.cuda.get_device_properties(device).multi_processor_count
