"""What a second process brings to training and sampling, and what holds up a step.

One process and a world of two, of one thread each, take turns at the work of the bundled model: the
steps of its recipe, and samples. Then the two save checkpoints beside their steps, and train an
autoencoder on JPEG files. Two processors must be free: processor time tells what each process
computes, and not how long it waits for the other.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import socket
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import torch
from PIL import Image

from benchmarks import machine
from benchmarks.timing import Turn
from bitdance import BitDancePipeline
from bitdance.data.packed_writer import PackedWriter
from bitdance.distributed import World
from bitdance.evaluation.sample import sample_classes
from bitdance.training.autoencoder import AutoencoderTask
from bitdance.training.class_conditional import ClassConditionalTask
from bitdance.training.config import AutoencoderRun, ClassConditionalRun, parse_run, read_config
from bitdance.training.trainer import Trainer

_SIZE = 64  # of the JPEG files' crops
_TARGETS = {"training": 1.7, "sampling": 1.9, "saving": 0.05}


class Amounts(NamedTuple):
    """How much is measured.

    Attributes:
        turns: turns of one process and of two.
        steps: training steps of a turn.
        samples: images of a turn.
        saves: checkpoints, after the first one.
        interval: steps from one to the next.
        jpeg_steps: training steps on JPEG files.
    """

    turns: int = 6
    steps: int = 3
    samples: int = 256
    saves: int = 4
    interval: int = 6
    jpeg_steps: int = 30


class _Turns:
    """Work that begins when the parent says so, and that it hears of."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe

    @contextlib.contextmanager
    def one(self) -> Iterator[None]:
        """Inside is a turn."""
        self._pipe.recv()
        wall, cpu = time.perf_counter(), time.process_time()
        yield
        self._pipe.send(Turn(time.perf_counter() - wall, time.process_time() - cpu))


class _Measured(Trainer):
    """A trainer that takes steps in turns, and measures what holds up its steps."""

    turns: _Turns | None = None
    of_turn = 1

    def measure(self, turns: _Turns | None, of_turn: int, stop_at: int) -> None:
        """Train to a step; turns have so many steps."""
        self.turns, self.of_turn = turns, of_turn
        self.seconds: list[float] = []
        self.waits: list[float] = []
        self._saves: list[dict[str, float]] = []
        self._stack = contextlib.ExitStack()
        self.run(stop_at)

    def _one_step(self, batches: Any) -> torch.Tensor:
        if self.turns is not None and len(self.seconds) % self.of_turn == 0:
            self._stack.enter_context(self.turns.one())
        get, begin = batches.get, time.perf_counter()

        def timed(index: int) -> Any:
            asked = time.perf_counter()
            batch = get(index)
            self.waits.append(time.perf_counter() - asked)
            return batch

        with mock.patch.object(batches, "get", timed):
            values = super()._one_step(batches)
        self.seconds.append(time.perf_counter() - begin)
        if len(self.seconds) % self.of_turn == 0:
            self._stack.close()
        return values

    def _save(self) -> None:
        begin = time.perf_counter()
        super()._save()
        if self._writer is not None and self._writer._pending is not None:
            save = {"held up": time.perf_counter() - begin}
            self._saves.append(save)
            self._writer._pending.add_done_callback(
                lambda _: save.update(whole=time.perf_counter() - begin)
            )

    def _finish_checkpoint(self) -> None:
        begin = time.perf_counter()
        super()._finish_checkpoint()
        if self._written:
            self._saves[-1]["held up"] += time.perf_counter() - begin

    @property
    def saves(self) -> list[tuple[float, float]]:
        """Seconds that steps were held up by checkpoints, and that these took; without the first.

        The last one is no part of them either: the run waits for its end.
        """
        return [(save["held up"], save["whole"]) for save in self._saves[1:-1]]


def _recipe(folder: Path, save_every: int) -> ClassConditionalRun:
    given = {"data.path": str(folder / "codes"), "autoencoder_path": "fashion"}
    steps = ["optim.warmup=1", f"optim.save_every={save_every}", "optim.sample_every=1000000"]
    config = read_config(machine.ROOT / "recipes/fashion/model.toml", steps, given)
    assert isinstance(config, ClassConditionalRun)
    return config


def _jpeg_run(folder: Path) -> AutoencoderRun:
    config = parse_run({
        "data": {"path": str(folder / "pictures"), "size": _SIZE, "min_crop": 0.8, "flip": True},
        "autoencoder": {"ch": 32, "ch_mult": [1, 1, 1, 1], "num_res_blocks": 1},
        "optim": {"steps": 1000, "warmup": 1, "batch_size": 16, "save_every": 1000,
                  "sample_every": 1000},
    })  # fmt: skip
    assert isinstance(config, AutoencoderRun)
    return config


def _prepare(folder: Path) -> None:
    """Codes of the bundled model's kind, and JPEG files."""
    draws = np.random.default_rng(0)
    with PackedWriter(folder / "codes", tokens=64, channels=32) as writer:
        codes = draws.integers(0, 256, (4096, 64, 4), dtype=np.uint8)
        writer.write(codes, np.arange(len(codes)) % 10)
    for i in range(256):
        coarse = Image.fromarray(draws.integers(0, 256, (12, 16, 3), dtype=np.uint8))
        place = folder / f"pictures/class{i % 4}/{i}.jpg"
        place.parent.mkdir(parents=True, exist_ok=True)
        coarse.resize((500, 375), Image.Resampling.BICUBIC).save(place, quality=90)


