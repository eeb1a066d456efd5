"""The plan of head and trunk: by card, architecture and rows."""

import json
import re

import pytest
import torch

from bitdance.sampling import config
from bitdance.sampling.config import Measured, choose_plan, max_table_rows, tables, use_plans
from bitdance_kernels._shared import native

CARD = torch.device("cuda")
TABLE = {
    "NVIDIA H200": {
        "head": {"mlp": [[1, "packed"], [65, "library"], [100, "packed"]], "t2i": []},
        "trunk": [[3, "packed"]],
        "max_table_rows": 128,
    },
    "NVIDIA H100": {},
}


@pytest.fixture
def card(tmp_path, monkeypatch):
    """An H200 with a table."""
    path = tmp_path / "measured.json"
    path.write_text(json.dumps(TABLE))
    monkeypatch.setattr(config, "FILE", path)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA H200")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    return monkeypatch


def _head(rows, *, widths=(32, 48), dtype=torch.bfloat16, device=CARD, architecture="mlp", **more):
    return choose_plan("head", rows, widths, dtype, device, architecture=architecture, **more)


def test_the_table_decides_by_architecture_and_rows(card):
    plans = [_head(rows) for rows in (1, 64, 65, 99, 100, 128)]
    assert plans == ["packed", "packed", "library", "library", "packed", "packed"]
    assert [_head(8, architecture=name) for name in ("t2i", "transformer")] == ["library"] * 2
    trunk = [choose_plan("trunk", n, (16,), torch.float16, CARD) for n in (2, 3)]
    assert trunk == ["library", "packed"]
    assert choose_plan("t2i_trunk", 3, (16,), torch.float16, CARD) == "library"
    assert max_table_rows(CARD) == 128


def test_what_the_kernels_cannot_run_is_the_librarys(card):
    assert _head(8) == "packed"
    assert _head(129) == "library"
    assert _head(8, widths=(32, 24)) == "library"
    assert _head(8, dtype=torch.float32) == "library"
    assert _head(8, device=torch.device("cpu")) == "library"
    card.setattr(torch.cuda, "get_device_capability", lambda _: (12, 0))
    assert _head(8) == "library"


def test_cards_without_a_table_take_the_library(card):
    for name in ("NVIDIA H100", "NVIDIA B200"):
        card.setattr(torch.cuda, "get_device_name", lambda _, name=name: name)
        assert _head(8) == "library"
        assert max_table_rows(CARD) == config.MAX_TABLE_ROWS
    assert max_table_rows(torch.device("cpu")) == config.MAX_TABLE_ROWS


