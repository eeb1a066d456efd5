"""Training end to end on a data set of 60 tiny images, with interruptions and errors."""

import dataclasses
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tomli_w
import torch
from PIL import Image

from bitdance.cli.main import main
from bitdance.data.images import iterate_batches, open_images
from bitdance.evaluation.classifier import train_classifier
from bitdance.evaluation.distances import frechet_distance
from bitdance.io.files import CheckpointError
from bitdance.models.autoencoder.autoencoder import BinaryAutoencoder
from bitdance.pipelines.class_conditional import BitDancePipeline
from bitdance.training import checkpoint
from bitdance.training.autoencoder import AutoencoderTask
from bitdance.training.config import LossConfig, OptimConfig, parse_run, read_config, run_to_dict
from bitdance.training.draws import Draws
from bitdance.training.log import Log
from bitdance.training.trainer import Trainer
from tests.forked import READY
from tests.model.helpers import kills
from tests.model.helpers.tiny_images import CLASSES, write_data_set

ROOT = Path(__file__).parent.parent.parent.parent


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data_set(tmp_path_factory.mktemp("idx"))


def autoencoder_config(data, **optim):
    optim = {"steps": 12, "batch_size": 8, "warmup": 2, "log_every": 3, "save_every": 4,
             "sample_every": 100, **optim}  # fmt: skip
    return parse_run({
        "data": {"path": str(data), "size": 8, "classes": CLASSES, "shift": 1, "flip": True},
        "autoencoder": {"ch": 32, "ch_mult": [1, 1], "num_res_blocks": 1, "z_channels": 8,
                      "num_codebooks": 2},
        "optim": optim,
    })  # fmt: skip


def model_config(data, autoencoder, **optim):
    optim = {"steps": 6, "batch_size": 8, "warmup": 2, "log_every": 3, "save_every": 3,
             "sample_every": 100, **optim}  # fmt: skip
    return parse_run({
        "autoencoder_path": str(autoencoder), "num_inference_steps": 2,
        "data": {"path": str(data), "size": 8, "classes": CLASSES},
        "model": {"dim": 32, "n_layer": 1, "n_head": 2, "diff_layers": 1, "diff_dim": 32,
                  "diff_adanln_layers": 1, "parallel_num": 4, "num_classes": 3,
                  "cls_token_num": 2},
        "optim": optim,
    })  # fmt: skip


def write_config(config, path):
    path.write_text(tomli_w.dumps(run_to_dict(config)), encoding="utf-8")
    return path


def trainer(config, folder):
    return Trainer(AutoencoderTask(config), config, folder, progress=False)


def final(folder):
    state = checkpoint.newest(folder)
    assert state is not None
    return state


def assert_same(a, b):
    """Check that all bits are equal, in nested dicts and lists too."""
    assert type(a) is type(b)
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_same(a[key], b[key])
    elif isinstance(a, list):
        for x, y in zip(a, b, strict=True):
            assert_same(x, y)
    elif isinstance(a, torch.Tensor):
        assert torch.equal(a, b)
    else:
        assert a == b


@pytest.fixture(scope="module")
def autoencoder(data, tmp_path_factory):
    """The folder of a finished run."""
    folder = tmp_path_factory.mktemp("run") / "autoencoder"
    assert trainer(autoencoder_config(data), folder).run() == 0
    return folder


