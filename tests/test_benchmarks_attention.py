"""The part of a run on a card about attention: tiles that win, libraries that are missing."""

import pytest

from benchmarks.gpu import attention
from benchmarks.peers import installed
from bitdance_kernels.attention.block_causal_attention import config


def test_tiles_of_attention_that_win():
    """Those that are more than 5% faster than the rule's, whose record is a shape's first."""

    def record(tile, us, **other):
        sizes = {"kernel": "forward", "width": 64, "size": 2, "keys": 319}
        return {"what": attention.TILE, "way": str(list(tile)), "all_us": [us], **sizes, **other}

    usual, other = config.Tile(64, 64, 4, 3, True), config.Tile(128, 32, 8, 2, False, "bf16x6")
    records = [record(usual, 10.0), record(other, 9.6)]
    records += [record(usual, 10.0, keys=16384), record(other, 9.4, keys=16384), {"what": "plan"}]
    (entry,) = attention.of_tiles(records)
    assert (entry["kernel"], entry["width"], entry["size"], entry["long"]) == ("forward", 64, 2, 1)
    assert config.Tile(*entry["tile"]) == other


def test_what_is_not_installed_is_said():
    with pytest.raises(RuntimeError, match=r"^not installed$"):
        installed("no_such_library_of_attention")
