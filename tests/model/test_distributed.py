"""The world of processes: two on gloo, and what they say when one of them is missing."""

import os
import time

import pytest
import torch
import torch.distributed as dist

from bitdance.distributed import World, WorldError
from tests.model.helpers.processes import Failure, Processes, run_processes


@pytest.fixture(autouse=True)
def _alone(monkeypatch):
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "BITDANCE_TIMEOUT"):
        monkeypatch.delenv(name, raising=False)


def test_a_world_of_one_touches_no_process_group():
    with World.from_env() as world:
        assert (world.rank, world.size, world.group, world.is_main) == (0, 1, None, True)
        value = torch.ones(3)
        assert world.reduce_mean(value) is world.reduce_sum(value) is value
        assert world.any(True)
        assert not world.any(False)
        assert world.broadcast({"a": 1}) == {"a": 1}
        assert world.gather(5) == [5]
        assert list(world.share(5)) == [0, 1, 2, 3, 4]
        world.barrier()
        world.check_equal("it", 1)
        with pytest.raises(KeyError), world.together():
            raise KeyError
    assert not dist.is_initialized()


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("WORLD_SIZE", "two", "WORLD_SIZE must be an integer of at least 1, got 'two'"),
        ("WORLD_SIZE", "0", "WORLD_SIZE must be an integer of at least 1, got '0'"),
        ("RANK", "2", "RANK must be 0 to 1, got '2'"),
        ("RANK", "", "RANK must be 0 to 1, got ''"),
        ("LOCAL_RANK", "-1", "LOCAL_RANK must be an integer of at least 0, got '-1'"),
        ("BITDANCE_TIMEOUT", "soon", "BITDANCE_TIMEOUT must be a number of seconds, got 'soon'"),
        ("MASTER_ADDR", "", "MASTER_ADDR must be set"),
    ],
)
def test_an_environment_that_contradicts_itself(monkeypatch, name, value, expected):
    for key, good in (("WORLD_SIZE", "2"), ("RANK", "0"), (name, value)):
        monkeypatch.setenv(key, good)
    with pytest.raises(ValueError, match=expected):
        World.from_env()
    assert not dist.is_initialized()


def _exchange(rank):
    with World.from_env() as world:
        assert (world.rank, world.size, world.local_rank) == (rank, 2, rank)
        value = torch.tensor([1.0, 2.0]) * (rank + 1)
        found = {
            "sum": world.reduce_sum(value).tolist(),
            "mean": world.reduce_mean(value).tolist(),
            "own": value.tolist(),
            "any": (world.any(rank == 1), world.any(False)),
            "max": world.max(7 - rank),
            "gather": world.gather(f"of {rank}"),
            "broadcast": world.broadcast(rank, source=1),
            "share": list(world.share(5)),
        }
        world.barrier()
        try:
            with world.together():
                if rank == 0:
                    raise ValueError("no room")
        except (ValueError, WorldError) as error:
            found["together"] = f"{type(error).__name__}: {error}"
        try:
            world.check_equal("optim", {"lr": 1 + rank, "steps": 3})
        except ValueError as error:
            found["unequal"] = str(error)
    assert not dist.is_initialized()
    world.close()
    return found


def test_two_processes_exchange():
    first, second = run_processes(_exchange)
    for found in (first, second):
        assert found["sum"] == [3, 6]
        assert found["mean"] == [1.5, 3]
        assert found["any"] == (True, False)
        assert found["max"] == 7
        assert found["gather"] == ["of 0", "of 1"]
        assert found["broadcast"] == 1
        assert found["unequal"].startswith("optim must be equal in all processes, got ")
        assert "1" in found["unequal"]
        assert "in rank 0 and" in found["unequal"]
    assert (first["own"], second["own"]) == ([1, 2], [2, 4])
    assert (first["share"], second["share"]) == ([0, 1], [2, 3, 4])
    assert first["together"] == "ValueError: no room"
    assert second["together"] == "WorldError: rank 0: no room"


def _worlds(rank, count):
    """World after world, with an error in every other one; process 1 is early in each."""
    errors = []
    for i in range(count):
        try:
            with World.from_env() as world:
                assert world.gather(i) == [i, i]
                assert world.aside().gather(rank) == [0, 1]
                if i % 2 and rank == 0:
                    raise OSError(f"error {i}")
                world.barrier()
                time.sleep(0.2 if rank == 0 else 0)
        except (OSError, WorldError) as error:
            errors.append(error)
    assert not dist.is_initialized()
    return [str(error) for error in errors]


def test_a_process_has_one_world_after_the_other():
    first, second = run_processes(_worlds, 8, timeout=15)
    assert first == ["error 1", "error 3", "error 5", "error 7"]
    assert second == [f"rank 0: {error}" for error in first]


def _one_fails(rank, how):
    with World.from_env() as world:
        if rank == 1:
            if how == "killed":
                os._exit(9)
            raise OSError("the disk of rank 1 is full")
        world.reduce_sum(torch.ones(4))


@pytest.mark.parametrize("how", ["killed", "error"])
def test_the_others_end_when_one_has_failed(how):
    with Processes(_one_fails, how) as processes:
        first, second = processes.results(timeout=60)  # before their own 120 seconds
    assert isinstance(first, Failure)
    assert first.kind == "WorldError"
    if how == "killed":
        assert second is None
        assert first.message.startswith("rank 0 of 2: another process ended or did not answer")
    else:
        assert second.message == "the disk of rank 1 is full"
        assert first.message == "rank 1: the disk of rank 1 is full"


def _join(rank):
    World.from_env().close()


def test_a_process_that_does_not_come():
    with Processes(_join, start=[0], timeout=1) as processes:
        (found,) = processes.results(timeout=60)
    assert found.kind == "WorldError"
    assert "another process ended or did not answer within 1 s (start: " in found.message
