"""Training end to end on a data set of 60 tiny pictures, and what may go wrong on the way."""

import gzip
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from bitdance import evaluate
from bitdance.cli import main
from bitdance.pipeline import BitDance
from bitdance.train import checkpoint
from bitdance.train.batches import ShuffledBatches
from bitdance.train.config import RunConfig, dump_toml, read_config
from bitdance.train.images import FolderImages, IdxImages, augment, open_images
from bitdance.train.log import Log
from bitdance.train.tokenizer import TokenizerTask, load_tokenizer
from bitdance.train.trainer import Trainer
from bitdance.weights import CheckpointError

ROOT = Path(__file__).parent.parent.parent
CLASSES = ("bars", "disc", "edge")


def write_idx(path, array, *, pack=False):
    header = b"\0\0\x08" + bytes([array.ndim]) + np.array(array.shape, ">u4").tobytes()
    data = header + array.astype(np.uint8).tobytes()
    path.write_bytes(gzip.compress(data) if pack else data)


def pictures(count, seed):
    """`count` pictures [count, 6, 6] of three kinds, and their labels."""
    generator = np.random.default_rng(seed)
    y, x = np.mgrid[:6, :6]
    kinds = [(x % 2) * 255, (((x - 2.5) ** 2 + (y - 2.5) ** 2) < 5) * 255, (y > 2) * 255]
    labels = np.arange(count) % 3
    noisy = np.stack([kinds[label] for label in labels]) + generator.normal(0, 20, (count, 6, 6))
    return noisy.clip(0, 255).astype(np.uint8), labels


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("idx")
    for name, count, pack in (("train", 60, False), ("t10k", 30, True)):
        images, labels = pictures(count, seed=count)
        end = ".gz" if pack else ""
        write_idx(folder / f"{name}-images-idx3-ubyte{end}", images, pack=pack)
        write_idx(folder / f"{name}-labels-idx1-ubyte{end}", labels, pack=pack)
    return folder


def tokenizer_config(data, **optim):
    optim = {"steps": 12, "batch_size": 8, "warmup": 2, "log_every": 3, "save_every": 4,
             "picture_every": 100, **optim}  # fmt: skip
    return RunConfig.from_dict({
        "data": {"path": str(data), "size": 8, "classes": CLASSES, "shift": 1, "flip": True},
        "tokenizer": {"ch": 32, "ch_mult": [1, 1], "num_res_blocks": 1, "z_channels": 8,
                      "num_codebooks": 2},
        "optim": optim,
    })  # fmt: skip


def model_config(data, tokenizer, **optim):
    optim = {"steps": 6, "batch_size": 8, "warmup": 2, "log_every": 3, "save_every": 3,
             "picture_every": 100, **optim}  # fmt: skip
    return RunConfig.from_dict({
        "tokenizer_path": str(tokenizer), "sample_steps": 2,
        "data": {"path": str(data), "size": 8, "classes": CLASSES},
        "model": {"dim": 32, "n_layer": 1, "n_head": 2, "diff_layers": 1, "diff_dim": 32,
                  "diff_adanln_layers": 1, "parallel_num": 4, "num_classes": 3,
                  "cls_token_num": 2},
        "optim": optim,
    })  # fmt: skip


def write_config(config, path):
    path.write_text(dump_toml(config.to_dict()))
    return path


def trainer(config, folder):
    return Trainer(TokenizerTask(config), config, folder, progress=False)


def final(folder):
    state = checkpoint.newest(folder)
    assert state is not None
    return state


def assert_same(a, b):
    """Equal in every bit, nested dicts and lists too."""
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
def tokenizer(data, tmp_path_factory):
    """Folder of a finished run."""
    folder = tmp_path_factory.mktemp("run") / "tokenizer"
    assert trainer(tokenizer_config(data), folder).run() == 0
    return folder


