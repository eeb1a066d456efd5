"""Two processes of a run, of which one has a fault: all end, one says why, and a resume works."""

import contextlib
import errno
import io
import os
import pathlib
import resource
import shutil
import signal
import time

import pytest
import tomli_w

from bitdance.cli.main import main
from bitdance.training import checkpoint, sharded_checkpoint
from bitdance.training.config import run_to_dict
from bitdance.training.log import Log
from tests.model.helpers import kills
from tests.model.helpers.processes import Processes
from tests.model.helpers.tiny_images import write_data_set
from tests.model.training.test_processes import _assert_equal_bits, _state, autoencoder_run

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data_set(tmp_path_factory.mktemp("idx"))


@pytest.fixture
def command(data, tmp_path):
    """Makes the arguments of a run with changed settings."""
    path = tmp_path / "config.toml"
    path.write_text(tomli_w.dumps(run_to_dict(autoencoder_run(data, save_every=2, warmup=1))))

    def make(*more):
        run = ["train", "autoencoder", str(path), "--out", str(tmp_path / "run"), "--quiet"]
        return [*run, *more]

    return make


def _full_disk():
    """Files of this process may have 100 kB; what a write beyond raises is no signal in Python."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))


def _no_renames():
    rename = pathlib.Path.rename

    def fail(path, target):
        if path.suffix == ".tmp":
            raise OSError(errno.EIO, "Input/output error", str(path))
        return rename(path, target)

    pathlib.Path.rename = fail


def _main(rank, commands, faults=None, delays=()):
    """Run commands; for each the status and what was printed to stderr."""
    Log.plot = lambda *_: None  # it takes a second
    results = []
    if delays:
        time.sleep(delays[rank])
    for i, arguments in enumerate(commands):
        if faults and i == len(commands) - 1 and faults.get(rank):
            faults[rank]()
        with contextlib.redirect_stderr(io.StringIO()) as errors:
            status = main(arguments[rank] if isinstance(arguments, tuple) else arguments)
        results.append((status, errors.getvalue()))
    return results


def ended(commands, **options):
    """(status, errors) of both processes, of the last of the commands."""
    faults, delays = options.pop("faults", None), options.pop("delays", ())
    with Processes(_main, commands, faults, delays, **options) as processes:
        return [results[-1] for results in processes.results()]


def one_error(results):
    """The only line that all processes have printed together; all have failed."""
    assert [status for status, _ in results] == [1] * len(results), results
    (line,) = "".join(errors for _, errors in results).splitlines()
    return line


def test_a_disk_that_is_full_for_rank_0_alone(command, tmp_path):
    """Also, the second process comes late, which is no fault."""
    begin = command("--stop-at", "2")
    error = one_error(ended([begin, command()], faults={0: _full_disk}, delays=(0, 1)))
    assert error.startswith("bitdance train: error: ")
    assert "File too large" in error or "cannot write" in error
    assert checkpoint.newest(tmp_path / "run")["step"] == 2
    assert [path.name for path in tmp_path.glob("run/checkpoint*")] == ["checkpoint-00000002"]
    assert not list(tmp_path.glob("run/.lock"))
    assert [status for status, _ in ended([command("--stop-at", "3")])] == [0, 0]
    assert checkpoint.newest(tmp_path / "run")["step"] == 3


def test_a_disk_that_does_not_rename(command, tmp_path):
    begin = command("--stop-at", "2")
    error = one_error(ended([begin, command()], faults={0: _no_renames}))
    assert "Input/output error" in error
    assert [path.name for path in tmp_path.glob("run/checkpoint*")] == ["checkpoint-00000002"]
    assert checkpoint.newest(tmp_path / "run")["step"] == 2


def test_unequal_configurations_and_too_few_items(command, tmp_path):
    unequal = (command("--set", "optim.lr=1e-3"), command())
    error = one_error(ended([unequal]))
    assert "the configuration must be equal in all processes, got " in error
    assert "0.001" in error
    many = command("--set", "optim.batch_size=64")
    assert "optim.batch_size must be at most the data's 60 items, got 64" in one_error(
        ended([many])
    )
    odd = command("--set", "optim.batch_size=9")
    assert "batch_size must be a multiple of 2 (2 processes, accumulate = 1), got 9" in one_error(
        ended([odd])
    )
    assert not (tmp_path / "run").exists()


def test_a_missing_or_altered_shard(command, tmp_path):
    begin = command("--stop-at", "4")
    assert [status for status, _ in ended([begin])] == [0, 0]
    run = tmp_path / "run"
    (shard,) = run.glob("checkpoint-00000004/__1_*")
    whole = shard.read_bytes()
    shard.unlink()
    with pytest.warns(UserWarning, match=r"has no __1_0\.distcp; trying the one before"):
        assert checkpoint.newest(run)["step"] == 2
    shard.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.warns(UserWarning, match="does not have the checksum in complete"):
        assert checkpoint.newest(run)["step"] == 2
    (run / "checkpoint-00000004" / "complete").unlink()
    with pytest.warns(UserWarning, match="is not complete"):
        assert checkpoint.newest(run)["step"] == 2
    assert [status for status, _ in ended([begin])] == [0, 0]  # written again
    assert checkpoint.newest(run)["step"] == 4
    description = run / "checkpoint-00000004" / ".metadata"
    for name in ("os system", "torch load", "torch.serialization load"):
        description.write_bytes(f"c{name.replace(' ', chr(10))}\n(S'exit 1'\ntR.".encode())
        with pytest.raises(ValueError, match=rf"objects \({name.replace(' ', '.')}\)"):
            sharded_checkpoint._check_metadata(description)


def wait_for_lines(path, count, processes):
    end = time.monotonic() + 90
    while not path.exists() or path.read_text().count("\n") < count:
        assert time.monotonic() < end
        assert all(process.is_alive() for process in processes.processes.values())
        time.sleep(0.01)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_to_one_process_stops_all_after_the_same_step(command, tmp_path, number, status):
    endless = command("--set", "optim.steps=100000", "optim.save_every=100000")
    with Processes(_main, [endless]) as processes:
        wait_for_lines(tmp_path / "run" / "log.csv", 3, processes)
        os.kill(processes.processes[1].pid, number)
        (first,), (second,) = processes.results()
    state = checkpoint.newest(tmp_path / "run")
    assert first == (status, f"stopped after step {state['step']}: {tmp_path / 'run'}\n")
    assert second == (status, "")
    last = (tmp_path / "run" / "log.csv").read_text().splitlines()[-1]
    assert int(last.split(",")[0]) == state["step"]


@pytest.mark.timeout(120 + 30 * kills.COUNT)
@pytest.mark.nightly
def test_killed_at_random_moments(command, tmp_path):
    """Each kill of one process ends the other soon, and changes nothing in the end."""
    settings = ("--set", f"optim.steps={kills.STEPS}", "optim.save_every=2")
    whole = command(*settings)
    whole[4] = str(tmp_path / "whole")
    assert [status for status, _ in ended([whole])] == [0, 0]
    run = tmp_path / "run"

    def assert_that_nothing_has_changed():
        _assert_equal_bits(_state(run), _state(tmp_path / "whole"))
        assert not list(run.glob("*.tmp"))
        assert not (run / ".lock").exists()

    killer, count, step = kills.Killer(run, seed=1), 0, 0
    while count < kills.COUNT:
        # Where one never comes, the other waits so long; a start takes a second.
        with Processes(_main, [command(*settings)], timeout=15) as processes:
            victim, moment = killer.kill(list(processes.processes.values()))
            results = processes.results(timeout=60)
        left = results[1 - victim]
        if results[victim] is not None or left[0][0] == 0:  # it ended before
            assert_that_nothing_has_changed()
            shutil.rmtree(run)
            step = 0
            continue
        count += 1
        message = f"rank {1 - victim} of 2: another process ended or did not answer"
        assert one_error(left).startswith(f"bitdance train: error: {message}"), moment
        earlier, state = step, checkpoint.newest(run) if run.exists() else None
        step = 0 if state is None else state["step"]
        assert step >= earlier
    assert [status for status, _ in ended([command(*settings)])] == [0, 0]
    assert_that_nothing_has_changed()
