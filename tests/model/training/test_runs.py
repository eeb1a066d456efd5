"""How runs resume, begin, and are refused, on a task of five weights."""

import dataclasses
import shutil
import threading
import time

import numpy as np
import pytest
import torch

from bitdance.data.images import open_images
from bitdance.data.packed_dataset import PackedDataset
from bitdance.data.packed_writer import PackedWriter
from bitdance.io.files import CheckpointError
from bitdance.io.folder_lock import FolderLock
from bitdance.io.weights import write_tensors
from bitdance.models.autoencoder.autoencoder import BinaryAutoencoder
from bitdance.pipelines.class_conditional import BitDancePipeline
from bitdance.training import checkpoint
from bitdance.training.autoencoder import AutoencoderTask
from bitdance.training.class_conditional import ClassConditionalTask
from bitdance.training.config import parse_run, read_config
from bitdance.training.trainer import Trainer
from tests.forked import READY
from tests.model.helpers.hub import Hub
from tests.model.helpers.tiny_images import write_data_set

SHAPE = {"ch": 32, "ch_mult": [1, 1], "num_res_blocks": 1, "z_channels": 8, "num_codebooks": 2}


@pytest.fixture(autouse=True)
def _no_plots(monkeypatch):
    """They take a second each, and are tested with the log."""
    monkeypatch.setattr("bitdance.training.log.Log.plot", lambda *_: None)


class Line:
    """A task with five weights, one frozen weight and a record of its losses."""

    columns, size, no_decay, exports = (), 8, (), ("line.txt",)

    def __init__(self, identity="", frozen=1.0):
        torch.manual_seed(0)
        self.module = torch.nn.Linear(4, 1)
        self.module.frozen = torch.nn.Parameter(torch.tensor(frozen), requires_grad=False)
        self.identity, self.losses = identity, []

    def load(self, items, step):
        return items

    def loss(self, items, draws):
        loss = self.module(torch.ones(len(items), 4)).square().mean() + items.sum()
        self.losses.append(float(loss.detach()))
        return loss, {}

    def save_samples(self, path):
        pass

    def export(self, folder):
        (folder / "line.txt").write_text(repr(self.module.weight.tolist()))

    def extra_state(self):
        return {}

    def load_extra_state(self, state):
        pass


def config(path="data", size=8, init="", autoencoder=SHAPE, **optim):
    optim = {"steps": 4, "batch_size": 2, "warmup": 1, "log_every": 2, "save_every": 2, **optim}
    content = {
        "data": {"path": path, "size": size},
        "optim": optim,
        "autoencoder": dict(autoencoder),
    }
    return parse_run({**content, **({"init": init} if init else {})})


def start(folder, run=None, task=None, **changes):
    return Trainer(task or Line(), run or config(**changes), folder, progress=False)


def names(folder):
    return {path.name for path in folder.iterdir()}


@pytest.mark.parametrize(
    "changes",
    [
        {"steps": 8}, {"log_every": 1}, {"save_every": 1}, {"sample_every": 7}, {"keep": 5},
        {"path": "/mnt/data"}, {"steps": 9, "log_every": 4, "path": "elsewhere"},
    ],
    ids=lambda changes: "+".join(changes),
)  # fmt: skip
@pytest.mark.parametrize("stop_at", [3, None], ids=["stopped", "finished"])
def test_a_run_resumes_with_settings_that_do_not_affect_the_weights(tmp_path, stop_at, changes):
    start(tmp_path).run(stop_at)
    trainer = start(tmp_path, **changes)
    assert trainer.step == (stop_at or 4)
    assert trainer.run() == 0
    assert checkpoint.newest(tmp_path)["step"] == changes.get("steps", 4)
    assert read_config(tmp_path / "config.toml") == config(**changes)  # the truth of the run
    if changes.get("steps", 4) == 4:
        start(tmp_path / "straight").run()
        a, b = (checkpoint.newest(f)["average"] for f in (tmp_path, tmp_path / "straight"))
        assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lr": 1e-2}, "optim.lr (was 0.0006, is 0.01)"),
        ({"batch_size": 4, "seed": 3}, "optim.batch_size (was 2, is 4), optim.seed (was 0, is 3)"),
        ({"size": 16}, "data.size (was 8, is 16)"),
        (
            {"autoencoder": {**SHAPE, "ch_mult": [1, 2]}},
            "autoencoder.ch_mult (was [1, 1], is [1, 2])",
        ),
        ({"init": "x"}, "init (was None, is 'x')"),
        ({"steps": 3}, "optim.steps must be at least 4, which the run in"),
    ],
)
def test_changed_settings_that_affect_the_weights_are_refused(tmp_path, changes, message):
    start(tmp_path).run()
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(ValueError) as caught:  # noqa: PT011  (compared below)
        start(tmp_path, **changes)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_folder_without_checkpoints_accepts_another_configuration(tmp_path):
    """As after a first step that diverged, where the error says to lower optim.lr."""
    start(tmp_path)
    start(tmp_path, lr=1e-4).run()
    assert read_config(tmp_path / "config.toml").optim.lr == 1e-4


