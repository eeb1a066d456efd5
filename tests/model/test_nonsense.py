"""Damaged or invalid files and settings are refused in one line and with little work."""

import copy
import functools
import gzip
import json
import os
import pickle
import resource
import struct
import zipfile

import pytest
import torch
from safetensors.torch import save_file

from bitdance import BitDancePipeline
from bitdance.cli.main import main
from bitdance.io import files, weights
from bitdance.io.files import CheckpointError
from bitdance.io.weights import read_weights
from bitdance.models.loading.model_folder import open_folder
from tests.model.helpers.tiny import tiny_config, tiny_pipeline

NONSENSE = {
    "null": None, "true": True, "text": "abc", "number as text": "6", "empty text": "",
    "negative": -5, "zero": 0, "half": 0.5, "huge": 10**7, "2^40": 2**40, "2^62": 2**62,
    "more than a float": 10**400, "infinity": float("inf"), "NaN": float("nan"), "list": [],
    "list of nulls": [None, 1, []], "many": [1] * 100_000, "mapping": {"a": {"b": 1}},
    "surrogate": "\ud800", "zero byte": "a\0b",
}  # fmt: skip


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    tiny_pipeline().save_pretrained(folder)
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    for path in saved.iterdir():
        os.link(path, tmp_path / path.name)
    return tmp_path


def put(folder, text):
    (folder / "config.json").unlink()
    (folder / "config.json").write_bytes(text if isinstance(text, bytes) else text.encode())


def refusal(call):
    """The error of a refused call, which must be one line; "" if it is not refused."""
    try:
        call()
    except CheckpointError as error:
        message = str(error)
    else:
        return ""
    assert "\n" not in message
    assert 0 < len(message) < 2500
    return message


def places(content, path=()):
    for key, value in content.items():
        yield (*path, key)
        if isinstance(value, dict):
            yield from places(value, (*path, key))


CONTENT = {
    "format": "", "weights": {"file": "", "sha256": ""}, "classes": [], "steps": 1,
    "model": tiny_config().to_dict(),
}  # fmt: skip
SAME = {  # what says the same as before, or nothing about the network
    ("classes",): {"list"},
    ("model", "time_shift"): {"half", "huge", "2^40", "2^62"},
    ("model", "P_mean"): {"negative", "zero", "half", "huge", "2^40", "2^62"},
    ("model", "P_std"): {"zero", "half", "huge", "2^40", "2^62"},
    ("model", "cfg_scale"): {"negative", "zero", "half", "huge", "2^40", "2^62"},
    ("model", "perturb_rate"): {"zero", "half"},
    ("model", "class_dropout_prob"): {"zero", "half"},
}


@pytest.mark.parametrize("place", [*places(CONTENT)], ids=".".join)
def test_every_key_refuses_every_nonsense_value(folder, place):
    content = json.loads((folder / "config.json").read_text())
    accepted = set()
    for name, value in NONSENSE.items():
        changed = copy.deepcopy(content)
        parent = changed
        for key in place[:-1]:
            parent = parent[key]
        assert place[-1] in parent
        parent[place[-1]] = value
        put(folder, json.dumps(changed))
        # What is known to be taken is not loaded each time.
        load = open_folder if name in SAME.get(place, ()) else BitDancePipeline.from_pretrained
        if not refusal(functools.partial(load, folder)):
            accepted.add(name)
    assert accepted == SAME.get(place, set())


@pytest.mark.parametrize("place", [*places(CONTENT)], ids=".".join)
def test_missing_and_unknown_keys_are_refused(folder, place):
    content = json.loads((folder / "config.json").read_text())
    parent = content
    for key in place[:-1]:
        parent = parent[key]
    parent[place[-1] + "_"] = parent[place[-1]]
    put(folder, json.dumps(content))
    assert f"{place[-1]}_" in refusal(lambda: BitDancePipeline.from_pretrained(folder))


