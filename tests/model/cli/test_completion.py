"""Scripts for shells, in the shells themselves."""

import os
import pty
import shutil
import subprocess
import sys

import pytest

from bitdance.cli.main import main
from tests.model.helpers.terminal import read_rest

pytest.importorskip("shtab")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder of files to complete, and the scripts in a folder beside it."""
    root = tmp_path_factory.mktemp("completion")
    (root / "here" / "run").mkdir(parents=True)
    (root / "here" / "photo one.png").touch()
    (root / "here" / "recipe.toml").touch()
    return root / "here"


@pytest.fixture
def script(request, folder, capsys):
    """Writes the script of a shell; skips where the shell is not installed."""

    def write(shell):
        if shutil.which(shell) is None:
            pytest.skip(f"{shell} is not installed")
        assert main(["completion", shell]) == 0
        path = folder.parent / shell
        path.write_text(capsys.readouterr().out)
        return path

    return write


CASES = [  # words with the beginning of the last, and what completes it
    ([""], "bench completion demo evaluate export generate info metrics reconstruct sample serve "
     "tokenize train"),
    (["gen"], "generate"),
    (["train", ""], "autoencoder model text-to-image"),
    (["completion", ""], "bash fish zsh"),
    (["generate", "--dt"], "--dtype"),
    (["generate", "--dtype", ""], "bfloat16 float16 float32"),
    (["generate", "--guidance-schedule", "l"], "linear"),
    (["export", "--format", ""], "folder official"),
    (["generate", "--model", "em"], "emoji"),
    (["info", "fa"], "fashion"),
    (["generate", "--model", "r"], "recipe.toml run"),
    (["evaluate", "r"], "recipe.toml run"),
    (["train", "model", "re"], "recipe.toml"),
    (["train", "model", "recipe.toml", "--out", "ru"], "run"),
    (["tokenize", "data", "--autoencoder", "ru"], "run"),
]  # fmt: skip


def names(output):
    """Completions without fish's descriptions and slashes after folders."""
    return sorted(line.split("\t")[0].rstrip("/ ") for line in output.splitlines() if line)


@pytest.mark.parametrize("shell", ["bash", "fish"])
def test_what_completes_a_word(script, folder, shell):
    path = script(shell)
    if shell == "bash":
        lines = [f"source {path}", "function=$(complete -p bitdance | grep -o '_[a-z_]*')"]
        lines += [
            f"COMP_WORDS=(bitdance {' '.join(word or chr(34) * 2 for word in words)}); "
            f'COMP_CWORD={len(words)}; $function; printf "%s\\n" "${{COMPREPLY[@]}}"; echo ---'
            for words, _ in CASES
        ]
        command = ["bash", "--norc", "--noprofile", "-c", "\n".join(lines)]
    else:
        lines = [f"source {path}"]
        lines += [f"complete -C 'bitdance {' '.join(w)}'; echo ---" for w, _ in CASES]
        command = ["fish", "--no-config", "-c", "\n".join(lines)]
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, check=True, timeout=60
    )  # fmt: skip
    assert done.stderr == ""
    found = [names(part) for part in done.stdout.split("---\n")[:-1]]
    assert found == [expected.split() for _, expected in CASES]


def test_bash_completes_in_a_terminal(script, folder):
    """With a space after a choice, a slash after a folder, and a name that has a space."""
    typed = "bitdance recons\tphoto\t--dty\tbf\t--out ru\t\n"
    given = f"PS1=; bitdance() {{ printf '<%s>' \"$@\"; }}; source {script('bash')}\n"
    shown = terminal(["bash", "--norc", "--noprofile", "-i"], given + typed, folder)
    assert "<reconstruct><photo one.png><--dtype><bfloat16><--out><run/>" in shown


def test_zsh_completes_in_a_terminal(script, folder):
    typed = "bitdance recons\tphoto\t--dty\tbf\t--model em\t--out ru\t\n"
    given = (
        "PS1=; autoload -U compinit; compinit -u -D; bitdance() { printf '<%s>' \"$@\" };"
        f'eval "$(< {script("zsh")})"\n'
    )
    shown = terminal(["zsh", "-f", "-i"], given + typed, folder)
    assert "<reconstruct><photo one.png><--dtype><bfloat16><--model><emoji><--out><run>" in shown


def terminal(command, typed, folder):
    """What a shell in a terminal shows when this is typed."""
    main_end, shell_end = pty.openpty()
    environment = {**os.environ, "TERM": "dumb", "HOME": str(folder.parent), "HISTFILE": ""}
    process = subprocess.Popen(
        command, stdin=shell_end, stdout=shell_end, stderr=shell_end, cwd=folder,
        env=environment, start_new_session=True,
    )  # fmt: skip
    os.close(shell_end)
    os.write(main_end, f"{typed}exit\n".encode())
    shown = read_rest(main_end)
    process.wait(60)
    return shown.decode(errors="replace")


def test_without_shtab(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert main(["completion", "bash"]) == 1
    assert capsys.readouterr().err == (
        "bitdance completion: error: completion needs shtab: pip install 'bitdance[completion]'\n"
    )


def test_commands_have_their_short_help(script):
    assert "generate:'generate images of classes or prompts'" in script("zsh").read_text()