def test_a_run_leaves_what_it_promises(tokenizer):
    names = {path.name for path in tokenizer.iterdir()}
    assert names == {
        "config.toml", "log.csv", "log.png", "pictures-00000012.png", "tokenizer.json",
        "tokenizer.safetensors", "checkpoint-00000008.pt", "checkpoint-00000012.pt",
    }  # fmt: skip
    lines = (tokenizer / "log.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in lines] == ["step", "3", "6", "9", "12"]
    first, last = (dict(zip(lines[0].split(","), map(float, lines[i].split(",")), strict=True))
                   for i in (1, -1))  # fmt: skip
    assert last["l2"] < first["l2"]
    averaged = final(tokenizer)["average"]
    state = load_tokenizer(tokenizer).state_dict()
    assert all(torch.equal(state[name], value) for name, value in averaged.items())


def test_a_resumed_run_equals_an_uninterrupted_one(data, tokenizer, tmp_path):
    config = tokenizer_config(data)
    for stop in (1, 5, 7, None):  # not at multiples of anything
        trainer(config, tmp_path).run(stop)
    assert_same(final(tmp_path), final(tokenizer))
    columns = [
        [line.split(",")[:-1] for line in (folder / "log.csv").read_text().splitlines()]
        for folder in (tmp_path, tokenizer)
    ]
    assert columns[0] == columns[1]  # all but the rate


def test_accumulation_averages_parts(data, tmp_path):
    """Without entropy, which is a statistic of the batch, and without random augmentation."""
    changes = ["data.flip=false", "data.shift=0", "loss.entropy=0.0", "optim.log_every=1"]
    path = write_config(tokenizer_config(data), tmp_path / "c.toml")
    first = []
    for parts in (1, 4):
        config = read_config(path, [*changes, f"optim.accumulate={parts}"])
        trainer(config, tmp_path / str(parts)).run(1)
        names, values = (tmp_path / str(parts) / "log.csv").read_text().splitlines()
        first.append(dict(zip(names.split(","), map(float, values.split(",")), strict=True)))
    for name in ("grad_norm", "loss", "l1", "l2", "commitment"):
        assert first[0][name] == pytest.approx(first[1][name], rel=1e-4)


def command(*arguments):
    return [sys.executable, "-m", "bitdance", *map(str, arguments)]


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
@pytest.mark.timeout(900)
def test_killed_at_random_moments(data, tmp_path):
    """Twenty kills leave a loadable checkpoint each, and the final weights of no kill."""
    config = tokenizer_config(data, steps=200, save_every=2)
    trainer(config, tmp_path / "whole").run()
    path = write_config(config, tmp_path / "config.toml")
    killed = tmp_path / "killed"
    moments = random.Random(0)
    kills = 0
    while kills < 20:
        before = {p.name for p in killed.glob("checkpoint-*")} if killed.exists() else set()
        process = start("train", "tokenizer", path, "--out", killed, "--quiet")
        end = time.monotonic() + 120
        # From when it trains on: what came before is the same in each start.
        while {p.name for p in killed.glob("checkpoint-*")} == before and process.poll() is None:
            assert time.monotonic() < end
            time.sleep(0.005)
        time.sleep(moments.uniform(0, 0.15))
        process.kill()
        process.communicate()
        kills += 1
        state = checkpoint.newest(killed)
        assert state is not None
        if state["step"] == 200:  # it ended first: begin again
            for left in killed.glob("checkpoint-*"):
                left.unlink()
    trainer(config, killed).run()
    assert_same(final(killed), final(tmp_path / "whole"))
    assert not list(killed.glob(".*.tmp"))


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_signals_finish_the_step_and_save(data, tmp_path, number, status):
    config = tokenizer_config(data, steps=100_000, save_every=100_000, log_every=1)
    path = write_config(config, tmp_path / "config.toml")
    process = start("train", "tokenizer", path, "--out", tmp_path / "run", "--quiet")
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


def test_damaged_checkpoints_are_passed_over(data, tmp_path):
    config = tokenizer_config(data, steps=8)
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


def test_full_disk_keeps_the_checkpoint_before(data, tmp_path, monkeypatch):
    config = tokenizer_config(data)
    trainer(config, tmp_path).run(4)

    def full(*_, **__):
        raise RuntimeError("[enforce fail at inline_container.cc:664] . unexpected pos")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="cannot write"):
        trainer(config, tmp_path).run(8)
    assert [p.name for p in tmp_path.glob("*checkpoint*")] == ["checkpoint-00000004.pt"]


