"""Any wrong command line ends with one line of error, and nothing is written."""

import argparse
import errno
import io
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

import bitdance.cli.info
import bitdance.cli.main
from bitdance.cli.errors import explain
from bitdance.cli.main import main
from bitdance.pipelines.class_conditional import BitDancePipeline
from tests.forked import READY
from tests.model.helpers.tiny import tiny_pipeline

ROOT = Path(__file__).parent.parent.parent.parent
COMMANDS = [
    "generate", "sample", "reconstruct", "info", "export", "train", "tokenize", "evaluate",
    "metrics", "bench",
]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model, an image, and files that are neither."""
    folder = tmp_path_factory.mktemp("cli")
    tiny_pipeline().save_pretrained(folder / "model")
    Image.new("RGB", (16, 16)).save(folder / "picture.png")
    (folder / "empty").mkdir()
    (folder / "nothing").touch()
    (folder / "bytes.toml").write_bytes(b"\xff\xfe\0\1")
    (folder / "bytes.pt").write_bytes(b"\xff\xfe\0\1")
    (folder / "bytes.safetensors").write_bytes(b"\xff" * 100)
    (folder / "run.toml").write_text(
        '[data]\npath = "empty"\nsize = 8\n[optim]\nsteps = 200\n'
        "[autoencoder]\nch = 32\nch_mult = [1, 1]\nz_channels = 8\nnum_codebooks = 1\n"
    )
    return folder


STEPS = ("0", "-1", "2.5", "²", "", "1e400", "9" * 5000, "nan", "True")
USAGE = [  # exit status 2
    *(["--num-inference-steps", text] for text in STEPS),
    ["--num-images", "0"], ["--num-images", "1e12"], ["--batch-size", "0"], ["--batch-size", "x"],
    ["--zoom", "0"], ["--zoom", "-3"],
    *(["--guidance-scale", text] for text in ("nan", "inf", "x", "")),
    ["--seed", "1.5"], ["--seed", "x"], ["--seed", ""], ["--seed", "²"],
    ["--out", ""], ["--out", " "], ["--model", ""], ["--autoencoder", ""], ["--class", ""],
    ["--bits", ""], ["--dtype", "int8"], ["--guidance-schedule", "cosine"], ["--device", ""],
    ["--unknown"], ["extra"], ["--class"],
]  # fmt: skip
REFUSED = [  # exit status 1, and what is in the line
    (["--seed", "-1"], "seed must be"),
    (["--seed", "18446744073709551616"], "seed must be"),
    (["--class", "²"], "class must be"),
    (["--class", "-1"], "class must be"),
    (["--class", "5"], "class must be"),
    (["--class", "1.5"], "class must be"),
    (["--class", "dragon"], "class must be"),
    (["--class", "all", "0"], "class must be"),
    (["--device", "xyz"], "--device must be cpu, cuda or cuda:N, got 'xyz'"),
    (["--device", "mps"], "--device must be cpu, cuda or cuda:N, got 'mps'"),
    (["--device", "meta"], "--device must be cpu, cuda or cuda:N, got 'meta'"),
    (["--device", "cuda:-1"], "--device must be cpu, cuda or cuda:N"),
    (["--device", "cuda:99999999999"], "--device must be cpu, cuda or cuda:N"),
    (["--device", "cuda:99"], "CUDA devices here"),
    (["--num-images", "99999999"], "--num-images must give at most 10000000 images"),
    (["--num-images", "9999999"], "would have 31628 x 31618 pixels; give a folder"),
    (["--zoom", "2048", "--out", "x.webp"], "x.webp would have 16384 x 16384 pixels"),
    (["--zoom", "99999999"], "pixels; give a folder, or lower --num-images or --zoom"),
    (["--model", "nowhere"], "is not a file, a folder or a repository id"),
    (["--model", "empty"], "config.json"),
    (["--model", "nothing"], "nothing"),
    (["--model", "bytes.pt"], "bytes.pt"),
    (["--model", "bytes.safetensors"], "bytes.safetensors"),
    (["--model", "picture.png"], "picture.png"),
    (["--autoencoder", "nowhere"], "autoencoder must be left out"),
    (["--out", "nothing/x.png"], "nothing"),
    (["--out", "empty/../picture.png/x.png"], "picture.png"),
    (["--out", "nothing"], "nothing"),
    (["--bits", "empty"], "empty exists and is not a file"),
    (["--bits", "out.png"], "--bits must be another file than --out"),
]


def ended(arguments, capsys):
    """Exit status and text on stderr; unexpected errors are raised."""
    try:
        status = main(arguments)
    except SystemExit as stopped:
        status = stopped.code
    printed = capsys.readouterr()
    assert "Traceback" not in printed.err
    return status, printed.err


def everything(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def _generate(more):
    given = [
        "generate",
        "--model",
        "model",
        "--class",
        "0",
        "--out",
        "out.png",
        "--num-inference-steps",
        "1",
    ]
    return [*given, "--quiet", *more]


@pytest.mark.parametrize("more", USAGE, ids=lambda more: " ".join(more)[:30])
def test_wrong_arguments_are_usage_errors(folder, capsys, monkeypatch, more):
    monkeypatch.chdir(folder)
    before = everything(folder)
    status, errors = ended(_generate(more), capsys)
    assert status == 2
    assert errors.startswith("usage: bitdance")
    assert ": error: " in errors.splitlines()[-1]
    assert "integer value" not in errors  # names of functions are no explanation
    assert len(errors.splitlines()[-1]) < 300
    assert everything(folder) == before


@pytest.mark.parametrize(("more", "message"), REFUSED, ids=lambda x: str(x)[:40])
def test_failures_are_one_line(folder, capsys, monkeypatch, more, message):
    monkeypatch.chdir(folder)
    before = everything(folder)
    status, errors = ended(_generate(more), capsys)
    assert status == 1
    assert errors.startswith("bitdance generate: error: ")
    assert message in errors
    assert errors.count("\n") == 1
    assert everything(folder) == before


@pytest.mark.parametrize(
    "arguments",
    [
        ["info", "nowhere"], ["info", "nothing"], ["info", "bytes.pt"], ["info", "empty"],
        ["export", "--model", "model", "--out", "nothing"],
        ["export", "--model", "nowhere", "--out", "new"],
        ["reconstruct", "--model", "model", "nowhere.png", "--out", "new"],
        ["reconstruct", "--model", "model", "bytes.pt", "--out", "new"],
        ["reconstruct", "--model", "model", "empty", "--out", "new"],
        ["reconstruct", "--model", "model", "picture.png", "--out", "nothing"],
        ["reconstruct", "--model", "model", "picture.png", "--background", "no color"],
        ["train", "autoencoder", "nowhere.toml", "--out", "new"],
        ["train", "autoencoder", "empty", "--out", "new"],
        ["train", "autoencoder", "bytes.toml", "--out", "new"],
        ["train", "autoencoder", "picture.png", "--out", "new"],
        ["train", "autoencoder", "run.toml", "--out", "new"],
        ["train", "autoencoder", "run.toml", "--out", "nothing"],
        ["train", "autoencoder", "run.toml", "--out", "new", "--set", "optim.steps=2.5"],
        ["train", "autoencoder", "run.toml", "--out", "new", "--set", "nonsense"],
        ["train", "autoencoder", "run.toml", "--out", "new", "--set", "a=1", "--set", "a=2"],
        ["train", "autoencoder", "run.toml", "--out", "new", "--device", "cuda:99"],
        ["train", "autoencoder", "run.toml", "--out", "new", "--data", "nowhere"],
        ["train", "autoencoder", "run.toml", "--out", "new", "--data", "5"],
        ["train", "autoencoder", "run.toml", "--out", "new", "--data", "x", "--set", "data.path=y"],
        ["train", "model", "run.toml", "--out", "new"],
        ["train", "model", "run.toml", "--out", "new", "--autoencoder", "x"],
        ["tokenize", "nowhere", "--autoencoder", "empty", "--size", "8", "--out", "new"],
        ["tokenize", "empty", "--autoencoder", "empty", "--size", "8", "--out", "new"],
        ["sample", "--model", "nowhere", "--out", "new"],
        ["sample", "--model", "model", "--out", "nothing"],
        ["sample", "--model", "model", "--out", "empty/../model"],
        ["sample", "--model", "model", "--class", "dragon", "--out", "new"],
        ["sample", "--model", "model", "--seed", "-1", "--out", "new"],
        ["evaluate", "nowhere", "--model", "model", "--out", "new"],
        ["evaluate", "empty", "--model", "model", "--out", "nothing"],
        ["bench", "--model", "model", "--out", "speed.xyz"],
        ["bench", "--model", "nowhere", "--out", "new.svg"],
        ["bench", "--model", "model", "--out", "nothing/new.svg"],
        ["generate", "--class", "0", "--model", "a/b\udcff", "--out", "new.png"],
        ["generate", "--class", "\udcff", "--model", "model", "--out", "new.png"],
        ["generate", "--class", "0", "--model", "model", "--out", "x" * 300 + ".png"],
        ["generate", "--class", "0", "--model", "m" * 5000, "--out", "new.png"],
    ],
    ids=lambda arguments: " ".join(arguments).encode("ascii", "replace").decode()[:60],
)  # fmt: skip
def test_every_command_ends_with_one_line(folder, capsys, monkeypatch, arguments):
    monkeypatch.chdir(folder)
    before = everything(folder)
    status, errors = ended(arguments, capsys)
    assert status == 1
    assert errors.startswith(f"bitdance {arguments[0]}: error: ")
    assert errors.count("\n") == 1
    assert "(unexpected" not in errors
    assert everything(folder) == before


def test_numbers_in_any_notation(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(folder)
    found = []
    for seed, steps, out in (("1000", "1", "a.png"), ("1e3", "1.0", "b.png")):
        given = [
            "--seed",
            seed,
            "--num-inference-steps",
            steps,
            "--out",
            str(tmp_path / out),
            "--class",
            "1.0",
        ]
        assert main(["generate", "--model", "model", "--quiet", *given[:-1], "1"]) == 0
        found.append((tmp_path / out).read_bytes())
    assert found[0] == found[1]


@pytest.mark.parametrize("command", COMMANDS)
def test_help_hides_empty_defaults(capsys, command):
    kinds = [[command]]
    if command == "train":
        kinds = [[command, kind] for kind in ("autoencoder", "model", "text-to-image")]
    for arguments in kinds:
        with pytest.raises(SystemExit) as stopped:
            main([*arguments, "--help"])
        assert stopped.value.code == 0
        text = capsys.readouterr().out
        for nothing in ("None", "False", "[]"):
            assert f"(default: {nothing})" not in text
        if command != "info":
            assert "(default: cpu)" in text or command == "train"
    if command == "generate":
        assert "random seed, 0 to 2^64 - 1 (default: 0)" in " ".join(text.split())
        assert " ".join(text.split()).count("default: the model's own") == 5


def test_every_argument_of_every_command_has_a_strict_type():
    def check(parser):
        for action in parser._actions:
            if isinstance(action, argparse._SubParsersAction):
                for command in action.choices.values():
                    check(command)
            elif action.nargs != 0:
                assert action.type not in (None, int, float, str, Path), action.dest

    check(bitdance.cli.main._parser())


class Ascii(io.TextIOWrapper):
    """A stream that accepts ASCII only."""

    def __init__(self):
        super().__init__(io.BytesIO(), encoding="ascii", errors="strict")

    def text(self):
        self.flush()
        return self.buffer.getvalue().decode()


@pytest.mark.parametrize("command", [[], *([name] for name in COMMANDS)])
def test_ascii_terminals_get_help(monkeypatch, command):
    out = Ascii()
    monkeypatch.setattr(sys, "stdout", out)
    with pytest.raises(SystemExit) as stopped:
        main([*command, "--help"])
    assert stopped.value.code == 0
    assert "usage: bitdance" in out.text()
    if command == ["evaluate"]:
        assert r"Fr\xe9chet" in out.text()


def test_ascii_terminals_get_names_and_tables(folder, tmp_path, monkeypatch):
    pipeline = tiny_pipeline()
    names = ("stövel", "靴", *pipeline.classes[2:])
    BitDancePipeline(pipeline.model, names, num_inference_steps=1).save_pretrained(
        tmp_path / "größe"
    )
    out, err = Ascii(), Ascii()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    monkeypatch.chdir(tmp_path)
    assert main(["info", "größe"]) == 0
    assert "gr\\xf6\\xdfe" in out.text()
    given = ["generate", "--model", "größe", "--quiet"]
    assert main([*given, "--class", "靴", "--out", "bilder ü.png"]) == 0
    assert r"bilder \xfc.png" in out.text()
    assert main([*given, "--class", "höhe"]) == 1
    assert r"h\xf6he" in err.text()
    assert (tmp_path / "bilder ü.png").is_file()


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "x"), "No space left on device: 'x'"),
        (PermissionError(errno.EACCES, "Permission denied", "x"), "Permission denied: 'x'"),
        (ValueError("of\ntwo\n  lines"), "error: of two lines"),
        (MemoryError(), "out of memory, try less at a time (--batch-size, --size)"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried"), "out of memory, try less at a time"),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"),
            "out of memory, try less at a time (--batch-size, --size): [enforce fail]",
        ),
        (ImportError("no matplotlib"), "error: no matplotlib"),
        (KeyError("x"), "KeyError: 'x' (unexpected; BITDANCE_DEBUG=1"),
        (RecursionError("too deep"), "error: too deep"),
        (ValueError(), "error: ValueError"),
        (ValueError("x" * 5000), "x..."),
    ],
    ids=lambda value: str(value)[:30],
)
def test_any_error_is_one_line(folder, capsys, monkeypatch, error, line):
    def fail(options):
        raise error

    monkeypatch.setattr(bitdance.cli.info, "run", fail)
    status, errors = ended(["info"], capsys)
    assert status == 1
    assert errors.startswith("bitdance info: error: ")
    assert line in errors
    assert errors.count("\n") == 1
    assert len(errors) < 1100
    monkeypatch.setenv("BITDANCE_DEBUG", "1")
    with pytest.raises(type(error)):
        main(["info"])


def test_interrupts_exit_with_130(capsys, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    for module, name in ((bitdance.cli.info, "run"), (bitdance.cli.main, "_parser")):
        with monkeypatch.context() as patched:
            patched.setattr(module, name, stop)
            assert ended(["info"], capsys) == (130, "stopped\n")


def test_other_errors_are_not_called_out_of_memory():
    assert explain(RuntimeError("out of range")) == "out of range"


def _with_stdout(arguments, kind, results):
    """In a forked process: the exit status that the interpreter would have."""
    if kind == "closed pipe":
        reader, writer = os.pipe()
        os.close(reader)
    else:
        writer = os.open("/dev/full", os.O_WRONLY)
    os.dup2(writer, 1)
    sys.stdout = os.fdopen(1, "w")
    sys.stderr = open(results, "w")  # noqa: SIM115  (the process ends)
    try:
        status = main(arguments)
    except SystemExit as stopped:
        status = stopped.code
    sys.stdout.flush()  # as the interpreter does at its end
    sys.stderr.write(f"status {status}\n")
    sys.stderr.flush()
    os._exit(0)


@pytest.mark.parametrize(
    ("kind", "arguments", "expected"),
    [
        ("closed pipe", ["--help"], "status 0\n"),
        ("closed pipe", ["info", "--json"], "status 141\n"),
        ("full disk", ["info", "--json"],
         "bitdance info: error: [Errno 28] No space left on device\nstatus 1\n"),
    ],
)  # fmt: skip
def test_output_that_nobody_reads(tmp_path, kind, arguments, expected):
    results = tmp_path / "results"
    process = READY.Process(target=_with_stdout, args=(arguments, kind, str(results)))
    process.start()
    process.join(120)
    assert process.exitcode == 0
    assert results.read_text() == expected


def test_ctrl_c_during_imports(tmp_path):
    """A process that stops itself where it imports PyTorch: no traceback of the imports."""
    (tmp_path / "torch.py").write_text(
        "import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(60)\n"
    )
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    process = subprocess.run(
        [sys.executable, "-m", "bitdance.cli", "info"], env={**os.environ, "PYTHONPATH": path},
        capture_output=True, text=True, timeout=120, cwd=tmp_path,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    assert (process.returncode, process.stdout, process.stderr) == (130, "", "stopped\n")


def test_the_package_is_imported_without_pytorch():
    """So that the command line handles Ctrl-C before any slow import."""
    code = (
        "import sys, bitdance, bitdance.cli.__main__\n"
        "assert not {'torch', 'numpy', 'PIL', 'pydantic'} & set(sys.modules)\n"
        "assert set(dir(bitdance)) >= set(bitdance.__all__) == set(bitdance._HOMES)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
    for name in bitdance.__all__:
        assert getattr(bitdance, name) is not None
    with pytest.raises(AttributeError, match="module 'bitdance' has no attribute 'nothing'"):
        bitdance.nothing  # noqa: B018