def test_checkpoints_without_their_configuration_are_refused(tmp_path):
    start(tmp_path).run()
    (tmp_path / "config.toml").unlink()
    with pytest.raises(ValueError, match=r"has checkpoints but no config\.toml"):
        start(tmp_path)


def test_exports_are_there_when_the_run_is_complete_and_only_then(tmp_path):
    start(tmp_path).run(3)
    assert "line.txt" not in names(tmp_path)
    start(tmp_path).run()
    first = (tmp_path / "line.txt").read_text()
    start(tmp_path, steps=8).run(6)
    assert "line.txt" not in names(tmp_path)
    assert (tmp_path / "line-00000004.txt").read_text() == first
    start(tmp_path, steps=8).run()
    task = Line()
    trainer = start(tmp_path, task=task, steps=8)
    with trainer.averaged():
        assert (tmp_path / "line.txt").read_text() == repr(task.module.weight.tolist())
    assert (tmp_path / "line.txt").read_text() != first


def test_a_line_of_the_log_is_the_mean_since_the_line_before(tmp_path):
    """Also where log_every changes between them."""
    tasks = Line(), Line()
    start(tmp_path, task=tasks[0], steps=9, log_every=4).run(6)
    start(tmp_path, task=tasks[1], steps=9, log_every=3).run()
    losses = tasks[0].losses + tasks[1].losses
    rows = [line.split(",") for line in (tmp_path / "log.csv").read_text().splitlines()]
    found = {int(row[0]): float(row[rows[0].index("loss")]) for row in rows[1:]}
    assert found == {4: pytest.approx(np.mean(losses[:4]), rel=1e-4),
                     9: pytest.approx(np.mean(losses[4:]), rel=1e-4)}  # fmt: skip


def test_other_data_are_refused_at_any_path(tmp_path):
    start(tmp_path, task=Line("a")).run(2)
    with pytest.raises(ValueError, match=r"^data\.path must be the data that the run in .* began"):
        start(tmp_path, task=Line("b"))
    assert start(tmp_path, task=Line("a"), path="moved").step == 2


def test_another_autoencoder_is_refused(tmp_path):
    start(tmp_path, task=Line(frozen=1.0)).run(2)
    with pytest.raises(ValueError, match=r"^autoencoder_path must be the autoencoder .*\(frozen"):
        start(tmp_path, task=Line(frozen=2.0))


def _images(folder):
    from PIL import Image

    for label, name in enumerate(("cat", "dog")):
        (folder / name).mkdir(parents=True)
        for i in range(2):
            Image.new("RGB", (8, 8), (label * 100, i * 50, 7)).save(folder / name / f"{i}.bmp")
    return folder


def _codes(folder, classes=("a", "b"), last=1):
    with PackedWriter(folder, tokens=16, channels=8, metadata={"classes": classes}) as writer:
        codes = np.random.default_rng(0).integers(0, 256, (8, 16, 1)).astype(np.uint8)
        writer.write(codes, [0, 1] * 3 + [0, last])
    return folder


