import argparse
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn

from bitdance.io import files, weights
from bitdance.io.files import CheckpointError
from bitdance.io.json_files import read_json

ROOT = Path(__file__).parent.parent.parent.parent


def _module():
    module = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
    for tensor in module.state_dict().values():
        if tensor.is_floating_point():
            tensor.normal_()
    return module


@pytest.fixture
def module():
    return _module()


@pytest.fixture
def state(module):
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def _assert_unchanged(module, state):
    for name, tensor in module.state_dict().items():
        assert torch.equal(tensor, state[name]), name


def test_official_training_checkpoint(tmp_path, state):
    """A dict with `model`, `ema` and the training arguments; wrappers leave prefixes."""
    path = tmp_path / "BitDance.pt"
    arguments = argparse.Namespace(lr=6e-4, model="BitDance-B")
    ema = {f"module.{name}": tensor + 1 for name, tensor in state.items()}
    torch.save({"model": state, "ema": ema, "args": arguments, "epoch": 3}, path)
    assert list(weights.read_weights(path)) == list(state)
    assert torch.equal(weights.read_weights(path)["0.weight"], state["0.weight"] + 1)
    read = weights.read_weights(path, prefer="model")
    assert torch.equal(read["0.weight"], state["0.weight"])


def test_only_one_of_model_and_ema(tmp_path, state):
    path = tmp_path / "model.pt"
    torch.save({"model": state}, path)
    assert torch.equal(weights.read_weights(path)["0.weight"], state["0.weight"])


def test_autoencoder_and_bare_state_dicts(tmp_path, state):
    for content in ({"state_dict": state, "epoch": 1}, state):
        path = tmp_path / "ae.pt"
        torch.save(content, path)
        assert list(weights.read_weights(path)) == list(state)
    path = tmp_path / "ae.safetensors"
    safetensors.torch.save_file(state, path)
    read = weights.read_weights(path)
    assert all(torch.equal(read[name], state[name]) for name in state)


class Evil:
    def __init__(self, canary):
        self.canary = canary

    def __reduce__(self):
        return os.mkdir, (str(self.canary),)


def test_a_pickle_with_code_never_runs_it(tmp_path, state):
    canary = tmp_path / "canary"
    path = tmp_path / "evil.pt"
    torch.save({"model": state, "args": Evil(canary)}, path)
    with pytest.raises(CheckpointError, match=r"objects other than tensors \(posix.mkdir\)"):
        weights.read_weights(path)
    path.write_bytes(pickle.dumps({"model": state, "args": Evil(canary)}))  # no archive around it
    with pytest.raises(CheckpointError, match="is not a complete checkpoint file"):
        weights.read_weights(path)
    assert not canary.exists()


def test_an_altered_archive_is_refused(tmp_path, state):
    path = tmp_path / "model.pt"
    torch.save({"model": state}, path)
    whole = bytearray(path.read_bytes())
    start = whole.index(state["0.weight"].numpy().tobytes())
    for byte in range(start, start + 48):
        altered = bytearray(whole)
        altered[byte] ^= 1
        path.write_bytes(altered)
        with pytest.raises(CheckpointError, match=r"is altered: the checksum of .* differs"):
            weights.read_weights(path)


@pytest.mark.parametrize("kind", ["pt", "safetensors"])
def test_truncated_files_are_refused(tmp_path, state, kind):
    path = tmp_path / f"model.{kind}"
    if kind == "pt":
        torch.save({"model": state}, path)
    else:
        safetensors.torch.save_file(state, path)
    whole = path.read_bytes()
    for length in sorted({0, 1, 7, 8, 9, 100, len(whole) // 2, len(whole) - 1}):
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match=rf"model\.{kind} is not a complete"):
            weights.read_weights(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([torch.zeros(2)], "must be a dict of tensors, got a list"),
        ({"epoch": 3, "lr": 0.1}, "has no tensors; its keys are epoch, lr"),
        ({"model": {}}, "has no tensors"),
    ],
)
def test_files_without_weights(tmp_path, content, message):
    path = tmp_path / "model.pt"
    torch.save(content, path)
    with pytest.raises(CheckpointError, match=message):
        weights.read_weights(path)


def test_not_a_checkpoint(tmp_path):
    for name in ("picture.pt", "picture.safetensors"):
        path = tmp_path / name
        path.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(100))
        with pytest.raises(CheckpointError, match=rf"{name} is not a complete"):
            weights.read_weights(path)
    with pytest.raises(FileNotFoundError, match=r"no such file: .*missing.pt"):
        weights.read_weights(tmp_path / "missing.pt")
    with pytest.raises(ValueError, match="prefer must be 'ema' or 'model', got 'best'"):
        weights.read_weights(tmp_path / "model.pt", prefer="best")