def test_huge_sizes_in_a_configuration_cost_nothing(folder):
    """Modules and memory are not allocated for sizes that the file does not have."""
    content = json.loads((folder / "config.json").read_text())
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    built = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "bitdance.models.class_conditional.BitDanceModel.__init__",
            lambda *_, **__: built.append(1),
        )
        for key, value in (
            ("n_layer", 4000), ("diff_layers", 4000), ("diff_adanln_layers", 4000),
        ):  # fmt: skip
            changed = copy.deepcopy(content)
            changed["model"][key] = value
            put(folder, json.dumps(changed))
            message = refusal(lambda: BitDancePipeline.from_pretrained(folder))
            assert f"({key} says 4000, the file has" in message
        for key, value in (("ch_mult", [1] * 9), ("num_res_blocks", 4000)):
            changed = copy.deepcopy(content)
            changed["model"]["autoencoder"][key] = value
            put(folder, json.dumps(changed))
            assert f"(autoencoder.{key} says" in refusal(
                lambda: BitDancePipeline.from_pretrained(folder)
            )
    assert built == []
    for key in ("num_classes", "dim", "diff_dim", "resolution", "cls_token_num"):
        changed = copy.deepcopy(content)
        changed["model"][key], changed["classes"] = 2**16, []
        put(folder, json.dumps(changed))
        assert "of another shape" in refusal(lambda: BitDancePipeline.from_pretrained(folder))
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 100_000, "KiB"


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000, '{"a":' * 100_000, '{"a":' + "9" * 5000 + "}", b"\xff\xfe", b"", "null", "{",
        '{"format": "bitdance-1"}', '{"format": ["bitdance-1"]}', '{"format": NaN}', '"bitdance-1"',
    ],
    ids=range(11),
)  # fmt: skip
def test_files_that_are_not_a_configuration(folder, capsys, text):
    put(folder, text)
    assert refusal(lambda: BitDancePipeline.from_pretrained(folder))
    assert main(["info", str(folder)]) == 1
    printed = capsys.readouterr()
    assert printed.err.count("\n") == 1
    assert "Traceback" not in printed.err


def state():
    return {"a.weight": torch.arange(6.0).view(2, 3), "a.bias": torch.ones(2)}


def test_weights_are_compared_with_a_checksum_beside_them(tmp_path):
    path = tmp_path / "x.safetensors"
    save_file(state(), path)
    sums = tmp_path / "x.safetensors.sha256"
    whole, digest = path.read_bytes(), files.sha256(path)
    for text in (
        f"{digest}  x.safetensors\n", f"{digest.upper()} *x.safetensors\n", digest,
        f"{'0' * 64}  other.safetensors\n{digest}  ./x.safetensors\n",
        f"SHA256 (x.safetensors) = {digest}\n",
    ):  # fmt: skip
        sums.write_text(text)
        path.write_bytes(whole)
        assert set(read_weights(path)) == set(state())
        for byte in range(len(whole) - 30, len(whole), 7):
            path.write_bytes(whole[:byte] + bytes([whole[byte] ^ 1]) + whole[byte + 1 :])
            with pytest.raises(CheckpointError, match=r"x\.safetensors is altered: its checksum"):
                read_weights(path)
    path.write_bytes(whole)
    for text in ("", "no checksum", f"{digest}  other.safetensors\n", f"{digest[:-1]}\n"):
        sums.write_text(text)
        with pytest.raises(CheckpointError, match=r"must have the SHA-256 of x\.safetensors"):
            read_weights(path)
    sums.write_bytes(b"\xff\xfe")
    with pytest.raises(CheckpointError, match="is not a file of checksums"):
        read_weights(path)
    for content in (state(), {"b": torch.ones(3)}):
        weights.write_tensors(path, content)
        assert sums.read_text() == f"{files.sha256(path)}  x.safetensors\n"
        assert set(read_weights(path)) == set(content)


