"""Builds the native modules: C++ for the CPU, CUDA C++ where nvcc is; neither needs torch.

Metadata is in pyproject.toml. Environment:

* BITDANCE_BUILD_CUDA: auto (default: when nvcc is found), 0 or 1 (fail without nvcc)
* BITDANCE_CUDA_ARCHS: compute capabilities, default "80 90 100"; the PTX of the last is kept too
* BITDANCE_BUILD_SANITIZE: 1: the CPU module with AddressSanitizer and UBSan, see `make sanitize`
* BITDANCE_BUILD_STRICT: 1: warnings are errors, and so is a module that fails to build (for
  developers)
* CXX, NVCC: the compilers, default c++ / g++ / clang++ and nvcc on the PATH

Where no C++ compiler is found, or a native module fails to build in auto mode, the package installs
without it: the ops run on PyTorch and Triton, and `python -m bitdance_kernels` says what is
missing.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent
CSRC = ROOT / "csrc"
X86 = platform.machine().lower() in ("x86_64", "amd64")
STRICT = os.environ.get("BITDANCE_BUILD_STRICT") == "1"
SANITIZE = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-g"]
SANITIZE *= os.environ.get("BITDANCE_BUILD_SANITIZE") == "1"
# For good vector loops of GCC. Nobody reads the floating-point exception flags or errno; while they
# count, a loop with a comparison or a square root stays scalar. And the path of a clamped value
# must not be split off: both are then computed and blended. SiLU takes seven times as long with
# neither and twice as long with the first alone.
CXX_FLAGS = [
    "-std=c++17",
    "-O3",
    "-fPIC",
    "-fvisibility=hidden",
    "-fno-trapping-math",
    "-fno-math-errno",
    "-fno-thread-jumps",
]
# -Wno-...: GCC 12 sees its own AVX-512 intrinsics use values they leave undefined on purpose.
WARNINGS = ["-Wall", "-Wextra", "-Wno-unknown-warning-option", "-Wno-maybe-uninitialized"]
WARNINGS += ["-Wno-uninitialized", "-Wno-ignored-optimization-argument"] + ["-Werror"] * STRICT
# Instruction sets by file suffix; a file is only entered where the processor has them.
ISA_FLAGS = {
    "_avx2": ["-mavx2", "-mfma", "-mf16c", "-mpopcnt"],
    "_avx512": [
        "-mavx512f",
        "-mavx512bw",
        "-mavx512vl",
        "-mavx512dq",
        "-mfma",
        "-mf16c",
        "-mpopcnt",
    ],
}
ISA_FLAGS["_bitalg"] = [*ISA_FLAGS["_avx512"], "-mavx512bitalg"]


def find_compiler() -> str | None:
    """The C++ compiler: CXX if set (even if it does not exist), else the first usual name."""
    if "CXX" in os.environ:
        return shutil.which(os.environ["CXX"].split()[0])
    return next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), None)


def find_nvcc() -> str | None:
    """The CUDA compiler, unless BITDANCE_BUILD_CUDA=0."""
    wish = os.environ.get("BITDANCE_BUILD_CUDA", "auto")
    if wish not in ("auto", "0", "1"):
        raise SystemExit(f"BITDANCE_BUILD_CUDA must be auto, 0 or 1, got {wish!r}")
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


class BuildNative(build_ext):
    """Compiles each source with the flags its name asks for, and links with the C++ compiler."""

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

        include = [
            f"-I{CSRC}", f"-I{CSRC / 'include'}", f"-I{CSRC / 'bindings'}",
            f"-I{pybind11.get_include()}", f"-I{self._python_include()}",
        ]  # fmt: skip
        cxx = find_compiler()
        openmp = self._openmp(cxx)
        nvcc = find_nvcc()
        # Not self.build_temp: pip's is another one each time, and nothing would be used again.
        tag = f"temp.{self.plat_name}-{sys.implementation.cache_tag}"
        build = ROOT / "build" / tag / ext.name
        build.mkdir(parents=True, exist_ok=True)
        headers = [*CSRC.rglob("*.h"), *CSRC.rglob("*.cuh"), Path(__file__)]
        newest_header = max(path.stat().st_mtime for path in headers)

        def compile_one(source: str) -> str:
            path = Path(source)
            target = build / (path.name + ".o")
            if path.suffix == ".cu":
                command = [
                    nvcc,
                    "-c",
                    source,
                    "-o",
                    str(target),
                    f"-I{CSRC}",
                    f"-I{CSRC / 'include'}",
                ]
                command += nvcc_flags()
            else:
                command = [
                    cxx,
                    "-c",
                    source,
                    "-o",
                    str(target),
                    *include,
                    *CXX_FLAGS,
                ]
                command += [*WARNINGS, *openmp, *SANITIZE]
                command += [f'-DBDK_CUDA_ARCHS="{" ".join(cuda_archs())}"']
                if X86:
                    command += ["-DBDK_X86"]
                for suffix, flags in ISA_FLAGS.items():
                    command += flags if path.stem.endswith(suffix) else []
            made_by, newest = Path(f"{target}.txt"), max(newest_header, path.stat().st_mtime)
            current = target.exists() and target.stat().st_mtime > newest and made_by.exists()
            if not (current and made_by.read_text() == " ".join(command)):
                run(command)
                made_by.write_text(" ".join(command))
            return str(target)

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            objects = list(pool.map(compile_one, ext.sources))
        output = Path(self.get_ext_fullpath(ext.name))
        output.parent.mkdir(parents=True, exist_ok=True)
        link = [cxx, "-shared", *objects, "-o", str(output), *openmp, *SANITIZE]
        if sys.platform == "darwin":
            link += ["-undefined", "dynamic_lookup"]
        if ext.name.endswith("_cuda"):
            # Static, so that the module loads, and can say what is missing, without a CUDA
            # installation.
            link += [f"-L{cuda_library(nvcc)}", "-lcudart_static", "-ldl", "-lrt", "-lpthread"]
        run(link)

    def _python_include(self) -> str:
        import sysconfig

        return sysconfig.get_paths()["include"]

    def _openmp(self, cxx: str) -> list[str]:
        """["-fopenmp"] where the compiler has it; without it the kernels use one thread."""
        with tempfile.TemporaryDirectory() as folder:
            probe = Path(folder) / "probe.cpp"
            probe.write_text("#include <omp.h>\nint main() { return omp_get_max_threads() < 1; }\n")
            command = [cxx, "-fopenmp", str(probe), "-o", str(Path(folder) / "probe")]
            return (
                ["-fopenmp"] if subprocess.run(command, capture_output=True).returncode == 0 else []
            )


def nvcc_flags() -> list[str]:
    """Flags of every .cu file: all targets, warnings and register spills are errors."""
    archs = cuda_archs()
    flags = [
        "-std=c++17",
        "-O3",
        "--threads",
        "0",
        "-Xcompiler",
        "-fPIC,-Wall,-Wextra,-fvisibility=hidden",
    ]
    flags += ["-Werror", "all-warnings", "-Xptxas", "-warn-spills,-Werror"] if STRICT else []
    # The cards before Blackwell share one translation to PTX, that for the oldest of them: no
    # source asks for what only some have, and Hopper's machine code is nearly the same, mostly but
    # for how bfloat16 is widened. It saves one of three translations.
    shared = [arch for arch in archs if arch.isdigit() and 80 <= int(arch) < 100]
    for arch in archs:
        ptx = min(shared, key=int) if arch in shared else arch
        flags += ["-gencode", f"arch=compute_{ptx},code=sm_{arch}"]
    flags += ["-gencode", f"arch=compute_{ptx},code=compute_{ptx}"]
    return flags


def cuda_library(nvcc: str) -> str:
    """Folder of libcudart_static.a, as nvcc itself names it."""
    listing = subprocess.run([nvcc, "--dryrun", "-o", "x", "x.cu"], capture_output=True, text=True)
    match = re.search(r"LIBRARIES=.*?-L\"?([^\"\s]+)", listing.stderr)
    top = re.search(r"TOP=(\S+)", listing.stderr)
    folders = [match.group(1)] if match else []
    if top:
        folders += [
            f"{top.group(1)}/{name}" for name in ("lib64", "lib", "targets/x86_64-linux/lib")
        ]
    for folder in folders:
        if (Path(folder) / "libcudart_static.a").exists():
            return folder
    raise subprocess.CalledProcessError(1, "looking for libcudart_static.a beside nvcc")


def run(command: list[str | None]) -> None:
    """Run a compiler; its messages go to the terminal."""
    print(" ".join(map(str, command)), flush=True)
    subprocess.run(command, check=True)


def extensions() -> list[Extension]:
    """The modules that can be built here."""
    cuda_archs()  # a wrong setting is an error on every machine
    nvcc = find_nvcc()
    if find_compiler() is None:
        print("warning: no C++ compiler, so no native module is built", file=sys.stderr)
        return []
    sources = sorted((CSRC / "cpu").rglob("*.cpp"))
    if not X86:
        sources = [s for s in sources if not s.stem.endswith(tuple(ISA_FLAGS))]
    modules = [Extension("bitdance_kernels._cpu", [str(s.relative_to(ROOT)) for s in sources])]
    modules[0].sources.append("csrc/bindings/module_cpu.cpp")
    if nvcc is None:
        print("warning: no nvcc, so the CUDA module is not built", file=sys.stderr)
    else:
        sources = sorted((CSRC / "cuda").rglob("*.cu"))
        modules.append(
            Extension("bitdance_kernels._cuda", [str(s.relative_to(ROOT)) for s in sources])
        )
        modules[1].sources.append("csrc/bindings/module_cuda.cpp")
    for module in modules:
        module.optional = True  # setuptools then copes with a module that BuildNative left out
    return modules


setup(ext_modules=extensions(), cmdclass={"build_ext": BuildNative})