def test_loading_is_all_or_nothing(module, state):
    target = _module()
    weights.load_weights(target, state, "a test")
    _assert_unchanged(target, state)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_eight_bit_floats_are_checked_for_nan(dtype):
    values = torch.tensor([1.0, -2.0]).to(dtype)
    assert weights.is_finite(values)
    values[1] = float("nan")
    assert not weights.is_finite(values)


def test_every_problem_is_reported_at_once(module, state):
    target = _module()
    before = {name: tensor.clone() for name, tensor in target.state_dict().items()}
    del state["0.bias"]
    state["extra"] = torch.zeros(1)
    state["0.weight"] = torch.zeros(3, 5)
    state["1.weight"] = torch.tensor([1.0, float("nan"), 2.0])
    state["1.num_batches_tracked"] = torch.tensor(0.5)
    with pytest.raises(CheckpointError) as caught:
        weights.load_weights(target, state, "model.pt")
    message = str(caught.value)
    assert message.startswith("model.pt does not fit Sequential, nothing was loaded; ")
    for part in (
        "1 missing: 0.bias",
        "1 unexpected: extra",
        "1 of another shape: 0.weight ([3, 5], expected [3, 4])",
        "1 of another kind: 1.num_batches_tracked (torch.float32, expected torch.int64)",
        "1 not finite: 1.weight",
    ):
        assert part in message
    _assert_unchanged(target, before)


def test_each_missing_renamed_or_invalid_tensor_is_refused(state):
    target = _module()
    before = {name: tensor.clone() for name, tensor in target.state_dict().items()}
    for name, tensor in state.items():
        spoiled = [
            {k: v for k, v in state.items() if k != name},
            {(k + "_" if k == name else k): v for k, v in state.items()},
            {**state, name: tensor.unsqueeze(0)},
        ]
        if tensor.is_floating_point():
            spoiled.append({**state, name: torch.full_like(tensor, float("inf"))})
        for tensors in spoiled:
            with pytest.raises(CheckpointError):
                weights.load_weights(target, tensors, "a test")
            _assert_unchanged(target, before)


def test_half_precision_checkpoints_are_cast(state):
    target = _module()
    half = {k: v.half() if v.is_floating_point() else v for k, v in state.items()}
    weights.load_weights(target, half, "a test")
    assert target[0].weight.dtype == torch.float32
    assert torch.equal(target[0].weight, half["0.weight"].float())


def test_writing_replaces_the_file_atomically(tmp_path, state):
    path = tmp_path / "model.safetensors"
    path.write_text("old")
    weights.write_tensors(path, state)
    assert set(weights.read_weights(path)) == set(state)
    names = ["model.safetensors", "model.safetensors.sha256"]
    assert sorted(p.name for p in tmp_path.iterdir()) == names
    assert path.stat().st_mode & 0o777 == 0o666 & ~files.umask()


def test_a_process_removes_once_what_killed_ones_have_left_where_it_writes(tmp_path):
    left, living = (tmp_path / f".{n}.json.abcd_f01.bitdance.tmp" for n in ("config", "other"))
    for folder in (left, living):
        folder.mkdir()
        (folder / "config.json").write_text("{")
    (tmp_path / ".notes.tmp").write_text("of somebody else")
    with files.locked(living):
        files.write_text(tmp_path / "metrics.json", "{}")
    assert {p.name for p in tmp_path.iterdir()} == {living.name, ".notes.tmp", "metrics.json"}
    files.write_text(tmp_path / "metrics.json", "[]")
    assert living.exists(), "a folder of thousands of files is listed once"


def test_a_file_of_checksums_has_a_limit(tmp_path, state):
    weights.write_tensors(tmp_path / "w.safetensors", state)
    with (tmp_path / "w.safetensors.sha256").open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(CheckpointError, match="has 1099511627776 bytes, too many for a file of ch"):
        weights.read_weights(tmp_path / "w.safetensors")