def test_a_killed_write_leaves_weights_that_can_be_read(tmp_path, monkeypatch):
    """The checksum of the earlier file would make the new one look altered."""
    path = tmp_path / "x.safetensors"
    weights.write_tensors(path, state())
    for broken, expected in (("publish", set(state())), ("write_text", {"b"})):
        with monkeypatch.context() as patch:
            patch.setattr(weights, broken, lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
            with pytest.raises(KeyboardInterrupt):
                weights.write_tensors(path, {"b": torch.ones(3)})
        assert set(read_weights(path)) == expected


def test_info_prints_the_checksum(folder, capsys):
    (file,) = folder.glob("model-*.safetensors")
    for source in (folder, file):
        assert main(["info", str(source), "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["sha256"] == files.sha256(file)
    assert main(["info", str(folder)]) == 0
    assert files.sha256(file) in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["pt", "safetensors"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not a complete"),
        (b"<!DOCTYPE html>\n<html>404", "is a web page, not a checkpoint"),
        (b"\n  <html><body>sign in", "is a web page, not a checkpoint"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "is a Git LFS pointer"),
        (b"PK\x03\x04" + bytes(90), "is not a complete"),
        (gzip.compress(b"x" * 100, mtime=0), "is not a complete"),
        (pickle.dumps({"a": 1}), "is not a complete"),
        (b"\x80" + bytes(60), "is not a complete"),
        (bytes(3000), "is not a complete"),
        (b'{"a": 1}', "is not a complete"),
    ],
)
def test_other_files_in_place_of_a_checkpoint_are_named(tmp_path, kind, content, message):
    path = tmp_path / f"x.{kind}"
    path.write_bytes(content)
    assert message in refusal(lambda: read_weights(path))


def header(content):
    content = content if isinstance(content, bytes) else json.dumps(content).encode()
    return struct.pack("<Q", len(content)) + content


F32 = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
HEADERS = {
    "10 GB": struct.pack("<Q", 10 << 30) + b"{}",
    "2^63": struct.pack("<Q", 2**63) + b"{",
    "no JSON": header(b"{{{{"),
    "not UTF-8": header(b'{"\xff": 1}'),
    "nested": header(b'{"a":' * 50_000),
    "overflow": header({"a": {**F32, "shape": [2**62, 4], "data_offsets": [0, 0]}}),
    "holes": header({"a": {**F32, "data_offsets": [32, 36]}}) + bytes(64),
    "negative": header({"a": {**F32, "shape": [-1]}}) + bytes(4),
    "unknown dtype": header({"a": {**F32, "dtype": "F33"}}) + bytes(4),
    "too few bytes": header({"a": F32}) + bytes(3),
    "too many bytes": header({"a": F32}) + bytes(5),
    "twice the same bytes": header({"a": F32, "b": F32}) + bytes(4),
}  # fmt: skip


@pytest.mark.parametrize("kind", HEADERS)
def test_invalid_headers(tmp_path, kind):
    path = tmp_path / "x.safetensors"
    path.write_bytes(HEADERS[kind])
    assert "is not a complete safetensors file" in refusal(lambda: read_weights(path))


TENSORS = {
    "sparse": torch.eye(2, 3).to_sparse(),
    "sparse CSR": torch.eye(2, 3).to_sparse_csr(),
    "meta": torch.empty(2, 3, device="meta"),
    "quantized": torch.quantize_per_tensor(torch.ones(2, 3), 0.1, 0, torch.quint8),
    "complex": torch.ones(2, 3, dtype=torch.complex64),
    "bool": torch.ones(2, 3, dtype=torch.bool),
    "integers": torch.ones(2, 3, dtype=torch.int32),
    "nested": torch.nested.nested_tensor([torch.ones(1), torch.ones(2)]),
    "far more than the file": torch.zeros(1).expand(2**20, 2**20),
    "more than there is": torch.zeros(1).expand(2**40),
    "another shape": torch.ones(3, 2),
    "not finite": torch.full((2, 3), torch.inf),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "older"])
@pytest.mark.parametrize("kind", TENSORS)
def test_tensors_that_cannot_be_weights_are_refused(tmp_path, kind, zipped):
    path = tmp_path / "x.pt"
    content = {"model": {**state(), "a.weight": TENSORS[kind]}}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    module = torch.nn.ModuleDict({"a": torch.nn.Linear(3, 2)})
    before = copy.deepcopy(module.state_dict())
    message = refusal(lambda: weights.load_weights(module, read_weights(path), "x.pt"))
    assert "a.weight" in message or (kind == "nested" and message)
    assert all(torch.equal(t, before[name]) for name, t in module.state_dict().items())


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "older"])
def test_tensors_with_other_layouts_are_read(tmp_path, zipped):
    path = tmp_path / "x.pt"
    for laid_out in (
        state()["a.weight"].T.contiguous().T, torch.arange(6.0).expand(2, 6)[:, :3],
        torch.arange(12.0).view(2, 6)[:, ::2], torch.nn.Parameter(state()["a.weight"]),
    ):  # fmt: skip
        torch.save({"w": laid_out}, path, _use_new_zipfile_serialization=zipped)
        assert torch.equal(read_weights(path)["w"], laid_out)


