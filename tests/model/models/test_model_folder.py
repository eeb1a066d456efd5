"""A saved model is valid at any moment, and saving replaces or removes nothing else."""

import functools
import itertools
import json
import os
import re
import signal
import sys
import threading
import traceback

import pytest
import torch

from bitdance import BitDancePipeline
from bitdance.cli.main import main
from bitdance.io import files, weights
from bitdance.io.files import CheckpointError
from bitdance.models.loading import model_folder
from tests.forked import READY
from tests.model.helpers.tiny import tiny_config, tiny_pipeline


def filled(value):
    pipeline = tiny_pipeline()
    with torch.no_grad():
        for parameter in pipeline.model.parameters():
            parameter.fill_(value)
    return pipeline


def value_of(folder):
    """The value of all weights in a folder that ``filled`` was saved into."""
    found = {float(end) for p in BitDancePipeline.from_pretrained(folder).model.parameters()
             for end in torch.aminmax(p.detach())}  # fmt: skip
    assert len(found) == 1, found
    return found.pop()


def content(folder):
    return {
        p.name: p.read_bytes() if p.is_file() else None
        for p in folder.iterdir()
    }  # fmt: skip


def own(folder):
    return [p for p in folder.iterdir() if re.fullmatch(r"model-[0-9a-f]{12}\.safetensors", p.name)]


FOREIGN = {
    "Hugging Face": lambda p: p.write_text('{"model_type": "qwen3"}'),
    "another format": lambda p: p.write_text('{"format": "bitdance-2"}'),
    "damaged": lambda p: p.write_text('{"format": "bitdance-1", "weights"'),
    "incomplete": lambda p: p.write_text('{"format": "bitdance-1"}'),
    "a list": lambda p: p.write_text("[]"),
    "empty": lambda p: p.touch(),
    "bytes": lambda p: p.write_bytes(b"\xff\xfe"),
    "a folder": lambda p: p.mkdir(),
    "a link to nothing": lambda p: p.symlink_to("nowhere"),
    "a pipe": os.mkfifo,
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_a_foreign_folder_is_refused_and_unchanged(tmp_path, capsys, kind):
    for name in ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"):
        (tmp_path / name).write_bytes(b"weights of another model")
    FOREIGN[kind](tmp_path / "config.json")
    before = content(tmp_path)
    with pytest.raises(FileExistsError, match="contains something else, nothing was written"):
        tiny_pipeline().save_pretrained(tmp_path)
    assert main(["export", "--model", str(tmp_path / "missing"), "--out", str(tmp_path)]) == 1
    assert "contains something else" in capsys.readouterr().err, "said before the model is loaded"
    assert content(tmp_path) == before


def test_other_files_in_the_folder_stay(tmp_path):
    others = {
        "model-00001-of-00002.safetensors": b"a", "model-new.safetensors": b"b", "notes": b"c",
        "model-0123456789ab.safetensors": b"named as if saved", "model.safetensors": b"d",
        ".model.abcdefgh.tmp": b"e", "model.new.safetensors": b"f",
    }  # fmt: skip
    for name, data in others.items():
        (tmp_path / name).write_bytes(data)
    for value in (1.0, 2.0, 2.0, 3.0):
        filled(value).save_pretrained(tmp_path)
        assert value_of(tmp_path) == value
        found = content(tmp_path)
        assert {name: found.pop(name) for name in others} == others
        assert len(found) == 2, "the configuration and one file of weights"


def test_a_file_of_the_same_name_and_other_content_is_not_replaced(tmp_path):
    filled(1.0).save_pretrained(tmp_path / "a")
    (file,) = own(tmp_path / "a")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / file.name).write_bytes(b"something else")
    with pytest.raises(FileExistsError, match="is another file"):
        filled(1.0).save_pretrained(tmp_path / "b")
    assert content(tmp_path / "b") == {file.name: b"something else"}


def test_a_model_that_could_not_be_loaded_is_not_saved(tmp_path):
    filled(1.0).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="weights must be finite, got others in query_token"):
        filled(float("nan")).save_pretrained(tmp_path)
    assert value_of(tmp_path) == 1.0
    with pytest.raises(ValueError, match="classes must be 5 names, got 4"):
        BitDancePipeline(tiny_pipeline().model, ("a",) * 4)
    for steps in (0, -1, 2.5, float("inf"), 10**30):
        with pytest.raises(ValueError, match="steps must be an integer from 1 to 1000000"):
            BitDancePipeline(tiny_pipeline().model, num_inference_steps=steps)