def test_data_are_identified_by_content_not_path(tmp_path):
    (tmp_path / "idx").mkdir()
    kinds = {
        "idx": (write_data_set(tmp_path / "idx"), lambda p: open_images(p, 8).identity()),
        "images": (_images(tmp_path / "images"), lambda p: open_images(p, 8).identity()),
        "codes": (_codes(tmp_path / "codes"), lambda p: PackedDataset(p).identity),
    }
    found = {}
    for name, (folder, identity) in kinds.items():
        found[name] = identity(folder)
        shutil.copytree(folder, tmp_path / "moved" / name)
        assert identity(tmp_path / "moved" / name) == found[name]
    assert len(set(found.values())) == 3
    labels = tmp_path / "idx" / "train-labels-idx1-ubyte"
    labels.write_bytes(labels.read_bytes()[:-1] + b"\1")
    (tmp_path / "images" / "dog" / "1.bmp").rename(tmp_path / "images" / "cat" / "9.bmp")
    shutil.rmtree(tmp_path / "codes")
    _codes(tmp_path / "codes", last=0)
    for name, (folder, identity) in kinds.items():
        assert identity(folder) != found[name]


@pytest.fixture(scope="module")
def autoencoder(tmp_path_factory):
    """A finished run of an autoencoder, and its data."""
    folder = tmp_path_factory.mktemp("autoencoder")
    (folder / "data").mkdir()
    data = write_data_set(folder / "data")
    run = config(str(data), steps=2)
    Trainer(AutoencoderTask(run), run, folder / "run", progress=False).run()
    return folder / "run", data


def model_config(data, autoencoder, init="", **model):
    model = {"dim": 32, "n_layer": 1, "n_head": 2, "diff_layers": 1, "diff_dim": 32,
             "diff_adanln_layers": 1, "parallel_num": 4, "num_classes": 3, "cls_token_num": 2,
             **model}  # fmt: skip
    content = {"data": {"path": str(data), "size": 8}, "autoencoder_path": str(autoencoder),
               "num_inference_steps": 1, "model": model,
               "optim": {"steps": 2, "batch_size": 4, "warmup": 1}}  # fmt: skip
    return parse_run({**content, **({"init": str(init)} if init else {})})


@pytest.fixture(scope="module")
def model(autoencoder, tmp_path_factory):
    """A finished run of a model."""
    folder = tmp_path_factory.mktemp("model") / "run"
    run = model_config(autoencoder[1], autoencoder[0])
    Trainer(ClassConditionalTask(run), run, folder, progress=False).run()
    return folder


def _begun(task, run, folder):
    trainer = Trainer(task, run, folder, progress=False)
    assert trainer.step == 0
    assert not trainer._optimizer.state
    state = {name: p.detach() for name, p in task.module.named_parameters()}
    trained = {name for name, p in task.module.named_parameters() if p.requires_grad}
    assert trainer._average.keys() == trained
    assert all(torch.equal(trainer._average[name], state[name]) for name in trained)
    return state


def test_an_autoencoder_begins_with_the_weights_of_init(autoencoder, model, tmp_path, monkeypatch):
    run, data = autoencoder
    expected = BinaryAutoencoder.from_pretrained(run).state_dict()
    official = tmp_path / "ae.pt"
    torch.save({"state_dict": {**expected, "loss.discriminator.weight": torch.ones(3)}}, official)
    exported = tmp_path / "exported"
    exported.mkdir()
    for name in AutoencoderTask.exports:
        shutil.copy(run / name, exported)
    sources = [
        run,
        exported,
        run / "autoencoder.safetensors",
        official,
        model / "model",
        "a/b/c.pt",
    ]
    repository = tmp_path / "repository"
    repository.mkdir()
    shutil.copy(official, repository / "c.pt")
    Hub(tmp_path / "cache", **{"a/b": repository}).install(monkeypatch)
    for number, source in enumerate(sources):
        changed = config(str(data), init=str(source))
        state = _begun(AutoencoderTask(changed), changed, tmp_path / str(number))
        assert all(torch.equal(state[name], expected[name]) for name in expected)