def archive(path, records, **options):
    with zipfile.ZipFile(path, "w", **options) as file:
        for name, data in records.items():
            file.writestr(name, data)


def test_archives_are_not_inflated(tmp_path, monkeypatch):
    path = tmp_path / "x.pt"
    archive(
        path, {"x/data.pkl": b"\0" * 9, "x/data/0": bytes(1 << 24)},
        compression=zipfile.ZIP_DEFLATED,
    )  # fmt: skip
    assert path.stat().st_size < 1 << 16
    opened = []
    monkeypatch.setattr(zipfile.ZipFile, "open", lambda *args, **_: opened.append(args))
    assert "x/data.pkl in it is compressed" in refusal(lambda: read_weights(path))
    assert opened == []


def test_archives_whose_records_claim_more_than_the_file(tmp_path):
    path = tmp_path / "x.pt"
    torch.save({"model": state()}, path)
    whole = path.read_bytes()
    start = whole.index(b"PK\x01\x02")  # the first record of the directory: both sizes
    claimed = whole[: start + 20] + struct.pack("<II", 2**31, 2**31) + whole[start + 28 :]
    path.write_bytes(claimed)
    assert "it claims" in refusal(lambda: read_weights(path))


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "older"])
def test_a_flipped_bit_gives_no_other_error_or_model(tmp_path, zipped):
    """In the old format, which has no checksums, only values may differ."""
    path = tmp_path / "x.pt"
    torch.save({"model": state()}, path, _use_new_zipfile_serialization=zipped)
    whole, expected = path.read_bytes(), state()
    for byte in range(0, len(whole), 13):
        path.write_bytes(whole[:byte] + bytes([whole[byte] ^ (1 << byte % 8)]) + whole[byte + 1 :])
        read = {}
        refusal(lambda read=read: read.update(read_weights(path)))
        if read and zipped:
            assert all(torch.equal(t, read[name]) for name, t in expected.items())
    for length in range(0, len(whole), 97):
        path.write_bytes(whole[:length])
        assert refusal(lambda: read_weights(path))


@pytest.mark.parametrize("kind", ["pt", "safetensors"])
def test_special_files_are_refused_before_they_are_opened(tmp_path, kind):
    path = tmp_path / f"x.{kind}"
    os.mkfifo(path)
    assert "must be a file, got a pipe" in refusal(lambda: read_weights(path))
    link = tmp_path / f"zero.{kind}"
    link.symlink_to("/dev/zero")
    assert "must be a file, got a pipe" in refusal(lambda: BitDancePipeline.from_pretrained(link))
    broken = tmp_path / f"broken.{kind}"
    broken.symlink_to("nowhere")
    with pytest.raises(FileNotFoundError):
        read_weights(broken)
    (tmp_path / f"f.{kind}").mkdir()
    assert "must be a file, got a folder" in refusal(lambda: read_weights(tmp_path / f"f.{kind}"))