def test_a_file_that_is_replaced_meanwhile_is_read_once_more(tmp_path, state, monkeypatch):
    """A writer replaces the file between the reader's look at its checksum and at itself."""
    path = tmp_path / "w.safetensors"
    weights.write_tensors(path, state)
    other = {name: tensor + 1 for name, tensor in state.items()}
    digest, replaced = weights.sha256, []

    def meanwhile(file):
        if not replaced:
            replaced.append(file)
            weights.write_tensors(path, other)
        return digest(file)

    monkeypatch.setattr(weights, "sha256", meanwhile)
    read = weights.read_weights(path)
    assert replaced == [path]
    assert all(torch.equal(read[name], tensor) for name, tensor in other.items())


def test_a_damaged_file_without_a_checksum_is_read_once(tmp_path, monkeypatch):
    path = tmp_path / "w.pt"
    path.write_bytes(b"nothing of a checkpoint")
    read, calls = weights.read_pickle, []
    monkeypatch.setattr(weights, "read_pickle", lambda file: (calls.append(file), read(file))[1])
    with pytest.raises(CheckpointError):
        weights.read_weights(path)
    assert calls == [path]


def test_a_folder_that_cannot_be_opened_leaves_the_error_of_its_file(tmp_path, state, monkeypatch):
    """Its files can be read, by their names, though it cannot be listed or locked."""
    path = tmp_path / "w.safetensors"
    weights.write_tensors(path, state)
    path.write_bytes(path.read_bytes()[:-1])
    monkeypatch.setattr(os, "access", lambda folder, mode: folder != tmp_path)
    monkeypatch.setattr(files, "locked", lambda folder: pytest.fail("it was locked"))
    with pytest.raises(CheckpointError, match="its checksum differs from"):
        weights.read_weights(path)


def test_an_altered_file_is_refused_though_it_is_read_twice(tmp_path, state):
    path = tmp_path / "w.safetensors"
    weights.write_tensors(path, state)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match="its checksum differs from"):
        weights.read_weights(path)


def test_a_broken_link_to_checksums_is_not_taken_for_none(tmp_path, state):
    weights.write_tensors(tmp_path / "w.safetensors", state)
    sums = tmp_path / "w.safetensors.sha256"
    sums.unlink()
    assert set(weights.read_weights(tmp_path / "w.safetensors")) == set(state)
    for target in ("moved.sha256", sums.name):
        sums.symlink_to(target)
        with pytest.raises(FileNotFoundError, match=r"no such file: .*\.sha256"):
            weights.read_weights(tmp_path / "w.safetensors")
        sums.unlink()


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "config.json"
    path.write_text("old")

    def fail():
        with files.replace_file(path) as temporary:
            temporary.write_text("new")
            raise RuntimeError("no")

    with pytest.raises(RuntimeError):
        fail()
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["config.json"]


def test_folders_and_missing_folders_are_refused(tmp_path, state):
    with pytest.raises(OSError, match="exists and is not a file"):
        weights.write_tensors(tmp_path, state)
    with pytest.raises(FileNotFoundError):
        weights.write_tensors(tmp_path / "nowhere" / "model.safetensors", state)


# In a process of its own, which may write files of few bytes and no more: so a full disk fails.
SMALL_DISK = """
import resource, signal, sys
from pathlib import Path
import torch
from bitdance.io import files, weights
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
path, limits = Path(sys.argv[1]), map(int, sys.argv[2:])
for limit in limits:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try:
        weights.write_tensors(path, {"x": torch.zeros(100_000)})
    except OSError:
        print(limit, path.read_text(), *(p.name for p in path.parent.iterdir()))
"""


def test_a_full_disk_leaves_nothing_half_written(tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_text("old")
    limits = ["0", "1000", "100000"]
    done = subprocess.run(
        [sys.executable, "-c", SMALL_DISK, str(path), *limits],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.stdout.splitlines() == [f"{n} old model.safetensors" for n in limits], done.stderr


def test_json_files(tmp_path):
    path = tmp_path / "config.json"
    files.write_text(path, '{"a": 1}')
    assert read_json(path) == {"a": 1}
    for text, message in (("{", "is not JSON"), ("[1]", "must be a JSON object, got list")):
        path.write_text(text)
        with pytest.raises(CheckpointError, match=message):
            read_json(path)


def test_a_module_on_the_meta_device_gets_memory(state):
    with torch.device("meta"):
        target = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
    weights.load_weights(target, state, "a test")
    _assert_unchanged(target, state)
    assert target[0].weight.requires_grad
    assert target[0].weight.data_ptr() != state["0.weight"].data_ptr()
    with torch.device("meta"):
        target = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
    half = {k: v.half() if v.is_floating_point() else v for k, v in state.items()}
    weights.load_weights(target, half, "a test")
    assert target[0].weight.dtype == torch.float32