def test_a_model_begins_with_the_weights_of_init(autoencoder, model, tmp_path):
    expected = BitDancePipeline.from_pretrained(model / "model").model.state_dict()
    official = tmp_path / "model.pt"
    alone = {name: value for name, value in expected.items() if not name.startswith("vae.")}
    torch.save({"model": {k: v + 1 for k, v in alone.items()}, "ema": alone}, official)
    for number, source in enumerate([model, model / "model", official]):
        run = model_config(autoencoder[1], autoencoder[0], source)
        state = _begun(ClassConditionalTask(run), run, tmp_path / str(number))
        assert all(torch.equal(state[name], expected[name]) for name in expected)
    shutil.rmtree(tmp_path / "2")
    Trainer(ClassConditionalTask(run), run, tmp_path / "2", progress=False).run(1)
    official.unlink()  # only the beginning needs it
    assert Trainer(ClassConditionalTask(run), run, tmp_path / "2", progress=False).step == 1


def test_initial_weights_that_do_not_fit_are_refused(autoencoder, model, tmp_path):
    run, data = autoencoder
    other = tmp_path / "other.safetensors"
    whole = BitDancePipeline.from_pretrained(model / "model").model.state_dict()
    write_tensors(other, {k: v + k.startswith("vae.") for k, v in whole.items()})
    for changed, message in (
        (model_config(data, run, model, dim=64), r"cls_embedding.* \(\[.*32\], expected \[.*64\]"),
        (model_config(data, run, other), r"on another autoencoder .*\(vae\..* differs\)"),
        (model_config(data, run, run), "unexpected"),
        (model_config(data, run, tmp_path / "no"), r"^init: '.*no' is not a file, a"),
        (model_config(data, run, data), "config.json"),
    ):
        with pytest.raises((CheckpointError, FileNotFoundError), match=message) as caught:
            Trainer(ClassConditionalTask(changed), changed, tmp_path / "new", progress=False)
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"flip": True}, "data.flip must be left out, since .* holds packed codes .*, got True"),
        ({"shift": 2}, "data.shift must be left out, since .* holds packed codes .*, got 2"),
        ({"background": "red"}, "data.background must be left out, .* packed codes .*, got 'red'"),
        ({"on_error": "skip"}, "data.on_error must be left out, .* packed codes .*, got 'skip'"),
        ({"classes": ["x", "y"]}, r"data.classes must be left out, or as .* got \('x', 'y'\)"),
    ],
    ids=str,
)
def test_settings_of_images_are_refused_for_packed_codes(autoencoder, tmp_path, change, message):
    codes = _codes(tmp_path / "codes")
    run = model_config(codes, autoencoder[0], num_classes=2)
    ClassConditionalTask(
        dataclasses.replace(run, data=dataclasses.replace(run.data, classes=("a", "b")))
    )
    with pytest.raises(ValueError, match=message):
        ClassConditionalTask(dataclasses.replace(run, data=dataclasses.replace(run.data, **change)))


@pytest.mark.parametrize("setting", ["background", "on_error", "min_crop"])
def test_settings_of_image_files_are_refused_for_idx_files(autoencoder, setting):
    run = config(str(autoencoder[1]))
    value = {"background": "red", "on_error": "skip", "min_crop": 0.8}[setting]
    data = dataclasses.replace(run.data, **{setting: value})
    with pytest.raises(ValueError, match=f"data.{setting} must be left out, .* holds IDX files"):
        AutoencoderTask(dataclasses.replace(run, data=data))