def _work(
    pipe: Connection, rank: int, size: int, port: int, folder: Path, amounts: Amounts
) -> None:
    """All that a process does; what it finds goes to the parent."""
    torch.set_num_threads(1)
    names = {"RANK": rank, "WORLD_SIZE": size, "LOCAL_RANK": rank, "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in names.items()})
    os.environ["MASTER_ADDR"] = "127.0.0.1"
    turns, runs = _Turns(pipe), folder / f"of-{size}"
    runs.mkdir(exist_ok=True)
    with World.from_env() as world:
        config = _recipe(folder, save_every=1_000_000)
        trained = _Measured(
            ClassConditionalTask(config), config, runs / "model", world=world, progress=False
        )
        last = (1 + amounts.turns) * amounts.steps
        trained.measure(turns, amounts.steps, last)
        found: dict[str, Any] = {"codes": _share(trained, amounts.steps)}
        pipeline = BitDancePipeline.from_pretrained("fashion")
        labels = [i % 10 for i in range(amounts.samples)]
        for turn in range(1 + amounts.turns):
            with turns.one():
                sample_classes(
                    pipeline, labels, runs / f"samples-{turn}", content="packed", batch_size=32,
                    world=world, progress=False,
                )  # fmt: skip
        if size > 1:
            found |= _beside_steps(folder, runs, world, last, amounts)
        pipe.send(found)


def _beside_steps(
    folder: Path, runs: Path, world: World, step: int, amounts: Amounts
) -> dict[str, Any]:
    """Saving of a run that goes on from `step`, and training on JPEG files."""
    config = _recipe(folder, save_every=amounts.interval)
    saving = _Measured(
        ClassConditionalTask(config), config, runs / "model", world=world, progress=False
    )
    saving.measure(None, 1, step + (2 + amounts.saves) * amounts.interval)
    jpeg = _jpeg_run(folder)
    reading = _Measured(
        AutoencoderTask(jpeg), jpeg, runs / "autoencoder", world=world, progress=False
    )
    reading.measure(None, 1, amounts.jpeg_steps)
    return {"saves": saving.saves, "jpeg": _share(reading, 5)}


def _share(run: _Measured, skipped: int) -> tuple[float, float]:
    """Mean seconds that steps wait for their data, and that they take; without the first ones."""
    return statistics.mean(run.waits[skipped:]), statistics.mean(run.seconds[skipped:])


def measure(amounts: Amounts | None = None) -> dict[str, Any]:
    """Rows of what was compared."""
    amounts = amounts or Amounts()
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent)
        _prepare(folder)
        with _processes(folder, amounts) as groups:
            training = _take_turns(groups, amounts.turns)
            sampling = _take_turns(groups, amounts.turns)
            _, (first, second) = ([pipe.recv() for pipe in group] for group in groups)
    images = _recipe(folder, 1).optim.batch_size
    rows = [
        _speedup(f"training, a step of {images} images", "training", training, amounts.steps),
        _speedup(f"sampling, {amounts.samples} images", "sampling", sampling, 1),
    ]
    saves = [max(pair) for pair in zip(first["saves"], second["saves"], strict=True)]
    held_up, whole = (statistics.median(values) for values in zip(*saves, strict=True))
    rows.append(_part("steps held up by a checkpoint, of its time", "saving", held_up, whole))
    for what, key in (("packed codes", "codes"), ("JPEG files", "jpeg")):
        wait, step = max(first[key], second[key])
        rows.append(_part(f"waiting for {what}, of a step", "", wait, step))
    nothing: dict[str, Any] = {"rows": [], "images": [], "limits": {}}  # what other results have
    return {**nothing, "processes": rows}


Groups = Sequence[Sequence[Connection]]


@contextlib.contextmanager
def _processes(folder: Path, amounts: Amounts) -> Iterator[Groups]:
    """Pipes to one process, and to two of one world."""
    context = multiprocessing.get_context("spawn")
    groups: list[list[Connection]] = []
    processes: list[SpawnProcess] = []
    try:
        for size in (1, 2):
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                port = probe.getsockname()[1]
            groups.append([])
            for rank in range(size):
                ours, theirs = context.Pipe()
                process = context.Process(
                    target=_work, args=(theirs, rank, size, port, folder, amounts), daemon=True
                )
                process.start()
                theirs.close()
                groups[-1].append(ours)
                processes.append(process)
        yield groups
        for process in processes:
            process.join()
    finally:
        for process in processes:
            process.kill()
            process.join()


def _take_turns(groups: Groups, turns: int) -> list[list[list[Turn]]]:
    """For each turn but the first, of each group the times of its processes."""
    found: list[list[list[Turn]]] = []
    for _ in range(1 + turns):
        found.append([])
        for pipes in groups:
            for pipe in pipes:
                pipe.send(None)
            found[-1].append([pipe.recv() for pipe in pipes])
    return found[1:]


def _speedup(
    what: str, target: str, turns: Sequence[Sequence[Sequence[Turn]]], count: int
) -> dict[str, Any]:
    def compared(seconds: Callable[[Turn], float]) -> dict[str, Any]:
        pairs = [[max(map(seconds, group)) / count for group in turn] for turn in turns]
        ratios = sorted(one / two for one, two in pairs)
        one, two = (statistics.median(times) for times in zip(*pairs, strict=True))
        ratio = statistics.median(ratios), ratios[0], ratios[-1]
        return {"ms": 1e3 * two, "of_ms": 1e3 * one, "ratio": ratio}

    found = {"what": f"{what}: two processes against one", "at_least": _TARGETS[target]}
    processor = compared(lambda turn: turn.cpu)["ratio"][0]
    return {**found, **compared(lambda turn: turn.wall), "processor_ratio": processor}


def _part(what: str, target: str, part: float, whole: float) -> dict[str, Any]:
    limit = {"less_than": _TARGETS[target]} if target else {}
    return {"what": what, "ms": 1e3 * part, "of_ms": 1e3 * whole, "share": part / whole, **limit}
