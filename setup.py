"""Builds the native modules: C++ for the CPU, CUDA C++ where nvcc is; neither needs torch.

Metadata is in pyproject.toml. Environment:

* BITDANCE_BUILD_CUDA: auto (default: when nvcc is found), 0 or 1 (fail without nvcc)
* BITDANCE_CUDA_ARCHS: compute capabilities, default "80 90 100"; the PTX of the last is kept too
* BITDANCE_BUILD_SANITIZE: 1: the CPU module with AddressSanitizer and UBSan, see `make sanitize`;
  thread: with ThreadSanitizer and without OpenMP, which it does not know, see `make tsan`
* BITDANCE_BUILD_COVERAGE: 1: the CPU module counts the lines that run, see `make coverage`
* BITDANCE_BUILD_STRICT: 1: warnings are errors, and so is a module that fails to build (for
  developers)
* CXX, NVCC: the compilers, default c++ / g++ / clang++ and nvcc on the PATH
* V: 1: print the commands

An object is compiled again when its source, a header that it includes or its command has changed.
Where no C++ compiler is found, or a native module fails to build in auto mode, the package installs
without it: the ops run on PyTorch and Triton, and `python -m bitdance_kernels` says what is
missing.
"""

from __future__ import annotations

import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
REPOSITORY = "https://github.com/bitdance-kernels/bitdance"
X86 = platform.machine().lower() in ("x86_64", "amd64")


def setting(name: str, *values: str) -> str:
    """One of the values that a variable of the environment may have; the first where it is unset.

    Raises:
        SystemExit: it has another value.
    """
    value = os.environ.get(name) or values[0]
    if value not in values:
        raise SystemExit(f"{name} must be {', '.join(values[:-1])} or {values[-1]}, got {value!r}")
    return value


STRICT = setting("BITDANCE_BUILD_STRICT", "0", "1") == "1"
SANITIZE = {
    "0": [],
    # Unrolled kernels would compile for half an hour with -O3, with checks of what a scope has
    # left, and with those of pointers that AddressSanitizer makes too. Expensive optimizations:
    # products and sums round once, as sums that must have equal bits ask for.
    "1": (
        "-fsanitize=address,undefined -fno-sanitize-recover=undefined -O1 "
        "-fexpensive-optimizations -g "
        "-fno-sanitize=null,object-size,pointer-overflow,vptr "
        "-fno-sanitize-address-use-after-scope"
    ).split(),
    # -Wno-tsan: fences, which the sanitizer does not see, order nothing that it watches.
    "thread": "-fsanitize=thread -O1 -fopenmp-simd -Wno-tsan -g".split(),
}[setting("BITDANCE_BUILD_SANITIZE", "0", "1", "thread")]
# The counters are atomic, since kernels have threads; -O1 keeps lines apart.
COVERAGE = "--coverage -fprofile-update=atomic -O1 -fexpensive-optimizations".split()
COVERAGE *= setting("BITDANCE_BUILD_COVERAGE", "0", "1") == "1"
# GCC vectorizes the loops only with the last three. Nobody reads the floating-point exception flags
# or errno, but while they count, a loop with a comparison or a square root stays scalar; and the
# branch of a clamped value must not be threaded away, so that both values are computed and blended.
# SiLU takes seven times as long with none of them and twice as long with the first alone.
CXX_FLAGS = "-std=c++17 -O3 -fPIC -fvisibility=hidden".split()
CXX_FLAGS += "-fno-trapping-math -fno-math-errno -fno-thread-jumps".split()
# -Wno-...uninitialized: GCC 12 warns of its own AVX-512 intrinsics.
WARNINGS = "-Wall -Wextra -Wno-unknown-warning-option -Wno-maybe-uninitialized".split()
WARNINGS += "-Wno-uninitialized -Wno-ignored-optimization-argument".split() + ["-Werror"] * STRICT
# Instruction sets by suffix of the file; its functions are called where the processor has them.
ISA_FLAGS = {
    "_avx2": "-mavx2 -mfma -mf16c -mpopcnt".split(),
    "_avx512": "-mavx512f -mavx512bw -mavx512vl -mavx512dq -mfma -mf16c -mpopcnt".split(),
}
ISA_FLAGS["_bitalg"] = [*ISA_FLAGS["_avx512"], "-mavx512bitalg", "-mavx512vpopcntdq"]
ISA_FLAGS["_amx"] = [*ISA_FLAGS["_avx512"], *"-mavx512bf16 -mamx-tile -mamx-bf16".split()]
NVCC_FLAGS = "-std=c++17 -O3 --threads 0 -Xcompiler -fPIC,-Wall,-Wextra,-fvisibility=hidden".split()
NVCC_FLAGS += "-Werror all-warnings -Xptxas -warn-spills,-Werror".split() * STRICT


def find_compiler() -> str | None:
    """The C++ compiler: CXX if set (even if it does not exist), else the first usual name."""
    if "CXX" in os.environ:
        return shutil.which(os.environ["CXX"].split()[0])
    return next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), None)


