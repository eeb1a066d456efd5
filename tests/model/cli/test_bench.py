import sys

import pytest

from bitdance.cli import bench
from bitdance.cli.main import main
from bitdance.pipelines.class_conditional import BitDancePipeline
from tests.model.helpers.tiny import tiny_pipeline


def test_bench_prints_a_table_and_draws_it(tmp_path, capsys):
    tiny_pipeline().save_pretrained(tmp_path / "model")
    options = [
        "--num-images",
        "2",
        "--num-inference-steps",
        "1",
        "--rounds",
        "2",
        "--out",
        str(tmp_path / "speed.svg"),
    ]
    assert main(["bench", "--model", str(tmp_path / "model"), *options]) == 0
    printed = capsys.readouterr().out
    for what in ("generate, 1 image", "generate, 2 images", "decode, 2 images", "pack_signs"):
        assert f"\n{what} " in printed
    assert "tokens" in printed
    assert "<svg" in (tmp_path / "speed.svg").read_text()


def test_a_rate_is_that_of_the_median_round():
    speed = bench.Speed("decode", 8.0, "images", (4.0, 2.0, 1.0))
    assert speed.rate == 4.0
    (line,) = bench.table([speed]).splitlines()[1:]
    assert line.split() == ["decode", "2000.00", "1000.00", "4.0", "images"]


def test_bench_checks_for_matplotlib_before_the_work(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    monkeypatch.setattr(
        BitDancePipeline, "from_pretrained", lambda *_, **__: pytest.fail("too late")
    )
    assert main(["bench", "--out", str(tmp_path / "x.svg")]) == 1
    assert "to draw the plot, pip install 'bitdance[bench]'" in capsys.readouterr().err
