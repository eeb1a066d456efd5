"""C++ kernels in threads, under ThreadSanitizer.

The C++ module is built with ``-fsanitize=thread``, and with loops divided among threads of C++ in
place of OpenMP's, whose order GCC's sanitizer does not see; every loop is divided, however small.
Four Python threads make the same calls with the same tensors at a time, each in an order of its own
and with 1 to 8 threads of the kernels; the results have the bits that they have alone. A first run
with a planted race (ranges of neighbours overlap by one item) must be reported. PyTorch and Python
are not instrumented: races inside of them are not seen, and OpenMP's own loop is not what runs.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from tests.emulated import CXX, SETARCH
from tests.reliability.promise import Promise

__all__ = ["PROMISES", "build", "compile_program", "measure", "races", "run_calls"]

PROMISES = (
    Promise(
        "calls of C++ kernels in threads",
        "ThreadSanitizer finds no race in C++ kernels called from several threads",
        2000,
        "calls",
        "nightly",
    ),
)
ROOT = Path(__file__).parents[2]
THREADS = Path(__file__).parent / "threads"
_COPIED = ("bitdance_kernels", "csrc", "tests", "setup.py", "pyproject.toml", "README.md")
_KERNELS = ("adaln_norm/adaln_norm", "bit_counts/bit_counts", "common/isa", "common/halves")
_RACES_FOUND = 66  # exit status


def build(folder: Path) -> Path:
    """Build the C++ module with ThreadSanitizer in a copy of the checkout.

    What an earlier build has compiled there is used again.

    Args:
        folder: where the copy is kept.

    Returns:
        `folder`.

    Raises:
        subprocess.CalledProcessError: the module does not compile.
    """
    for name in _COPIED:
        source, target = ROOT / name, folder / name
        if source.is_dir():
            unwanted = shutil.ignore_patterns("*.so", "__pycache__")
            shutil.copytree(source, target, ignore=unwanted, dirs_exist_ok=True)
        else:
            shutil.copy2(source, target)
    shutil.copy2(THREADS / "cpu/common/parallel.h", folder / "csrc/cpu/common/parallel.h")
    environment = {
        **os.environ, "BITDANCE_BUILD_SANITIZE": "thread", "BITDANCE_BUILD_CUDA": "0",
        "BITDANCE_BUILD_STRICT": "1",
    }  # fmt: skip
    command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    subprocess.run(command, cwd=folder, env=environment, check=True)
    return folder


def run_calls(folder: Path, calls: int, *, planted: bool = False) -> tuple[int, list[str]]:
    """Run calls with the module that ``build`` has built.

    Args:
        folder: of the build.
        calls: minimum of calls.
        planted: whether ranges of neighbouring threads overlap.

    Returns:
        The number of calls, 0 if the process did not come to its end; and the races found.

    Raises:
        RuntimeError: the process ended by anything else than a race.
    """
    compiler = CXX or "c++"
    runtime = subprocess.run(
        [compiler, "-print-file-name=libtsan.so"], capture_output=True, text=True, check=True
    ).stdout.strip()
    options = f"exitcode={_RACES_FOUND} ignore_noninstrumented_modules=1 report_signal_unsafe=0"
    environment = {
        **os.environ, "LD_PRELOAD": runtime, "TSAN_OPTIONS": options, "PYTHONPATH": ".",
        "OMP_NUM_THREADS": "1", "TRITON_INTERPRET": "0",
    }  # fmt: skip
    environment.pop("BDK_PLANTED_RACE", None)
    if planted:
        environment["BDK_PLANTED_RACE"] = "1"
    command = [sys.executable, "-m", "tests.reliability.thread_calls", str(calls)]
    done = _run([*_fixed_addresses(), *command], environment, folder)
    found = re.search(r"calls: (\d+)", done.stdout)
    reported = races(done.stderr)
    if done.returncode != 0 and not reported and not planted:
        raise RuntimeError(done.stderr)
    return int(found[1]) if found else 0, reported


def compile_program(folder: Path) -> Path:
    """Compile threads/program.cpp, some scalar kernels without Python, with ThreadSanitizer."""
    program = folder / "program"
    sources = [THREADS / "program.cpp", *(ROOT / f"csrc/cpu/{name}.cpp" for name in _KERNELS)]
    include = [f"-I{path}" for path in (THREADS, ROOT / "csrc", ROOT / "csrc/include")]
    options = ["-std=c++17", "-O1", "-g", "-fsanitize=thread", "-fopenmp-simd"]
    subprocess.run([CXX or "c++", *options, *include, *sources, "-o", program], check=True)
    return program


def run_program(program: Path, *, planted: bool = False) -> tuple[int, list[str]]:
    """Exit status of the program and the races found."""
    environment = {**os.environ, **({"BDK_PLANTED_RACE": "1"} if planted else {})}
    done = _run([*_fixed_addresses(), str(program)], environment, program.parent)
    return done.returncode, races(done.stderr)


def races(output: str) -> list[str]:
    """Places of the races that ThreadSanitizer tells of, each once."""
    return sorted(set(re.findall("SUMMARY: ThreadSanitizer: (data race .*)", output)))


def _run(
    command: list[str], environment: dict[str, str], folder: Path
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, env=environment, cwd=folder, capture_output=True, text=True, check=False
    )


def _fixed_addresses() -> list[str]:
    """With randomized addresses the sanitizer refuses to start on some Linux kernels."""
    return [SETARCH, "-R"] if SETARCH else []


def measure(scale: float) -> dict[str, float]:
    """Calls in threads without a race, at least ``2000 * scale``; see ``Measure``."""
    folder = build(ROOT / "build" / "tsan")
    _, planted = run_calls(folder, 40, planted=True)
    if not planted:
        raise AssertionError("thread_sanitizer: a planted race is not reported")
    calls, found = run_calls(folder, round(PROMISES[0].goal * scale))
    if found:
        raise AssertionError("thread_sanitizer: " + "\n".join(found))
    if calls == 0:
        raise AssertionError("thread_sanitizer: the calls did not come to their end")
    return {PROMISES[0].name: calls}


def main() -> None:
    """Build, run everything, and say what was found."""
    for name, value in measure(1).items():
        print(f"{name}: {value:.0f}")


if __name__ == "__main__":
    main()
