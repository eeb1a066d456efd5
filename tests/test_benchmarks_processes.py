"""What the benchmark of processes counts as a turn, a wait and a checkpoint."""

from multiprocessing import Pipe

import pytest

from benchmarks import tables
from benchmarks.model import processes
from benchmarks.timing import Turn
from bitdance.distributed import World
from bitdance.training.autoencoder import AutoencoderTask
from bitdance.training.log import Log
from tests.model.helpers.processes import run_processes
from tests.model.helpers.tiny_images import write_data_set
from tests.model.training.test_processes import autoencoder_run


def test_turns_are_compared_in_pairs():
    """The slower of two processes counts."""
    turns = [
        [[Turn(4.0, 2.0)], [Turn(2.0, 1.0), Turn(1.0, 1.0)]],
        [[Turn(6.0, 2.0)], [Turn(2.0, 1.0), Turn(2.0, 0.5)]],
        [[Turn(9.0, 2.0)], [Turn(3.0, 0.5), Turn(9.0, 1.0)]],
    ]
    row = processes._speedup("training", "training", turns, 2)
    assert row["ratio"] == (2.0, 1.0, 3.0)
    assert (row["ms"], row["of_ms"], row["processor_ratio"]) == (1000, 3000, 2)
    part = processes._part("saving", "saving", 0.02, 0.5)
    table = tables.processes({"processes": [row, part]})
    assert table.splitlines()[2:] == [
        "| training: two processes against one | 1000 | 3000 | 2.00x (1.00-3.00) | 2.00x | "
        "at least 1.7x |",
        "| saving | 20.0 | 500 | 4.0% |  | less than 5% |",
    ]


def _measured(rank, data, folder):
    Log.plot = lambda *_: None  # it takes a second
    ours, theirs = Pipe()
    for _ in range(3):
        ours.send(None)
    with World.from_env() as world:
        config = autoencoder_run(data, save_every=2, steps=20)
        task = AutoencoderTask(config)
        run = processes._Measured(task, config, folder, world=world, progress=False)
        run.measure(processes._Turns(theirs), 3, 9)
    turns = [ours.recv() for _ in range(3)]
    return [turn.wall for turn in turns], run.seconds, run.waits, run.saves


@pytest.mark.slow
def test_what_a_run_measures(tmp_path):
    for turns, seconds, waits, saves in run_processes(
        _measured, write_data_set(tmp_path), tmp_path / "run"
    ):
        assert (len(seconds), len(waits), len(saves)) == (9, 9, 3)  # of steps 2, 4, 6, 8 and 9
        assert all(wait < step for wait, step in zip(waits, seconds, strict=True))
        assert all(held_up > 0 and whole > 0 for held_up, whole in saves)
        assert all(turn > sum(seconds[3 * i : 3 * i + 3]) for i, turn in enumerate(turns))