@pytest.mark.parametrize("size", ["2", "8", "0", "-1", "two", "1.0"])
def test_one_of_several_processes_is_refused(tmp_path, monkeypatch, size):
    monkeypatch.setenv("WORLD_SIZE", size)
    with pytest.raises(RuntimeError, match=rf"World\.from_env\(\) where WORLD_SIZE is '{size}'"):
        start(tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_world_size_of_one_is_accepted(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert start(tmp_path).run() == 0


def _hold(folder, held):
    lock = FolderLock(folder)
    held.set()
    time.sleep(600)
    lock.release()


def test_a_folder_that_another_process_trains_in_is_refused_until_it_is_killed(tmp_path):
    held = READY.Event()
    process = READY.Process(target=_hold, args=(tmp_path, held))
    process.start()
    assert held.wait(120)
    try:
        expected = f"^{tmp_path} is in use by another run, process {process.pid} of "
        with pytest.raises(OSError, match=expected):
            start(tmp_path)
        assert names(tmp_path) == {".lock"}
    finally:
        process.kill()
        process.join()
    assert start(tmp_path).run() == 0
    assert ".lock" not in names(tmp_path)


def test_a_folder_is_locked_during_a_run(tmp_path):
    first = start(tmp_path)
    with pytest.raises(OSError, match="is in use by another run"):
        start(tmp_path)
    first.run(2)
    second = start(tmp_path)
    with pytest.raises(OSError, match="is in use by another run"):
        first.run()
    second.run(3)
    with pytest.raises(OSError, match="another process has resumed the run meanwhile"):
        first.run()
    second.run()  # its own lock again
    del first, second
    forgotten = start(tmp_path)
    del forgotten
    assert start(tmp_path).step == 4


def test_a_refused_run_unlocks_the_folder(tmp_path):
    start(tmp_path).run()
    with pytest.raises(ValueError, match=r"optim\.lr"):
        start(tmp_path, lr=1.0)
    assert start(tmp_path).step == 4


class Diverging(Line):
    """Its loss stays finite, and its weight does not."""

    def loss(self, items, draws):
        if len(self.losses) == 4:
            with torch.no_grad():
                self.module.weight.fill_(float("inf"))
            self.losses.append(0.0)
            return self.module.bias.sum(), {}
        return super().loss(items, draws)


def test_weights_that_are_not_finite_are_never_saved(tmp_path):
    with pytest.raises(RuntimeError, match=r"^step 5: weight is not finite; lower optim"):
        start(tmp_path, task=Diverging(), steps=20, save_every=1).run()
    state = checkpoint.newest(tmp_path)
    assert state["step"] == 4
    assert all(value.isfinite().all() for value in state["module"].values())
    assert "line.txt" not in names(tmp_path)


class Unreadable(Line):
    """Its third batch cannot be loaded; it notes in which threads batches are."""

    def __init__(self):
        super().__init__()
        self.threads = []

    def load(self, items, step):
        self.threads.append(threading.current_thread())
        if len(self.threads) == 3:
            raise OSError("photo.png: cannot be read")
        return super().load(items, step)


def test_what_cannot_be_loaded_ends_the_step_that_needs_it(tmp_path):
    task = Unreadable()
    run = start(tmp_path, task=task, save_every=1)
    with pytest.raises(OSError, match=r"photo\.png: cannot be read"):
        run.run()
    assert (run.step, len(task.losses)) == (2, 2)
    assert checkpoint.newest(tmp_path)["step"] == 2
    assert set(task.threads) != {threading.main_thread()}
    assert not any(thread.is_alive() for thread in task.threads if thread.name != "MainThread")


def test_no_batch_is_loaded_beyond_the_last_step(tmp_path):
    loaded = []
    task = Line()
    task.load = lambda items, step: loaded.append(items.tolist()) or items
    start(tmp_path, task=task, accumulate=2, batch_size=4).run(3)
    assert len(loaded) == 6
    assert [len(items) for items in loaded] == [2] * 6


def test_fewer_data_than_a_batch_are_refused(tmp_path):
    message = r"^optim\.batch_size must be at most the data's 8 items, got 16$"
    with pytest.raises(ValueError, match=message):
        start(tmp_path / "run", batch_size=16)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("wrong", [0, -1, 2.5, True, "3", None.__class__])
def test_stop_at_is_an_integer(tmp_path, wrong):
    with pytest.raises((TypeError, ValueError), match=r"^Trainer\.run: stop_at must be an integer"):
        start(tmp_path).run(wrong)
