"""The command that runs the suites, and the table that it fills."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import tests.reliability
from tests.reliability import __main__ as command
from tests.reliability import runs, table
from tests.reliability.promise import Promise

ORIGIN = {"commit": "abc", "machine": {"cpu": "a processor", "cores": 2}}
KEPT = Promise("kept", "It holds.", 10, "cases", "CI")
SLOPE = Promise("slope", "It is flat.", 8, "bytes a call", "nightly", at_most=True)
CARD = Promise("card", "It holds on a card.", 5, "cases", "card")

SUITES = {
    "good": 'return {"kept": 10 * scale, "slope": 3}',
    "dies": 'print("last words", flush=True)\n    os.abort()',
    "raises": 'raise AssertionError("case 7, seed 3")',
    "hangs": "time.sleep(600)",
    "other": 'return {"unknown": 1}',
    "endless": 'return {"kept": float("inf")}',
    "leaves": "os._exit(0)",
}
SOURCE = """
import os, time
from tests.reliability.promise import Promise
PROMISES = (
    Promise("kept", "It holds.", 10, "cases", "CI"),
    Promise("slope", "It is flat.", 8, "bytes a call", "nightly", at_most=True),
)
def measure(scale):
    {body}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout that has only the suites above, where children find it first."""
    package = tmp_path / "tests/reliability"
    package.mkdir(parents=True)
    for name in ("__init__", "promise", "child"):
        source = runs.ROOT / f"tests/reliability/{name}.py"
        (package / f"{name}.py").write_text(source.read_text())
    (tmp_path / "tests/__init__.py").touch()
    (tmp_path / "tests/conftest.py").touch()
    for name, body in SUITES.items():
        (package / f"{name}.py").write_text(SOURCE.format(body=body))
    monkeypatch.setattr(runs, "ROOT", tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    suites = [runs.Suite(name, (KEPT, SLOPE)) for name in SUITES]
    monkeypatch.setattr(runs, "find", lambda: suites)
    monkeypatch.setattr(runs, "here", lambda: ORIGIN)
    return tmp_path


def test_figures_are_stored_after_each_suite(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = folder / "results/out.json"
    arguments = ["--out", str(out), "--limit", "60"]
    assert command.main(["good", *arguments, "--scale", "0.5"]) == 0
    assert runs.load(out)["good"]["figures"]["kept"] == {"figure": 5.0, "goal": 10}
    assert command.main(["good", "dies", "raises", *arguments]) == 1
    printed = capsys.readouterr().out
    assert "last words\n" in printed
    assert "dies: ended by SIGABRT" in printed
    stored = runs.load(out)
    assert list(stored) == ["dies", "good", "raises"]
    assert stored["good"]["figures"]["kept"]["figure"] == 10
    assert stored["good"]["failure"] is None
    assert stored["good"]["commit"] == "abc"
    assert stored["raises"]["failure"].endswith(
        "AssertionError: case 7, seed 3\nraises: exit status 1"
    )
    assert stored["dies"]["figures"] == {}
    assert [path.name for path in out.parent.iterdir()] == ["out.json"]


@pytest.mark.parametrize(
    ("name", "limit", "words"),
    [
        ("hangs", 0.2, "killed after 0 s"),
        ("other", 60, "figures must be of PROMISES, got ['unknown']"),
        ("endless", 60, "figures must be finite, got others for ['kept']"),
        ("leaves", 60, "ended without figures"),
    ],
)
def test_other_failures(folder: Path, name: str, limit: float, words: str) -> None:
    outcome = runs.run(runs.Suite(name, (KEPT, SLOPE)), 1.0, limit)
    assert words in outcome["failure"]
    assert outcome["figures"] == {}


def test_what_is_asked_wrongly(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "bad.json").write_text("[]")
    for arguments, words in (
        (["nothing"], "no suite 'nothing'; there are good, dies"),
        (["--scale", "0"], "must be positive"),
        (["good", "--out", str(folder / "bad.json")], "is no result of"),
    ):
        with pytest.raises(SystemExit) as stopped:
            command.main(arguments)
        assert stopped.value.code == 2
        assert words in capsys.readouterr().err
    assert command.main(["good", "--list"]) == 0
    assert "slope: at most 8 bytes a call (nightly). It is flat." in capsys.readouterr().out


def _outcome(scale: float = 1.0, failure: str | None = None, **figures: float) -> dict[str, object]:
    machine = {"cpu": "P", "cores": 2, "instruction_set": "avx2", "card": None, "torch": "2"}
    return {
        "date": "2030-01-02 03:04 UTC", "commit": "abc", "machine": machine, "scale": scale,
        "seconds": 1.0, "failure": failure,
        "figures": {name: {"figure": value, "goal": 1} for name, value in figures.items()},
    }  # fmt: skip


def test_every_promise_has_a_row_that_says_what_was_measured() -> None:
    suites = [runs.Suite("a_suite", (KEPT, SLOPE, CARD)), runs.Suite("b", (KEPT,))]
    rows = table.markdown(suites, {"a_suite": _outcome(kept=1234.0, slope=9.5)}).splitlines()
    assert rows[2:6] == [
        "| a suite | It holds. | 10 cases | 1,234 | CI | 2030-01-02, abc |",
        "| a suite | It is flat. | at most 8 bytes a call | **9.5**, not kept | nightly "
        "| 2030-01-02, abc |",
        "| a suite | It holds on a card. | 5 cases | not measured | card |  |",
        "| b | It holds. | 10 cases | not measured | CI |  |",
    ]
    assert rows[-1] == "Measured on: P, 2 cores, avx2, PyTorch 2."
    small = table.markdown(suites, {"b": _outcome(0.1, kept=1.0)})
    assert "| 1 (a run of 0.1 of the size) |" in small
    assert "| **failed** |" in table.markdown(suites, {"b": _outcome(failure="why")})


def test_a_page_without_its_place_is_refused() -> None:
    with pytest.raises(ValueError, match="no place"):
        table.filled("text", [], {})
    with pytest.raises(ValueError, match=r"the table must be 'reliability', got 'cpu\.json'"):
        table.filled("<!-- results: cpu.json -->\n<!-- end of results -->", [], {})


def test_the_page_has_the_promises_of_the_suites_and_the_stored_figures() -> None:
    suites = runs.find()
    text = table.PAGE.read_text()
    assert table.filled(text, suites, runs.load(runs.RESULTS)) == text, "run `make report`"
    for suite in suites:
        for promise in suite.promises:
            assert f" | {promise.text} | " in text, (suite.name, promise.name)


def test_suites_are_found_and_promises_that_cannot_be_told_apart_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tests.reliability, "__path__", [str(tmp_path)])
    source = SOURCE.format(body="return {}")
    package = tmp_path / "second_found"
    package.mkdir()
    (package / "__init__.py").write_text(source)
    (tmp_path / "first_found.py").write_text(source)
    (tmp_path / "no_suite.py").write_text("PROMISES = ()")
    (tmp_path / "test_first_found.py").write_text("raise AssertionError")
    assert runs.find() == [runs.Suite(n, (KEPT, SLOPE)) for n in ("first_found", "second_found")]
    (tmp_path / "no_place.py").write_text(source.replace("nightly", "nowhere"))
    with pytest.raises(ValueError, match="where must be one of"):
        runs.find()
    (tmp_path / "no_name.py").write_text(source.replace("slope", "kept"))
    with pytest.raises(ValueError, match="names of promises must differ"):
        runs.find()


def test_stored_figures_are_of_this_command() -> None:
    for outcome in runs.load(runs.RESULTS).values():
        assert json.dumps(outcome["machine"])  # plain data
        assert outcome["failure"] is None
        assert outcome["scale"] > 0
