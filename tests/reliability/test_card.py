"""The figures of a card; tests/test_benchmarks_attack.py plants the faults."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import gpu
from benchmarks.gpu import parts
from benchmarks.shapes import Bench
from tests.reliability import card


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a card")
def test_without_a_card_nothing_is_measured() -> None:
    assert card.measure(1.0) == {}


def test_a_card_runs_the_part_without_the_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    def main(benches: Sequence[Bench], out: Path, given: Mapping[str, float]) -> None:
        assert given == {"attack": 30.0}
        assert "TRITON_INTERPRET" not in os.environ
        result: dict[str, Any] = {"checks": [], "failed": {}, "passed": {"swiglu, triton, fuzz": 3}}
        parts.result_of(out, "attack").write_text(json.dumps(result))

    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(gpu, "main", main)
    assert card.measure(0.1) == {card.FUZZED: 3}
    assert os.environ["TRITON_INTERPRET"] == "1"


def test_a_result_has_every_figure() -> None:
    passed = {
        "swiglu, triton, fuzz": 150, "pack_signs, cuda, fuzz": 100,
        "swiglu, triton, 250 replays": 2,
        "pack_signs, cuda, memcheck": 1, "pack_signs, cuda, racecheck": 1,
        "swiglu, triton, allocations fail": 1,
    }  # fmt: skip
    result: dict[str, Any] = {"checks": [], "failed": {}, "passed": passed}
    assert card.figures(result) == {
        card.FUZZED: 250,
        card.REPLAYED: 500,
        card.WATCHED: 2,
        card.EXHAUSTED: 1,
    }
    assert {promise.name for promise in card.PROMISES} == set(card.figures(result))
    assert {promise.where for promise in card.PROMISES} == {"card"}


def test_a_fault_of_a_result_is_raised() -> None:
    check = {"op": "swiglu", "backend": "triton", "sample": "seed 7", "wrong": "it changed"}
    failed = {"attack: fuzz, rope, seeds from 8": "Traceback\nRuntimeError: rope, cuda, seed 9"}
    with pytest.raises(AssertionError, match=r"swiglu, triton, seed 7: it changed; .*seed 9"):
        card.figures({"checks": [check], "failed": failed, "passed": {}})