def test_the_files_of_a_run(autoencoder):
    names = {path.name for path in autoencoder.iterdir()}
    assert names == {
        "config.toml", "log.csv", "log.png", "samples-00000012.png", "autoencoder.json",
        "autoencoder.safetensors", "autoencoder.safetensors.sha256",
        "checkpoint-00000008.pt", "checkpoint-00000012.pt",
    }  # fmt: skip
    lines = (autoencoder / "log.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in lines] == ["step", "3", "6", "9", "12"]
    first, last = (dict(zip(lines[0].split(","), map(float, lines[i].split(",")), strict=True))
                   for i in (1, -1))  # fmt: skip
    assert last["l2"] < first["l2"]
    averaged = final(autoencoder)["average"]
    state = BinaryAutoencoder.from_pretrained(autoencoder).state_dict()
    assert all(torch.equal(state[name], value) for name, value in averaged.items())


def test_a_resumed_run_equals_an_uninterrupted_one(data, autoencoder, tmp_path):
    config = autoencoder_config(data)
    for stop in (1, 5, 7, None):  # not at multiples of anything
        trainer(config, tmp_path).run(stop)
    assert_same(final(tmp_path), final(autoencoder))
    columns = [
        [line.split(",")[:-1] for line in (folder / "log.csv").read_text().splitlines()]
        for folder in (tmp_path, autoencoder)
    ]
    assert columns[0] == columns[1]  # all but the rate


def test_accumulation_averages_parts(data, tmp_path):
    """Without entropy, which is a statistic of the batch, and without random augmentation."""
    changes = ["data.flip=false", "data.shift=0", "loss.entropy=0.0", "optim.log_every=1"]
    path = write_config(autoencoder_config(data), tmp_path / "c.toml")
    first = []
    for parts in (1, 4):
        config = read_config(path, [*changes, f"optim.accumulate={parts}"])
        trainer(config, tmp_path / str(parts)).run(1)
        names, values = (tmp_path / str(parts) / "log.csv").read_text().splitlines()
        first.append(dict(zip(names.split(","), map(float, values.split(",")), strict=True)))
    for name in ("grad_norm", "loss", "l1", "l2", "commitment"):
        assert first[0][name] == pytest.approx(first[1][name], rel=1e-4)


def test_every_part_of_every_step_has_draws_of_its_own(data, tmp_path, monkeypatch):
    made = []

    class Noted(Draws):
        def __init__(self, seed, step, items, device):
            made.append((seed, step, sorted(items)))
            super().__init__(seed, step, items, device)

    monkeypatch.setattr("bitdance.training.trainer.Draws", Noted)
    trainer(autoencoder_config(data, accumulate=2, seed=5), tmp_path).run(3)
    assert [draws[:2] for draws in made] == [(5, step) for step in (0, 0, 1, 1, 2, 2)]
    assert len({tuple(items) for *_, items in made}) == 6


def test_vectors_have_no_weight_decay(data, tmp_path):
    run = trainer(autoencoder_config(data, weight_decay=0.1), tmp_path)
    decays = {
        parameter: group["weight_decay"]
        for group in run._optimizer.param_groups for parameter in group["params"]
    }  # fmt: skip
    assert decays.keys() == set(run._parameters.values())
    for name, parameter in run._parameters.items():
        kept = parameter.dim() > 1 and not name.startswith(run.task.no_decay)
        assert decays[parameter] == (0.1 if kept else 0.0), name


def test_gradients_are_clipped(data, tmp_path):
    """After one step the first moments are a tenth of the gradients."""
    norms = {}
    for clip in (1e-3, 1e3):
        folder = tmp_path / str(clip)
        trainer(autoencoder_config(data, grad_clip=clip), folder).run(1)
        moments = final(folder)["optimizer"]["state"].values()
        norms[clip] = 10 * torch.stack([m["exp_avg"].norm() for m in moments]).norm().item()
    assert norms[1e-3] == pytest.approx(1e-3, rel=1e-3)
    assert norms[1e3] > 1e-2


def command(*arguments):
    return [sys.executable, "-m", "bitdance.cli", *map(str, arguments)]


def start(*arguments):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        command(*arguments), env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True,
    )  # fmt: skip


def wait_for(path, seconds=120):
    end = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < end, f"no {path.name}"
        time.sleep(0.01)


@pytest.mark.slow
@pytest.mark.timeout(120 + 30 * kills.COUNT)
@pytest.mark.nightly
def test_killed_at_random_moments(data, tmp_path, monkeypatch):
    """Each kill leaves a valid checkpoint, and changes nothing in the end."""
    monkeypatch.setattr(Log, "plot", lambda *_: None)  # it takes a second
    config = autoencoder_config(data, steps=kills.STEPS, save_every=2)
    trainer(config, tmp_path / "whole").run()
    path = write_config(config, tmp_path / "config.toml")
    killed = tmp_path / "killed"
    arguments = ["train", "autoencoder", str(path), "--out", str(killed), "--quiet"]
    killer, count, step = kills.Killer(killed, seed=0), 0, 0
    while count < kills.COUNT:
        process = READY.Process(target=main, args=(arguments,))
        process.start()
        _, moment = killer.kill([process])
        process.join()
        if process.exitcode == 0:  # it ended before
            assert_same(final(killed), final(tmp_path / "whole"))
            shutil.rmtree(killed)
            step = 0
            continue
        assert process.exitcode == -signal.SIGKILL, moment
        count += 1
        earlier, state = step, checkpoint.newest(killed) if killed.exists() else None
        step = 0 if state is None else state["step"]
        assert step >= earlier
    trainer(config, killed).run()
    assert_same(final(killed), final(tmp_path / "whole"))
    assert not list(killed.glob(".*.tmp"))


