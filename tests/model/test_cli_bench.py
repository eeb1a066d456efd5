import pytest

from bitdance import cli_bench
from bitdance.cli import main
from tests.model.tiny import tiny_pipeline


def test_bench_prints_a_table_and_draws_it(tmp_path, capsys):
    tiny_pipeline().save_pretrained(tmp_path / "model")
    options = ["--n", "2", "--steps", "1", "--rounds", "2", "--out", str(tmp_path / "speed.svg")]
    assert main(["bench", "--model", str(tmp_path / "model"), *options]) == 0
    printed = capsys.readouterr().out
    for what in ("generate, 1 image", "generate, 2 images", "decode, 2 images", "pack_signs"):
        assert f"\n{what} " in printed
    assert "tokens" in printed
    assert "<svg" in (tmp_path / "speed.svg").read_text()


def test_a_rate_is_that_of_the_median_round():
    speed = cli_bench.Speed("decode", 8.0, "images", (4.0, 2.0, 1.0))
    assert speed.rate == 4.0
    (line,) = cli_bench.table([speed]).splitlines()[1:]
    assert line.split() == ["decode", "2000.00", "1000.00", "4.0", "images"]


def test_bench_says_what_a_plot_needs(monkeypatch, tmp_path):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    with pytest.raises(RuntimeError, match=r"pip install 'bitdance\[bench\]'"):
        cli_bench.draw([], tmp_path / "x.svg")
