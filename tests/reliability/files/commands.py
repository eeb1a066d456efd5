"""Commands that SIGTERM and Ctrl-C stop at random moments, and that are started again."""

from __future__ import annotations

import io
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tomli_w
from PIL import Image

from bitdance.cli import run
from bitdance.data.packed_dataset import PackedDataset
from bitdance.io.npz import ImageArray
from bitdance.io.weights import write_tensors
from bitdance.training import checkpoint
from bitdance.training.config import parse_run, run_to_dict
from bitdance.training.log import Log
from tests.model.helpers.tiny_images import CLASSES, write_data_set
from tests.reliability.files.box import forked, scratch
from tests.reliability.files.formats import digest
from tests.reliability.files.formats_models import autoencoder, pipeline
from tests.reliability.files.writer import listing

__all__ = ["stop_all"]

_STATUS = {
    # Not handled: the shell shows 143 for the first. A run saves a checkpoint before it ends.
    signal.SIGTERM: (-signal.SIGTERM, 143),
    signal.SIGINT: (130,),
}


@dataclass(frozen=True)
class _Command:
    """A command that writes to a folder ``out``.

    Attributes:
        arguments: what is typed.
        result: what its files hold.
        goes_on: whether it continues where it was stopped; others are given an empty folder.
    """

    arguments: Sequence[str]
    result: Callable[[Path], str]
    goes_on: bool = False


def stop_all(count: int, seed: int) -> int:
    """Stop commands in turn; returns how often.

    Args:
        count: number of signals.
        seed: seed of the moments.

    Raises:
        AssertionError: a status is another than that of the documentation, or a command that is
            started again has another result.
    """
    draws = random.Random(seed)
    with scratch() as place:
        commands = _commands(place)
        whole: dict[str, tuple[str, frozenset[str], float]] = {}
        for i in range(count):
            name = list(commands)[i % len(commands)]
            if name not in whole:
                whole[name] = _undisturbed(place / "whole", commands[name])
            number = (signal.SIGTERM, signal.SIGINT)[i // len(commands) % 2]
            result, names, seconds = whole[name]
            moment = draws.uniform(0, seconds)
            what = f"{name}, {number.name} after {moment:.3f} s of {seconds:.3f}"
            out = place / "out"
            shutil.rmtree(out, ignore_errors=True)
            status = _run(commands[name], out, (number, moment))
            assert status in (0, *_STATUS[number]), f"{what}: status {status}"
            if not commands[name].goes_on and status:
                left = [path for path in out.rglob("*") if path.is_file() and "." in path.name[1:]]
                assert all(_is_whole(path) for path in left), f"{what}: {left}"
                shutil.rmtree(out, ignore_errors=True)
            again = status if status == 0 else _run(commands[name], out)
            assert again == 0, f"{what}: started again, it ends with {again}"
            assert commands[name].result(out) == result, f"{what}: another result"
            left_over = listing(out) ^ names
            assert not left_over, f"{what}: {sorted(left_over)} is left, or missing"
    return count


def _undisturbed(out: Path, command: _Command) -> tuple[str, frozenset[str], float]:
    """Result, names and seconds of a command."""
    shutil.rmtree(out, ignore_errors=True)
    start = time.perf_counter()
    status = _run(command, out)
    seconds = time.perf_counter() - start
    assert status == 0, f"{command.arguments} ends with {status}"
    return command.result(out), listing(out), seconds


def _run(
    command: _Command, out: Path, stop: tuple[signal.Signals, float] | None = None
) -> int:  # fmt: skip
    """The status of a command that a signal stops after some seconds."""
    begun, begins = os.pipe()
    pid = forked(lambda: _main([*command.arguments, str(out)], begins))
    os.close(begins)
    os.read(begun, 1)
    os.close(begun)
    if stop is not None:
        time.sleep(stop[1])
        os.kill(pid, stop[0])
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status)


def _main(arguments: Sequence[str], begins: int) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    sys.argv = ["bitdance", *arguments]
    Log.plot = lambda *_: None  # type: ignore[method-assign]  # it takes a second
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        os.write(begins, b"1")
        os.close(begins)
        status = run()
    os._exit(status)


def _commands(place: Path) -> dict[str, _Command]:
    model, data, config = str(place / "model"), str(place / "data"), place / "run.toml"
    (place / "data").mkdir()
    write_data_set(place / "data")
    pipeline().save_pretrained(model)
    write_tensors(place / "ae.safetensors", autoencoder().state_dict())
    content = {
        "data": {"path": data, "size": 8, "classes": list(CLASSES)},
        "autoencoder": {"ch": 32, "ch_mult": [1, 1], "num_res_blocks": 1, "z_channels": 8},
        "optim": {"steps": 12, "batch_size": 8, "warmup": 2, "log_every": 3, "save_every": 4,
                  "sample_every": 100, "keep": 1},
    }  # fmt: skip
    config.write_text(tomli_w.dumps(run_to_dict(parse_run(content))), encoding="utf-8")
    tokenizer = str(place / "ae.safetensors")
    return {
        "generate": _Command(
            ["generate", "--model", model, "--class", "all", "--num-images", "8",
             "--num-inference-steps", "4", "--quiet", "--out"], _pictures,
        ),
        "sample": _Command(
            ["sample", "--model", model, "--num-per-class", "12", "--batch-size", "4",
             "--num-inference-steps", "4", "--quiet", "--out"], _npz, goes_on=True,
        ),
        "tokenize": _Command(
            ["tokenize", data, "--autoencoder", tokenizer, "--size", "8", "--quiet", "--out"],
            _packed,
        ),
        "export": _Command(["export", "--model", model, "--out"], _files),
        "train": _Command(
            ["train", "autoencoder", str(config), "--quiet", "--out"], _run_folder, goes_on=True
        ),
    }  # fmt: skip


def _is_whole(path: Path) -> bool:
    """Whether a picture or a temporary file is what its name says."""
    if path.suffix != ".png" or ".tmp" in str(path):
        return True
    with Image.open(path) as image:
        image.load()
    return True


def _pictures(out: Path) -> str:
    return digest([np.asarray(Image.open(path)) for path in sorted(out.glob("*.png"))])


def _npz(out: Path) -> str:
    with ImageArray(out / "samples.npz") as images:
        return digest(images.read(0, len(images)))


def _packed(out: Path) -> str:
    data = PackedDataset(out)
    return digest(*data.take(np.arange(len(data))))


def _files(out: Path) -> str:
    return digest({path.name: path.read_bytes() for path in out.iterdir()})


def _run_folder(out: Path) -> str:
    state = checkpoint.newest(out)
    assert state is not None
    return digest(state["module"], state["average"], state["step"])