def find_nvcc() -> str | None:
    """The CUDA compiler, unless BITDANCE_BUILD_CUDA=0."""
    wish = setting("BITDANCE_BUILD_CUDA", "auto", "0", "1")
    if wish == "0":
        return None
    nvcc = shutil.which(os.environ.get("NVCC", "nvcc"))
    if nvcc is None and wish == "1":
        raise SystemExit("BITDANCE_BUILD_CUDA=1, but nvcc was not found")
    return nvcc


def cuda_archs() -> list[str]:
    """Compute capabilities to compile for, such as ["80", "90", "100"]."""
    archs = os.environ.get("BITDANCE_CUDA_ARCHS", "80 90 100").replace(",", " ").split()
    for arch in archs:
        if not re.fullmatch(r"\d{2,3}[af]?", arch):
            raise SystemExit(
                f"BITDANCE_CUDA_ARCHS: {arch!r} is no compute capability like 80 or 90a"
            )
    return archs


def cuda_targets(source: str) -> list[tuple[str, str]]:
    """Pairs (PTX, code) that a .cu file is compiled for, such as ("80", "sm_90").

    * ``x.cu``: every capability of BITDANCE_CUDA_ARCHS. The cards before Blackwell share the PTX of
      the oldest: no source asks for what only some of them have, and Hopper's machine code differs
      in little but how bfloat16 is widened. This saves one of three translations.
    * ``x_sm90.cu``: those from 90 on, all from the PTX of 90, which has clusters and programmatic
      dependent launch.
    * ``x_sm90a.cu``: 90a alone, which has wgmma; nothing else runs it, so no PTX is kept.

    Without a capability that fits, a file with a suffix is compiled for the suffix, since the
    module links its functions; they check the card before they launch.
    """
    suffix = re.search(r"_sm(\d+)(a?)$", Path(source).stem)
    if suffix and suffix[2]:
        return [(f"{suffix[1]}a", f"sm_{suffix[1]}a")]
    archs, oldest, end = cuda_archs(), 80, 100
    if suffix:
        oldest, end = int(suffix[1]), sys.maxsize
        archs = [arch for arch in archs if int(arch.rstrip("af")) >= oldest] or [suffix[1]]
    shared = [arch for arch in archs if arch.isdigit() and oldest <= int(arch) < end]
    ptx = {arch: suffix[1] if suffix else min(shared, key=int) for arch in shared}
    targets = [(ptx.get(arch, arch), f"sm_{arch}") for arch in archs]
    return [*targets, (targets[-1][0], f"compute_{targets[-1][0]}")]


def flags(source: str) -> list[str]:
    """Flags that the name of a source asks for, without include paths."""
    path = Path(source)
    if path.suffix == ".cu":
        gencode = [f"arch=compute_{ptx},code={code}" for ptx, code in cuda_targets(source)]
        return NVCC_FLAGS + [flag for target in gencode for flag in ("-gencode", target)]
    suffix = next(filter(path.stem.endswith, ISA_FLAGS), "")
    isa = ISA_FLAGS.get(suffix, [])
    # What only the linker asks for needs no checks, which take long to compile.
    watched = SANITIZE if not SANITIZE or runs_here(isa) else ["-O0", "-fopenmp-simd"]
    return [*CXX_FLAGS, *isa, *WARNINGS, *watched, *COVERAGE, *["-DBDK_X86"] * X86]


