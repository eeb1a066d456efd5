"""Launches of the products of few rows: what is measured comes first, and a rule for the rest."""

import json

import pytest
import torch

from bitdance_kernels._shared import skinny_config
from bitdance_kernels._shared.skinny_config import Launch, choose

CARD = torch.device("cuda")
ENTRY = {"rows": 32, "channels": 768, "features": 2304, "launch": [4, 2, 8]}


@pytest.fixture
def measured(tmp_path, monkeypatch):
    """Takes the content of the file, for a card of the name "card"."""
    file = tmp_path / "skinny_measured.json"
    monkeypatch.setattr(skinny_config, "MEASURED", file)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "card")
    skinny_config._measured.cache_clear()
    yield lambda content: file.write_bytes(
        content if isinstance(content, bytes) else json.dumps(content).encode()
    )
    skinny_config._measured.cache_clear()


def test_a_measured_launch_serves_its_class_of_rows(measured):
    measured({"card": [ENTRY], "another": []})
    for rows in (9, 17, 32):
        assert choose(rows, 768, 2304, CARD) == Launch(4, 2, 8)
    for sizes in ((8, 768, 2304), (33, 768, 2304), (32, 768, 768)):
        assert choose(*sizes, CARD) == skinny_config._rule(*sizes)
    assert choose(32, 768, 2304, torch.device("cpu")) == skinny_config._rule(32, 768, 2304)


def test_a_block_has_whole_groups_of_tiles(measured):
    """Those of heads that are normalized: another launch is not taken, measured or not."""
    measured({"card": [ENTRY]})
    assert choose(32, 768, 2304, CARD, group=4) == Launch(4, 2, 8)
    for rows in (1, 32, 64, 128):
        assert choose(rows, 5120, 7168, CARD, group=8).tiles == 8


@pytest.mark.parametrize(
    "content",
    [{"card": [{**ENTRY, "launch": [4, 2]}]}, {"card": [{**ENTRY, "launch": 4}]}, {"card": [3]},
     {"card": [{"rows": 8}]}, [ENTRY], b"\xff", b"[" * 100_000, b"{"],
    ids=range(8),
)  # fmt: skip
def test_a_file_that_is_not_as_it_must_be(measured, content):
    measured(content)
    with pytest.raises(ValueError, match=r"skinny_measured.json: card must be a list of objects"):
        choose(32, 768, 2304, CARD)