def test_another_configuration_is_refused(data, tokenizer):
    with pytest.raises(ValueError, match="another configuration"):
        trainer(tokenizer_config(data, lr=1e-2), tokenizer)


def test_a_loss_that_is_not_finite_stops_the_run(data, tmp_path):
    config = tokenizer_config(data)
    task = TokenizerTask(config, extra={"bad": (lambda x, y: y.sum() * float("nan"), 1.0)})
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
    path = write_config(tokenizer_config(data), tmp_path / "c.toml")
    path.write_text(path.read_text() + f'\n[loss.extra]\n"{__name__}:Edges" = 0.5\n')
    config = read_config(path)
    for stop in (3, None):
        task = TokenizerTask(config)
        Trainer(task, config, tmp_path / "run", progress=False).run(stop)
    assert task.extra_state() == {f"{__name__}:Edges": {"calls": 12}}
    assert f"{__name__}:Edges" in (tmp_path / "run" / "log.csv").read_text().splitlines()[0]
    path.write_text(path.read_text().replace(":Edges", ":Edgy"))
    with pytest.raises(ValueError, match=r"loss\.extra: .*Edgy.* is not module:function"):
        TokenizerTask(read_config(path))


def test_everything_through_the_command_line(data, tokenizer, tmp_path, capsys):
    """Tokenize, train on codes and on images alike, generate, evaluate."""
    codes = tmp_path / "codes"
    options = ["--tokenizer", str(tokenizer), "--size", "8", "--out", str(codes), "--quiet"]
    assert main(["tokenize", str(data), *options, "--classes", *CLASSES]) == 0
    assert "60 images of 16 codes of 8 bits" in capsys.readouterr().out
    path = write_config(model_config(data, tokenizer), tmp_path / "model.toml")
    runs = []
    for name, source in (("packed", codes), ("images", data)):
        runs.append(tmp_path / name)
        train = ["train", "model", str(path), "--out", str(runs[-1]), "--quiet"]
        assert main([*train, "--data", str(source)]) == 0
    assert_same(final(runs[0])["average"], final(runs[1])["average"])
    pipeline = BitDance.from_pretrained(runs[0] / "model")
    assert pipeline.classes == CLASSES
    assert pipeline.steps == 2
    capsys.readouterr()
    judge = ["evaluate", str(data), "--model", str(runs[0] / "model"), "--samples", "6", "--quiet"]
    assert main([*judge, "--out", str(tmp_path / "judged")]) == 0
    printed = capsys.readouterr().out
    assert "| reconstruction of 30 test images |" in printed
    assert (tmp_path / "judged" / "evaluation.md").read_text() in printed
    assert Image.open(tmp_path / "judged" / "evaluation.png").size[0] > 0


def test_evaluation_against_its_definitions(data):
    a, b = torch.randn(500, 3), 2 * torch.randn(400, 3) + 1
    same = evaluate.frechet_distance(a, a)
    assert same == pytest.approx(0, abs=1e-9)
    # Of one dimension: (m_a - m_b)^2 + (s_a - s_b)^2.
    x, y = a[:, :1].double(), b[:, :1].double()
    expected = (x.mean() - y.mean()) ** 2 + (x.std() - y.std()) ** 2
    assert evaluate.frechet_distance(x, y) == pytest.approx(float(expected), rel=1e-9)
    classifier = evaluate._train_classifier(
        open_images(data, 8), 3, epochs=12, seed=0, device=torch.device("cpu"), progress=False
    )
    test = open_images(data, 8, split="test")
    with torch.no_grad():
        guessed = torch.cat([classifier(x) for x in evaluate._batches(test, torch.device("cpu"))])
    assert (guessed.argmax(1).numpy() == test.labels).mean() > 0.9