def test_leftovers_of_a_killed_save_are_removed_by_the_next_one(tmp_path):
    filled(1.0).save_pretrained(tmp_path / "other")
    (orphan,) = own(tmp_path / "other")
    folder = tmp_path / "model"
    folder.mkdir()
    with files.temporary_file(folder / "early"):
        pass  # this process has looked for leftovers there before
    orphan.rename(folder / orphan.name)  # its configuration was not written any more
    for name, half in (("model", b"half"), ("config.json", b"{")):
        (folder / f".{name}.abcd_f01.bitdance.tmp").mkdir()
        (folder / f".{name}.abcd_f01.bitdance.tmp" / name).write_bytes(half)
    with files.temporary_file(folder / "model") as living:
        filled(2.0).save_pretrained(folder)
        assert living.parent.exists(), "its process lives"
        assert len(content(folder)) == 3
    assert value_of(folder) == 2.0
    assert len(content(folder)) == 2


def test_saves_at_once_all_succeed_and_leave_one_model(tmp_path):
    pipelines = [filled(float(i)) for i in range(4)]
    errors, loaded, saving = [], [], threading.Event()
    filled(9.0).save_pretrained(tmp_path)

    def run(work):
        try:
            work()
        except BaseException as error:
            errors.append("".join(traceback.format_exception(error)))

    def read():
        while not saving.is_set():
            loaded.append(value_of(tmp_path))

    def write(pipeline):
        for _ in range(6):
            pipeline.save_pretrained(tmp_path)

    reader = threading.Thread(target=run, args=(read,))
    writers = [threading.Thread(target=run, args=(lambda p=p: write(p),)) for p in pipelines]
    for thread in (reader, *writers):
        thread.start()
    for thread in writers:
        thread.join()
    saving.set()
    reader.join()
    assert errors == []
    assert set(loaded) <= {0.0, 1.0, 2.0, 3.0, 9.0}
    assert value_of(tmp_path) in range(4)
    assert len(content(tmp_path)) == 2


def test_a_reader_whom_a_writer_overtakes_reads_again_without_writers(tmp_path):
    filled(1.0).save_pretrained(tmp_path)
    free = []

    def read():
        found = model_folder.open_folder(tmp_path)
        if not free:
            filled(2.0).save_pretrained(tmp_path)  # removes what was found
        descriptor = files.lock(tmp_path, wait=False)
        free.append(descriptor is not None)
        files.unlock(descriptor)
        files.require_file(found.file)

    files.read_consistently(tmp_path, read)
    assert free == [True, False], "writers can lock the folder; only the second time they wait"
    files.unlock(again := files.lock(tmp_path, wait=False))
    assert again is not None, "they can again"
    assert value_of(tmp_path) == 2.0


def kill(calls, last, event, arguments):
    if (event == "open" or event.startswith("os.")) and next(calls) == last:
        os.kill(os.getpid(), signal.SIGKILL)


def kill_everywhere(folder, results):
    """Save in processes that are killed before each of their file operations in turn."""
    torch.set_num_threads(1)
    earlier, later, outcomes = filled(1.0), filled(2.0), []
    earlier.save_pretrained(folder)
    for killed_before in itertools.count(1):
        child = os.fork()
        if child == 0:
            sys.addaudithook(functools.partial(kill, itertools.count(1), killed_before))
            later.save_pretrained(folder)
            os._exit(0)
        status = os.waitpid(child, 0)[1]
        outcomes.append(value_of(folder))
        earlier.save_pretrained(folder)
        assert value_of(folder) == 1.0
        assert len(content(folder)) == 2, content(folder).keys()
        if status != signal.SIGKILL:
            results.put((status, outcomes))
            return


def test_a_killed_save_leaves_the_earlier_model_or_the_new_one(tmp_path):
    results = READY.SimpleQueue()
    process = READY.Process(target=kill_everywhere, args=(tmp_path, results))
    process.start()
    process.join()
    assert process.exitcode == 0
    status, outcomes = results.get()
    assert status == 0, "the last one reached its end"
    assert outcomes == sorted(outcomes), "the earlier until one call, and then the new one"
    assert outcomes.count(1.0) > 10
    assert outcomes.count(2.0) > 2