def test_persistent_heads_are_those_that_there_is_a_kernel_for(card):
    """Of others a table that says so has packed weights."""
    table = {"NVIDIA H200": {"head": {name: [[1, "persistent"]] for name in config.ARCHITECTURES}}}
    config.FILE.write_text(json.dumps(table))
    tables.cache_clear()
    for (architecture, channels), max_rows in config.MAX_PERSISTENT_ROWS.items():
        widths = (3 * channels, channels, channels, 3 * channels // 2, channels, 32, 32, channels)
        own = {"widths": widths, "device": CARD, "architecture": architecture}
        assert [_head(n, **own) for n in (max_rows, max_rows + 1)] == ["persistent", "packed"]
        assert _head(8, **{**own, "architecture": "t2i"}) == "packed"
        assert _head(8, **{**own, "widths": (*widths, 16)}) == "packed"
        assert [_head(8, **own, patch=n) for n in (16, 25)] == ["persistent", "packed"]
        assert _head(8, **own, plan="persistent") == "persistent"
        with pytest.raises(ValueError, match=f"another one for {max_rows + 1} rows, more than"):
            _head(max_rows + 1, **own, plan="persistent")
    for wrong, message in (
        ({"architecture": "t2i"}, "another one for what is no head of a class-conditional model"),
        ({"architecture": "transformer"}, "another one for widths of "),
        ({"patch": 25}, "another one for patches of 25 tokens, more than 16"),
        ({"widths": (16, 48)}, "another one for widths of 16, 48"),
    ):
        with pytest.raises(ValueError, match=message):
            _head(8, plan="persistent", **wrong)
    with use_plans(trunk="persistent"), pytest.raises(ValueError, match="no head of a class"):
        choose_plan("trunk", 2, (16,), torch.float16, CARD)


@pytest.mark.skipif(native.cuda.unavailable() is not None, reason="no CUDA module")
def test_rows_of_the_persistent_kernel_are_as_the_module_says():
    for (architecture, channels), max_rows in config.MAX_PERSISTENT_ROWS.items():
        heads = channels // 64 if architecture == "transformer" else 0
        found = native.cuda.denoise_patch_max_rows(channels, 3 * channels // 2, heads, 0)
        assert found == max_rows
    for unknown in ((512, 768, 0), (768, 1152, 6), (1024, 1536, 16)):
        assert native.cuda.denoise_patch_max_rows(*unknown, 0) == 0


def test_a_plan_may_be_asked_for(card):
    on_cpu = {"device": torch.device("cpu"), "dtype": torch.float64}
    assert _head(8, plan="packed", **on_cpu) == "packed"
    assert _head(8, plan="library") == "library"
    with use_plans(head="packed", max_table_rows=7):
        assert _head(70, **on_cpu) == "packed"
        assert choose_plan("trunk", 2, (16,), torch.float16, CARD) == "library"
        with use_plans(trunk="packed", head="library"):
            assert _head(8) == "library"
            assert choose_plan("trunk", 2, (16,), torch.float16, CARD) == "packed"
            assert max_table_rows(CARD) == 7
        assert _head(70) == "packed"
    assert (_head(70), max_table_rows(CARD)) == ("library", 128)
    for plan, more, message in (
        ("own", {}, "plan must be one of auto, library, packed, persistent, got 'own'"),
        (
            "packed",
            {"rows": 200},
            "plan must be 'library' for 200 rows, more than 128, got 'packed'",
        ),
        ("packed", {"widths": (16, 40)}, "'library' for a width of 40, no multiple of 16, got"),
    ):
        with pytest.raises(ValueError, match=f"^choose_plan: .*{re.escape(message)}"):
            _head(more.pop("rows", 8), plan=plan, **more)
    with pytest.raises(ValueError, match=r"use_plans: part must be one of head, .* got 'body'"):
        use_plans(body="packed").__enter__()


def test_the_file_that_ships_is_read():
    assert all(isinstance(table, Measured) for table in tables(config.FILE).values())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "measured.json must be a JSON object, got list"),
        ({"Card": []}, "measured.json: Card must be an object, got"),
        ({"Card": {"body": []}}, "measured.json: Card must be an object with some of head, trunk"),
        ({"Card": {"head": [[1, "packed"]]}}, "measured.json: Card: head must be an object, got"),
        ({"Card": {"head": {"conv": []}}}, "Card: head must be an object with some of mlp, .*conv"),
        ({"Card": {"trunk": {}}}, r"Card: trunk must be a list of \[min_rows, plan\] with rows"),
        ({"Card": {"trunk": [1]}}, "Card: trunk must be a list of .*, got 1"),
        (
            {"Card": {"trunk": [[1, "own"]]}},
            "Card: trunk must be .* plans of library, packed, pers",
        ),
        ({"Card": {"trunk": [[1.5, "packed"]]}}, r"trunk must be .*, got \[1.5, 'packed'\]"),
        ({"Card": {"trunk": [[4, "packed"], [4, "library"]]}}, "trunk must be .* rows that ascend"),
        ({"Card": {"head": {"mlp": [[True, "packed"]]}}}, "Card: mlp must be a list of .* got"),
        ({"Card": {"max_table_rows": "64"}}, "Card: max_table_rows must be a number of rows, got"),
        ({"Card": {"max_table_rows": True}}, "Card: max_table_rows must be a number of rows, got"),
    ],
)
def test_bad_content_is_refused(content, message, tmp_path):
    path = tmp_path / "measured.json"
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message):
        tables(path)
    path.unlink()
    with pytest.raises(FileNotFoundError):
        tables(path)