def test_idx_files(data):
    train, test = open_images(data, 8), open_images(data, 10, split="test", classes=CLASSES)
    assert (len(train), len(test)) == (60, 30)
    assert (train.classes, test.classes) == (("0", "1", "2"), CLASSES)
    images, labels = pictures(30, seed=30)
    taken = test.take(np.array([3, 29]))
    assert taken.shape == (2, 3, 10, 10)
    assert torch.equal(taken[1, 2, 2:8, 2:8], torch.from_numpy(images[29]))
    assert int(taken[:, :, :2].max()) == 0
    assert np.array_equal(test.labels, labels)


def test_damaged_idx_files(data, tmp_path):
    images, labels = pictures(4, seed=0)
    good = tmp_path / "train-images-idx3-ubyte"
    other = tmp_path / "train-labels-idx1-ubyte"
    write_idx(good, images)
    with pytest.raises(FileNotFoundError, match="train-labels-idx1-ubyte"):
        open_images(tmp_path, 8)
    write_idx(other, labels[:3])
    with pytest.raises(ValueError, match="do not belong together"):
        open_images(tmp_path, 8)
    write_idx(other, labels)
    with pytest.raises(ValueError, match="size must be at least 6, got 5"):
        open_images(tmp_path, 5)
    with pytest.raises(ValueError, match="3 classes, but 2 names"):
        IdxImages(tmp_path, 8, classes=("a", "b"))
    good.write_bytes(good.read_bytes()[:-1])
    with pytest.raises(ValueError, match="is damaged: 143 bytes"):
        open_images(tmp_path, 8)
    good.write_bytes(b"PNG")
    with pytest.raises(ValueError, match="is no IDX file"):
        open_images(tmp_path, 8)
    packed = good.with_suffix(".gz")
    good.unlink()
    packed.write_bytes(gzip.compress(b"\0\0\x08\1")[:-6])
    with pytest.raises(ValueError, match="is damaged"):
        open_images(tmp_path, 8)