def test_a_file_is_synced_before_it_is_renamed_and_its_folder_after_that(tmp_path, monkeypatch):
    events, fsync, replace = [], os.fsync, os.replace

    def note_fsync(descriptor):
        events.append(("fsync", os.fstat(descriptor).st_ino))
        fsync(descriptor)

    def note_replace(source, target):
        events.append(("replace", os.stat(source).st_ino))
        replace(source, target)

    monkeypatch.setattr(os, "fsync", note_fsync)
    monkeypatch.setattr(os, "replace", note_replace)
    monkeypatch.setattr(os, "rename", note_replace)
    steps = (("fsync", "file"), ("replace", "file"), ("fsync", "folder"))
    for write, names in (
        (lambda path: files.write_text(path, "text"), ["x"]),
        (lambda path: weights.write_tensors(path, {"a": torch.ones(3)}), ["x", "x.sha256"]),
    ):
        events.clear()
        write(tmp_path / "x")
        folder = tmp_path.stat().st_ino
        made = [(tmp_path / name).stat().st_ino for name in names]
        assert events == [
            (step, file if of == "file" else folder) for file in made for step, of in steps
        ]
    events.clear()
    filled(1.0).save_pretrained(tmp_path / "m")
    folder = (tmp_path / "m").stat().st_ino
    made = [path.stat().st_ino for path in (*own(tmp_path / "m"), tmp_path / "m" / "config.json")]
    assert events == [
        step for file in made
        for step in (("fsync", file), ("replace", file), ("fsync", folder))
    ]  # fmt: skip


@pytest.mark.parametrize("broken", ["fsync", "replace"])
def test_a_disk_that_fails_leaves_the_earlier_file(tmp_path, monkeypatch, broken):
    path = tmp_path / "x"
    path.write_text("old")

    def fail(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr(os, broken, fail)
    monkeypatch.setattr(os, "rename" if broken == "replace" else broken, fail)
    with pytest.raises(OSError, match="No space left"):
        files.write_text(path, "new")
    assert content(tmp_path) == {"x": b"old"}


def saved(folder):
    tiny_pipeline().save_pretrained(folder)
    return json.loads((folder / "config.json").read_text())


def put(folder, text):
    (folder / "config.json").write_text(text)


def test_the_weights_must_lie_in_the_folder(tmp_path):
    """A valid file outside of the folder is refused."""
    said = saved(tmp_path / "m")
    (file,) = own(tmp_path / "m")
    (tmp_path / "outside").mkdir()
    outside = tmp_path / "outside" / file.name
    outside.write_bytes(file.read_bytes())
    (tmp_path / "m" / "link.safetensors").symlink_to(outside)
    for name in (
        f"../outside/{file.name}", str(outside), f"./{file.name}", f"../m/{file.name}", "", ".",
        "..", "a" * 300, file.name + "\0",
    ):  # fmt: skip
        said["weights"]["file"] = name
        put(tmp_path / "m", json.dumps(said))
        with pytest.raises(CheckpointError):
            BitDancePipeline.from_pretrained(tmp_path / "m")
    said["weights"]["file"] = "link.safetensors"  # as the hub's client stores what it downloads
    put(tmp_path / "m", json.dumps(said))
    assert BitDancePipeline.from_pretrained(tmp_path / "m").config == tiny_config()


def test_names_of_another_number_of_classes_are_refused(tmp_path):
    said = saved(tmp_path)
    for names in (said["classes"][:4], [*said["classes"], "sixth"]):
        put(tmp_path, json.dumps(said | {"classes": names}))
        with pytest.raises(CheckpointError, match=f"must be 5 names, got {len(names)}"):
            BitDancePipeline.from_pretrained(tmp_path)


@pytest.mark.timeout(60)  # whoever opens a pipe waits for ever
@pytest.mark.parametrize("kind", ["a pipe", "a folder", "a device"])
def test_weights_that_are_not_a_file_are_refused(tmp_path, kind):
    said = saved(tmp_path)
    (file,) = own(tmp_path)
    file.unlink()
    {
        "a pipe": os.mkfifo, "a folder": lambda p: p.mkdir(),
        "a device": lambda p: p.symlink_to("/dev/zero"),
    }[kind](file)  # fmt: skip
    with pytest.raises(CheckpointError, match=r"must be a file, got a (pipe|folder)"):
        BitDancePipeline.from_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"must be a file, got a (pipe|folder)"):
        weights.read_weights(file)
    assert said["weights"]["file"] == file.name