@pytest.mark.parametrize(
    ("number", "status"),
    [(signal.SIGTERM, 143), pytest.param(signal.SIGINT, 130, marks=pytest.mark.nightly)],
)
def test_signals_finish_the_step_and_save(data, tmp_path, number, status):
    config = autoencoder_config(data, steps=100_000, save_every=100_000, log_every=1)
    path = write_config(config, tmp_path / "config.toml")
    process = start("train", "autoencoder", path, "--out", tmp_path / "run", "--quiet")
    wait_for(tmp_path / "run" / "log.csv")
    while (tmp_path / "run" / "log.csv").read_text().count("\n") < 3:
        time.sleep(0.01)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == status
    assert "stopped after step" in errors
    state = final(tmp_path / "run")
    last = (tmp_path / "run" / "log.csv").read_text().splitlines()[-1]
    assert int(last.split(",")[0]) == state["step"]


def test_damaged_checkpoints_are_skipped(data, tmp_path):
    config = autoencoder_config(data, steps=8)
    trainer(config, tmp_path).run()
    newest = tmp_path / "checkpoint-00000008.pt"
    whole = newest.read_bytes()
    newest.write_bytes(whole[: len(whole) // 2])
    with pytest.warns(UserWarning, match="trying the one before"):
        assert checkpoint.newest(tmp_path)["step"] == 4
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    newest.write_bytes(bytes(flipped))
    with pytest.warns(UserWarning, match="trying the one before"):
        assert checkpoint.newest(tmp_path)["step"] == 4
    (tmp_path / "checkpoint-00000004.pt").write_bytes(b"")
    with (
        pytest.warns(UserWarning, match="trying"),
        pytest.raises(CheckpointError, match="no checkpoint of"),
    ):
        checkpoint.newest(tmp_path)


def test_a_full_disk_keeps_the_earlier_checkpoint(data, tmp_path, monkeypatch):
    config = autoencoder_config(data)
    trainer(config, tmp_path).run(4)

    def full(*_, **__):
        raise RuntimeError("[enforce fail at inline_container.cc:664] . unexpected pos")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="cannot write"):
        trainer(config, tmp_path).run(8)
    assert [p.name for p in tmp_path.glob("*checkpoint*")] == ["checkpoint-00000004.pt"]


def test_another_configuration_is_refused(data, autoencoder):
    with pytest.raises(ValueError, match="another configuration"):
        trainer(autoencoder_config(data, lr=1e-2), autoencoder)


def test_a_loss_that_is_not_finite_stops_the_run(data, tmp_path):
    config = autoencoder_config(data)
    task = AutoencoderTask(config, extra={"bad": (lambda x, y: y.sum() * float("nan"), 1.0)})
    with pytest.raises(RuntimeError, match="step 1: the loss is nan"):
        Trainer(task, config, tmp_path, progress=False).run()
    assert not list(tmp_path.glob("checkpoint-*"))


class Edges:
    """An extra loss with a state: it counts its calls."""

    def __init__(self):
        self.calls = 0

    def __call__(self, x, y):
        self.calls += 1
        return (x.diff(dim=-1) - y.diff(dim=-1)).abs().mean()

    def state_dict(self):
        return {"calls": self.calls}

    def load_state_dict(self, state):
        self.calls = state["calls"]


def test_extra_losses_by_name_and_their_state(data, tmp_path):
    path = write_config(autoencoder_config(data), tmp_path / "c.toml")
    path.write_text(
        path.read_text().replace("[loss.extra]", f'[loss.extra]\n"{__name__}:Edges" = 0.5')
    )
    config = read_config(path)
    for stop in (3, None):
        task = AutoencoderTask(config)
        Trainer(task, config, tmp_path / "run", progress=False).run(stop)
    assert task.extra_state() == {f"{__name__}:Edges": {"calls": 12}}
    assert f"{__name__}:Edges" in (tmp_path / "run" / "log.csv").read_text().splitlines()[0]
    path.write_text(path.read_text().replace(":Edges", ":Edgy"))
    with pytest.raises(ValueError, match=r"loss\.extra: .*Edgy.* is not module:function"):
        AutoencoderTask(read_config(path))


def test_everything_through_the_command_line(data, autoencoder, tmp_path, capsys):
    """Tokenize, train on codes and on images, generate, evaluate."""
    codes = tmp_path / "codes"
    options = ["--autoencoder", str(autoencoder), "--size", "8", "--out", str(codes), "--quiet"]
    assert main(["tokenize", str(data), *options, "--classes", *CLASSES]) == 0
    assert "60 images of 16 codes of 8 bits" in capsys.readouterr().out
    path = write_config(model_config(data, autoencoder), tmp_path / "model.toml")
    runs = []
    for name, source in (("packed", codes), ("images", data)):
        runs.append(tmp_path / name)
        train = ["train", "model", str(path), "--out", str(runs[-1]), "--quiet"]
        assert main([*train, "--data", str(source)]) == 0
    assert_same(final(runs[0])["average"], final(runs[1])["average"])
    pipeline = BitDancePipeline.from_pretrained(runs[0] / "model")
    assert pipeline.classes == CLASSES
    assert pipeline.num_inference_steps == 2
    capsys.readouterr()
    judge = ["evaluate", str(data), "--model", str(runs[0] / "model"), "--samples", "6", "--quiet"]
    assert main([*judge, "--out", str(tmp_path / "judged")]) == 0
    printed = capsys.readouterr().out
    assert "| reconstruction of 30 test images |" in printed
    assert (tmp_path / "judged" / "evaluation.md").read_text() in printed
    assert Image.open(tmp_path / "judged" / "evaluation.png").size[0] > 0


def test_evaluation_against_its_definitions(data):
    a, b = torch.randn(500, 3), 2 * torch.randn(400, 3) + 1
    same = frechet_distance(a, a)
    assert same == pytest.approx(0, abs=1e-9)
    # Of one dimension: (m_a - m_b)^2 + (s_a - s_b)^2.
    x, y = a[:, :1].double(), b[:, :1].double()
    expected = (x.mean() - y.mean()) ** 2 + (x.std() - y.std()) ** 2
    assert frechet_distance(x, y) == pytest.approx(float(expected), rel=1e-9)
    classifier = train_classifier(
        open_images(data, 8), 3, epochs=12, seed=0, device=torch.device("cpu"), progress=False
    )
    test = open_images(data, 8, split="test")
    with torch.no_grad():
        guessed = torch.cat([classifier(x) for x in iterate_batches(test, torch.device("cpu"))])
    assert (guessed.argmax(1).numpy() == test.labels).mean() > 0.9


def test_the_log_drops_lines_after_the_checkpoint(tmp_path):
    path = tmp_path / "log.csv"
    log = Log(path, ("loss",), 0)
    for step in (10, 20, 30):
        log.add(step, {"loss": 1 / step})
    path.write_text(path.read_text() + "40,0.02")  # killed while it wrote
    Log(path, ("loss",), 20).plot(tmp_path / "log.png")
    assert path.read_text() == "step,loss\n10,0.1\n20,0.05\n"
    assert Image.open(tmp_path / "log.png").format == "PNG"
    with pytest.raises(ValueError, match="has the columns 'step,loss', expected step,other"):
        Log(path, ("other",), 20)


@pytest.mark.parametrize("line", ["x,0.1", "10", "10,0.1,2", "10,", "10,q", "1.5,0.1", "\x00,1"])
def test_a_damaged_log_is_refused_before_the_run_begins(tmp_path, line):
    """Its plot, in the middle of the run, could not be drawn."""
    path = tmp_path / "log.csv"
    path.write_text(f"step,loss\n5,0.2\n{line}\n20,0.1\n")
    with pytest.raises(ValueError, match="is damaged: a line must have a step and 1 numbers, got"):
        Log(path, ("loss",), 20)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(ValueError, match="must be a file, got a pipe"):
        Log(path, ("loss",), 20)
    path.unlink()
    path.symlink_to("moved.csv")
    with pytest.raises(FileNotFoundError, match=r"no such file: .*log\.csv"):
        Log(path, ("loss",), 20)


def test_learning_rates_and_decays_of_a_schedule():
    """The authors': constant after the warm-up, a cosine from decay_start, a constant decay."""
    ours = OptimConfig(steps=100, lr=1.0, lr_end=0.1, warmup=10)
    theirs = dataclasses.replace(ours, decay_start=40, ema_decay=0.999, ema_warmup=False)
    flat = OptimConfig(steps=100, lr=1.0, warmup=10, schedule="constant")
    for schedule in (ours, theirs, flat):
        warm_up = [schedule.learning_rate(step) for step in range(11)]
        assert warm_up == pytest.approx([*np.arange(1, 11) / 10, 1.0])
    assert [ours.learning_rate(s) for s in (55, 100)] == pytest.approx([0.55, 0.1])
    assert [theirs.learning_rate(s) for s in (39, 40)] == [1.0, 1.0]
    assert [theirs.learning_rate(s) for s in (70, 100)] == pytest.approx([0.55, 0.1])
    assert {flat.learning_rate(step) for step in range(10, 100)} == {1.0}
    assert [theirs.average_decay(step) for step in (1, 50)] == [0.999, 0.999]
    assert [ours.average_decay(step) for step in (1, 10**6)] == [2 / 11, 0.9999]


def test_the_average_of_a_run_has_the_decay_of_its_configuration(data, tmp_path):
    config = autoencoder_config(data, ema_decay=0.75, ema_warmup=False)
    run = trainer(config, tmp_path)
    before = {name: value.clone() for name, value in run._average.items()}
    run.run(1)
    for name, parameter in run._parameters.items():
        assert torch.equal(run._average[name], before[name].lerp(parameter.detach(), 0.25))


def test_configurations_round_trip_through_files(data, tmp_path):
    for config in (autoencoder_config(data), model_config(data, "runs/x")):
        path = write_config(config, tmp_path / "config.toml")
        assert read_config(path) == config
    odd = dataclasses.replace(
        autoencoder_config('a "quoted" \\ path\nof two lines, \x7f and \t'),
        loss=LossConfig(extra={"a.b:c": 1e-30}),
    )
    assert read_config(write_config(odd, tmp_path / "config.toml")) == odd


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("optim.steps=0", "steps must be at least 1, got 0"),
        ("optim.accumulate=3", "accumulate must be a divisor of batch_size = 8, got 3"),
        ("optim.lr=-1.0", "lr must be greater than 0"),
        ("optim.speed=2", "unknown key optim.speed"),
        ("optim.autocast=half", "autocast must be 'auto', 'off'"),
        ("data.shift=8", "shift must be less than size = 8, got 8"),
        ("optim.decay_start=1", r"decay_start must be 0, or from warmup = 2 to less than steps"),
        ("optim.decay_start=12", r"decay_start must be 0, or from warmup = 2 to less than steps"),
        ("optim={schedule='constant', decay_start=3}", r"decay_start must be left out \(schedule"),
        ("optim.schedule=linear", "schedule must be 'cosine' or 'constant'"),
        ("optim.ema_warmup=1", "ema_warmup must be true or false, got 1"),
        ("data.min_crop=0", "min_crop must be at least 0.1, got 0"),
        ("data.crop_decay=[3, 9]", "crop_decay must be left out without random crops"),
        (
            "data={min_crop=0.8, crop_decay=[9, 3]}",
            "crop_decay must be two steps, the first before",
        ),
        ("data={min_crop=0.8, crop_decay=[9]}", "crop_decay must be two steps, the first before"),
        ("autoencoder.ch=33", "ch must be a multiple of the 32 norm groups, got 33"),
        ("loss.temperature=0", "temperature must be greater than 0"),
        ("model.dim=4", "got autoencoder and model"),
        ("color=red", "unknown key color"),
        ("optim.steps='many'", "optim.steps must be an integer, got 'many'"),
        ("nonsense", "a change must be section.key=value"),
    ],
)
def test_wrong_configurations(data, tmp_path, change, message):
    path = write_config(autoencoder_config(data), tmp_path / "config.toml")
    with pytest.raises(ValueError, match=message) as caught:
        read_config(path, [change])
    assert str(path) in str(caught.value)


def test_command_line_errors(data, autoencoder, tmp_path, capsys):
    path = write_config(autoencoder_config(data), tmp_path / "c.toml")
    train = ["train", "autoencoder", str(path), "--out", str(tmp_path / "run"), "--quiet"]
    assert main([*train, "--data", str(tmp_path / "nowhere")]) == 1
    assert "nowhere is not a folder of images" in capsys.readouterr().err
    assert main(["train", "model", str(path), "--out", str(tmp_path / "run")]) == 1
    assert "has no section [model]" in capsys.readouterr().err
    model = write_config(model_config(data, tmp_path / "none"), tmp_path / "m.toml")
    assert main(["train", "model", str(model), "--out", str(tmp_path / "run")]) == 1
    assert "is not a file, a folder or a repository id" in capsys.readouterr().err
    path.write_text("steps = ")
    assert main(train) == 1
    assert "c.toml: " in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
