"""A run resumes from the earlier checkpoint if the newest one is damaged in any way."""

import os
import re
import shutil
import zipfile

import pytest
import torch

from bitdance.io.files import CheckpointError
from bitdance.training import checkpoint
from bitdance.training.initial_weights import load_initial_weights
from tests.model.training.test_training import autoencoder_config, data, final, trainer  # noqa: F401

NEWEST = "checkpoint-00000008.pt"


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):  # noqa: F811
    """A run of eight steps with checkpoints of steps 4 and 8."""
    folder = tmp_path_factory.mktemp("run")
    config = autoencoder_config(data, steps=8)
    trainer(config, folder).run()
    return config, folder


@pytest.fixture
def copied(run, tmp_path):
    config, folder = run
    shutil.copytree(folder, tmp_path / "copy")
    return config, tmp_path / "copy"


def change(edit):
    def damage(path):
        state = torch.load(path, weights_only=True)
        edit(state)
        torch.save(state, path)

    return damage


def replace(content):
    return lambda path: torch.save(content, path)


def byte(old, new):
    def damage(path):
        whole = path.read_bytes()
        assert old in whole
        path.write_bytes(whole.replace(old, new))

    return damage


def other(make):
    def damage(path):
        path.unlink()
        make(path)

    return damage


def nested(path):
    """A pickle of nested lists that would need too deep a recursion to load."""
    with zipfile.ZipFile(path) as archive:
        records = {info.filename: archive.read(info) for info in archive.infolist()}
    name = next(name for name in records if name.endswith("data.pkl"))
    records[name] = b"\x80\x02" + b"(" * 200_000 + b"l" * 200_000 + b"."
    with zipfile.ZipFile(path, "w") as archive:
        for key, value in records.items():
            archive.writestr(key, value)


def first(mapping):
    return next(iter(mapping))


DAMAGES = {
    "empty": lambda p: p.write_bytes(b""),
    "cut": lambda p: p.write_bytes(p.read_bytes()[:5000]),
    "zeros": lambda p: p.write_bytes(bytes(p.stat().st_size)),
    "a web page": lambda p: p.write_text("<!DOCTYPE html><p>404"),
    "a flipped bit": lambda p: p.write_bytes(
        (lambda b: b[:9000] + bytes([b[9000] ^ 1]) + b[9001:])(p.read_bytes())
    ),
    "a name that is no text": byte(b"data.pkl", b"data\xff\xfe\xfdl"),
    "nested too deep": nested,
    "a folder": other(lambda p: p.mkdir()),
    "a pipe": other(os.mkfifo),
    "a link to nothing": other(lambda p: p.symlink_to("nowhere")),
    "a device": other(lambda p: p.symlink_to("/dev/zero")),
    "a list": replace([1, 2]),
    "a tensor": replace(torch.ones(3)),
    "only tensors": replace({"w": torch.ones(3)}),
    "another step": change(lambda s: s.update(step=4)),
    "no step": change(lambda s: s.pop("step")),
    "no module": change(lambda s: s.pop("module")),
    "no average": change(lambda s: s.update(average=None)),
    "no optimizer": change(lambda s: s.pop("optimizer")),
    "no sums": change(lambda s: s.pop("sums")),
    "no extra": change(lambda s: s.update(extra=[])),
    "a parameter less": change(lambda s: s["module"].pop(first(s["module"]))),
    "another shape": change(lambda s: s["module"].update({first(s["module"]): torch.ones(1)})),
    "not finite": change(lambda s: s["module"][first(s["module"])].fill_(float("nan"))),
    "an average less": change(lambda s: s["average"].pop(first(s["average"]))),
    "an average not finite": change(lambda s: s["average"][first(s["average"])].fill_(torch.inf)),
    "a moment less": change(lambda s: s["optimizer"]["state"].pop(0)),
    "a moment of another shape": change(
        lambda s: s["optimizer"]["state"][0].update(exp_avg=torch.ones(1))
    ),
    "other groups": change(lambda s: s["optimizer"]["param_groups"].pop()),
    "no groups": change(lambda s: s["optimizer"].pop("param_groups")),
    "fewer sums": change(lambda s: s.update(sums=torch.zeros(1, dtype=torch.float64))),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_newest_checkpoint_falls_back_to_the_earlier_one(copied, damage):
    config, folder = copied
    DAMAGES[damage](folder / NEWEST)
    with pytest.warns(UserWarning, match=rf"{re.escape(NEWEST)}.*; trying the one before") as seen:
        again = trainer(config, folder)
    assert again.step == 4
    assert all("\n" not in str(warning.message) for warning in seen)


def test_the_run_resumes_from_there_with_the_same_result(run, copied):
    config, folder = copied
    (folder / NEWEST).write_bytes(b"")
    with pytest.warns(UserWarning, match="trying the one before"):
        trainer(config, folder).run()
    expected, found = final(run[1]), final(folder)
    for part in ("module", "average"):
        assert all(torch.equal(t, found[part][name]) for name, t in expected[part].items())


def test_a_damaged_later_checkpoint_does_not_count_as_the_newest(tmp_path):
    for step in (1, 2, 3):
        checkpoint.save(tmp_path, step, {}, keep=2)
    (tmp_path / "checkpoint-00000009.pt").write_bytes(b"damaged")
    (tmp_path / "checkpoint-00000000.pt").mkdir()
    checkpoint.save(tmp_path, 4, {}, keep=2)
    kept = sorted(path.name for path in tmp_path.iterdir() if path.is_file())
    assert kept == [f"checkpoint-0000000{step}.pt" for step in (3, 4, 9)]
    with pytest.warns(UserWarning, match="trying the one before"):
        assert checkpoint.newest(tmp_path)["step"] == 4


def test_the_error_names_the_last_problem_if_all_are_damaged(copied):
    config, folder = copied
    for path in folder.glob("checkpoint-*.pt"):
        change(lambda s: s.pop("module"))(path)
    with (
        pytest.warns(UserWarning, match="trying the one before"),
        pytest.raises(
            CheckpointError, match=r"no checkpoint of .* is intact: module must be a Map"
        ),
    ):
        trainer(config, folder)
    with (
        pytest.warns(UserWarning, match="trying the one before"),
        pytest.raises(CheckpointError, match="the checkpoint has no module"),
    ):
        load_initial_weights(torch.nn.Linear(1, 1), str(folder))


def test_leftovers_of_a_killed_run_are_removed_and_nothing_else(copied):
    config, folder = copied
    left = folder / f".{NEWEST}.ab_d0123.bitdance.tmp"
    left.mkdir()
    (left / NEWEST).write_bytes(b"half")
    others = [".notes.tmp", ".something.abcdefgh.bitdance.tmp"]
    for name in others:
        (folder / name).write_text("of somebody else")
    trainer(config, folder)
    assert not left.exists()
    assert all((folder / name).exists() for name in others)