def test_folders_of_images(tmp_path):
    for part in ("train", "val"):
        for label, name in enumerate(("cat", "dog")):
            (tmp_path / part / name).mkdir(parents=True)
            for i in range(2):
                picture = Image.new("RGB", (20, 12), (100 * label, 10 * i, 0))
                picture.save(tmp_path / part / name / f"{i}.png")
    images = open_images(tmp_path, 8)
    assert isinstance(images, FolderImages)
    assert images.classes == ("cat", "dog")
    assert images.labels.tolist() == [0, 0, 1, 1]
    taken = images.take(np.array([3, 0]))
    assert taken.shape == (2, 3, 8, 8)
    assert taken[0, :, 4, 4].tolist() == [100, 10, 0]
    assert len(open_images(tmp_path, 8, split="test")) == 4
    (tmp_path / "train" / "dog" / "2.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"2\.png is no whole image"):
        open_images(tmp_path, 8).take(np.array([4]))
    with pytest.raises(FileNotFoundError, match="has no sub-folders with images"):
        open_images(tmp_path / "train" / "cat", 8)
    with pytest.raises(FileNotFoundError, match="is no folder of images"):
        open_images(tmp_path / "nothing", 8)


def test_augmentation_moves_and_mirrors():
    image = torch.arange(16, dtype=torch.uint8).view(1, 1, 4, 4).repeat(64, 1, 1, 1)
    torch.manual_seed(0)
    assert augment(image, flip=False, shift=0) is image
    mirrored = augment(image, flip=True, shift=0)
    kinds = {tuple(m.flatten().tolist()) for m in mirrored}
    assert kinds == {
        tuple(image[0].flatten().tolist()),
        tuple(image[0].flip(-1).flatten().tolist()),
    }
    moved = augment(image, flip=False, shift=1)
    assert moved.dtype == torch.uint8
    assert len({tuple(m.flatten().tolist()) for m in moved}) == 9
    assert {int(m[0, 1, 1]) for m in moved} == {0, 1, 2, 4, 5, 6, 8, 9, 10}


def test_batches_cover_every_epoch_and_every_rank():
    ranks = [ShuffledBatches(50, 8, seed=3, rank=r, world_size=2) for r in range(2)]
    assert ranks[0].per_epoch == 3
    for epoch in range(2):
        seen = np.concatenate([b.batch(3 * epoch + i) for b in ranks for i in range(3)])
        assert len(set(seen.tolist())) == 48
    assert not np.array_equal(ranks[0].batch(0), ranks[0].batch(3))
    again = ShuffledBatches(50, 8, seed=3, world_size=2)
    assert np.array_equal(again.batch(4), ranks[0].batch(4))
    assert not np.array_equal(ShuffledBatches(50, 8, seed=4, world_size=2).batch(4), again.batch(4))
    with pytest.raises(ValueError, match="size must be at least 16, got 15"):
        ShuffledBatches(15, 8, world_size=2)
    with pytest.raises(ValueError, match="rank below"):
        ShuffledBatches(50, 8, rank=1)


def test_the_log_drops_what_came_after_the_checkpoint(tmp_path):
    path = tmp_path / "log.csv"
    log = Log(path, ("loss",), 0)
    for step in (10, 20, 30):
        log.add(step, {"loss": 1 / step})
    path.write_text(path.read_text() + "40,0.02")  # killed while it wrote
    Log(path, ("loss",), 20).plot(tmp_path / "log.png")
    assert path.read_text() == "step,loss\n10,0.1\n20,0.05\n"
    assert Image.open(tmp_path / "log.png").format == "PNG"
    with pytest.raises(ValueError, match="has the columns step,loss, expected step,other"):
        Log(path, ("other",), 20)


def test_configurations_survive_their_file(data, tmp_path):
    for config in (tokenizer_config(data), model_config(data, "runs/x")):
        path = write_config(config, tmp_path / "config.toml")
        assert read_config(path) == config
    odd = {"a": {'quote " and \\': 1.5, "list": [1, 2], "flag": True}, "b": "two\nlines"}
    import bitdance.train.config as module

    assert module.tomllib.loads(dump_toml(odd)) == odd


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("optim.steps=0", "steps must be at least 1, got 0"),
        ("optim.accumulate=3", "accumulate must be a divisor of batch_size = 8, got 3"),
        ("optim.lr=-1.0", "lr must be greater than 0"),
        ("optim.speed=2", r"\[optim\] has unknown keys speed"),
        ("optim.autocast=half", "autocast must be auto, off"),
        ("data.shift=8", "shift must be 0 or more, and less than size, got 8"),
        ("tokenizer.ch=33", "ch must be a multiple of the 32 norm groups, got 33"),
        ("loss.temperature=0", "temperature must be greater than 0"),
        ("model.dim=4", r"either \[tokenizer\] or \[model\]"),
        ("colour=red", "unknown keys colour"),
        ("optim.steps='many'", "steps|>="),
        ("nonsense", "a change must be section.key=value"),
    ],
)
def test_wrong_configurations(data, tmp_path, change, message):
    path = write_config(tokenizer_config(data), tmp_path / "config.toml")
    with pytest.raises(ValueError, match=message) as caught:
        read_config(path, [change])
    assert str(path) in str(caught.value)


def test_command_line_errors(data, tokenizer, tmp_path, capsys):
    path = write_config(tokenizer_config(data), tmp_path / "c.toml")
    train = ["train", "tokenizer", str(path), "--out", str(tmp_path / "run"), "--quiet"]
    assert main([*train, "--data", str(tmp_path / "nowhere")]) == 1
    assert "nowhere is no folder of images" in capsys.readouterr().err
    assert main(["train", "model", str(path), "--out", str(tmp_path / "run")]) == 1
    assert "has no section [model]" in capsys.readouterr().err
    model = write_config(model_config(data, tmp_path / "none"), tmp_path / "m.toml")
    assert main(["train", "model", str(model), "--out", str(tmp_path / "run")]) == 1
    assert "holds no trained tokenizer" in capsys.readouterr().err
    path.write_text("steps = ")
    assert main(train) == 1
    assert "c.toml: " in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