def runs_here(isa: list[str]) -> bool:
    """Whether this processor has the instruction sets of some flags; True where nothing tells."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return True
    line = re.search(r"^flags\s*:(.*)$", text, re.MULTILINE)
    known = set(line[1].replace("_", "").split()) if line else None
    return known is None or all(flag[2:].replace("-", "") in known for flag in isa)


class BuildNative(build_ext):
    """Compiles each source with the flags its name asks for, and links the objects."""

    def finalize_options(self) -> None:
        super().finalize_options()
        self.parallel = True  # both modules at once, so that only one of them has a last file

    def build_extension(self, ext: Extension) -> None:
        try:
            self._build(ext)
        except subprocess.CalledProcessError as error:
            required = ext.name.endswith("_cuda") and os.environ.get("BITDANCE_BUILD_CUDA") == "1"
            if required or STRICT:
                raise SystemExit(f"{ext.name}: {error}") from error
            print(f"warning: {ext.name} is left out, it failed to build: {error}", file=sys.stderr)

    def _build(self, ext: Extension) -> None:
        import pybind11

        begin = time.monotonic()
        cxx, nvcc = find_compiler(), find_nvcc()
        openmp = openmp_flags(cxx)
        # Relative, as the sources are: a copy of the checkout can go on with its objects.
        include = ["-Icsrc", "-Icsrc/include"]
        binding = [f"-I{pybind11.get_include()}", f"-I{sysconfig.get_paths()['include']}"]
        binding += [f'-DBDK_CUDA_ARCHS="{" ".join(cuda_archs())}"']
        # Not self.build_temp: that of pip is new each time, and nothing would be reused.
        tag = f"temp.{self.plat_name}-{sys.implementation.cache_tag}"
        build = Path("build") / tag / ext.name

        def compile_one(source: str) -> bool:
            command = [nvcc] if source.endswith(".cu") else [cxx, *openmp]
            command += [*flags(source), *include, *binding * ("bindings" in Path(source).parts)]
            return compile_object(command, source, build / f"{source}.o")

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            compiled = sum(pool.map(compile_one, ext.sources))
        output = Path(self.get_ext_fullpath(ext.name))
        output.parent.mkdir(parents=True, exist_ok=True)
        # nvcc links its runtime statically, so that the module loads, and can say what is missing,
        # without a CUDA installation.
        link = [nvcc] if ext.name.endswith("_cuda") else [cxx, *openmp, *SANITIZE, *COVERAGE]
        link += ["-undefined", "dynamic_lookup"] * (sys.platform == "darwin")
        run([*link, "-shared", *(f"{build / source}.o" for source in ext.sources), "-o", output])
        what = f"{compiled} of {len(ext.sources)} files compiled"
        if ext.name.endswith("_cuda"):
            what += f" for sm_{', sm_'.join(cuda_archs())}"
        print(f"built {ext.name}: {what}, {time.monotonic() - begin:.0f} s", flush=True)


def compile_object(command: list[str], source: str, target: Path) -> bool:
    """Compile unless `target` is up to date; whether it was compiled."""
    made_by, needed = Path(f"{target}.txt"), Path(f"{target}.d")
    command = [*command, "-MMD", "-MF", str(needed), "-c", source, "-o", str(target)]
    text = shlex.join(command)
    if target.exists() and made_by.exists() and made_by.read_text() == text:
        files = shlex.split(needed.read_text().replace("\\\n", " ").split(": ", 1)[1])
        made = target.stat().st_mtime
        if all(os.path.exists(file) and os.path.getmtime(file) <= made for file in files):
            return False
    target.parent.mkdir(parents=True, exist_ok=True)
    made_by.unlink(missing_ok=True)
    begin = time.time()
    run(command)
    os.utime(target, (begin, begin))  # a file that is edited meanwhile is newer
    made_by.write_text(text)
    return True


def run(command: list[str | Path]) -> None:
    """Run a compiler; its messages go to the terminal."""
    if os.environ.get("V") == "1":
        print(shlex.join(map(str, command)), flush=True)
    subprocess.run(command, check=True)


def readme() -> str:
    """README.md with absolute links, which work on PyPI too."""

    def absolute(match: re.Match[str]) -> str:
        kind = "raw" if match[2].endswith((".png", ".svg")) else "blob"
        return f"{match[1]}{REPOSITORY}/{kind}/main/{match[2]}"

    text = (ROOT / "README.md").read_text(encoding="utf-8")
    return re.sub(r'(\]\(|(?:src|href)=")(?!\w+:|#)([^)"]+)', absolute, text)


def openmp_flags(cxx: str) -> list[str]:
    """["-fopenmp"] where the compiler has it; without it the kernels use one thread."""
    if "-fsanitize=thread" in SANITIZE:
        return []
    with tempfile.TemporaryDirectory() as folder:
        probe = Path(folder) / "probe.cpp"
        probe.write_text("#include <omp.h>\nint main() { return omp_get_max_threads() < 1; }\n")
        command = [cxx, "-fopenmp", str(probe), "-o", str(Path(folder) / "probe")]
        found = subprocess.run(command, capture_output=True).returncode == 0
    return ["-fopenmp"] if found else []


def extensions() -> list[Extension]:
    """The modules that can be built here."""
    cuda_archs()  # a wrong setting is an error on every machine
    nvcc = find_nvcc()
    if find_compiler() is None:
        print("warning: no C++ compiler, so no native module is built", file=sys.stderr)
        return []
    if nvcc is None:
        print("warning: no nvcc, so the CUDA module is not built", file=sys.stderr)
    modules = []
    for side, pattern in {"cpu": "*.cpp", "cuda": "*.cu"}.items():
        files = [*ROOT.glob(f"csrc/{side}/**/{pattern}"), ROOT / f"csrc/bindings/module_{side}.cpp"]
        sources = sorted(path.relative_to(ROOT).as_posix() for path in files)
        if not X86:
            sources = [name for name in sources if not Path(name).stem.endswith(tuple(ISA_FLAGS))]
        if side == "cpu" or nvcc is not None:
            # Optional: setuptools then copes with a module that BuildNative left out.
            modules.append(Extension(f"bitdance_kernels._{side}", sources, optional=True))
    return modules


if __name__ == "__main__":
    setup(
        ext_modules=extensions(),
        cmdclass={"build_ext": BuildNative},
        long_description=readme(),
        long_description_content_type="text/markdown",
    )
