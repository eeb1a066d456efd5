"""Progress bars on terminals and in logs."""

import io
import re
import sys
from pathlib import Path

import pytest

import bitdance
from bitdance.io.progress import progress_bar
from tests.model.helpers.terminal import Terminal


@pytest.fixture
def clock(monkeypatch):
    """A clock that each update moves by ten seconds."""
    seconds = [1000.0]
    monkeypatch.setattr("tqdm.std.time", lambda: seconds[0])

    def advance(bar, count=1):
        for _ in range(count):
            seconds[0] += 10
            bar.update()

    return advance


def test_a_terminal_has_a_bar_in_place(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    assert list(progress_bar(range(3), desc="title")) == [0, 1, 2]
    text = sys.stderr.getvalue()
    assert text.startswith("\rtitle:   0%|")
    assert "3/3" in text


def test_a_log_has_a_line_now_and_then(monkeypatch, clock):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with progress_bar(total=8, desc="title", unit="step") as bar:
        clock(bar, 7)
        bar.set_postfix_str("loss 1", refresh=False)
        clock(bar)
    text = sys.stderr.getvalue()
    assert "\r" not in text
    lines = text.splitlines()
    assert [line.split(" [")[0] for line in lines] == ["title: 3/8", "title: 6/8", "title: 8/8"]
    assert lines[0].startswith("title: 3/8 [00:30<00:50, ")
    assert lines[2].endswith(", loss 1]")


def test_a_log_without_a_title_or_a_total(monkeypatch, clock):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with progress_bar(unit="image") as bar:
        clock(bar, 4)
    assert [line.split(" [")[0] for line in sys.stderr.getvalue().splitlines()] == ["3/?", "4/?"]


def test_a_short_run_leaves_no_line_in_a_log(monkeypatch, clock):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with progress_bar(total=2) as bar:
        clock(bar, 2)
    assert sys.stderr.getvalue() == ""


@pytest.mark.parametrize("stream", [Terminal(), io.StringIO(), None], ids=["tty", "log", "none"])
def test_a_hidden_bar_writes_nothing(monkeypatch, clock, stream):
    monkeypatch.setattr(sys, "stderr", stream)
    with progress_bar(total=9, disable=True) as bar:
        clock(bar, 9)
    assert stream is None or stream.getvalue() == ""


def test_without_a_stderr_there_is_no_bar(monkeypatch):
    monkeypatch.setattr(sys, "stderr", None)
    assert list(progress_bar(range(3))) == [0, 1, 2]


def test_settings_of_the_caller_come_first(monkeypatch, clock):
    file = io.StringIO()
    with progress_bar(total=2, file=file) as bar:
        clock(bar)
    assert "\r" in file.getvalue()
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with progress_bar(total=2, delay=0, mininterval=5, bar_format="{n_fmt} done") as bar:
        clock(bar, 2)
    assert sys.stderr.getvalue().splitlines() == ["0 done", "1 done", "2 done", "2 done"]


def test_all_bars_are_made_in_one_place():
    root = Path(bitdance.__file__).parent
    makers = [
        str(path.relative_to(root))
        for path in sorted(root.rglob("*.py"))
        if re.search(r"^\s*(from|import) tqdm", path.read_text(encoding="utf-8"), re.MULTILINE)
    ]
    assert makers == ["io/progress.py"]
