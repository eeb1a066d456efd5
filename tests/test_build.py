"""Building and packaging: missing tools, flags, what is compiled again, what is shipped."""

import os
import platform
import re
import runpy
import shutil
import subprocess
import sys
import tarfile
import time
import zipfile
from fnmatch import fnmatch
from pathlib import Path

import pytest
import triton
import yaml

import bitdance_kernels
from bitdance_kernels import testing

ROOT = Path(__file__).parent.parent
SETUP = runpy.run_path(str(ROOT / "setup.py"))
NVCC = shutil.which(os.environ.get("NVCC", "nvcc"))
CUOBJDUMP = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"


@pytest.fixture
def checkout(tmp_path):
    """A copy of what a build needs."""
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    for name in ("csrc", "bitdance_kernels", "bitdance"):
        ignore = shutil.ignore_patterns("*.so", "__pycache__", "*.egg-info")
        shutil.copytree(ROOT / name, tmp_path / name, ignore=ignore)
    return tmp_path


def _build(checkout, **environment):
    return subprocess.run(
        [sys.executable, "setup.py", "-q", "build_ext", "--inplace"],
        cwd=checkout,
        env={**os.environ, "BITDANCE_BUILD_STRICT": "0", **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def _modules(checkout):
    return {path.name.split(".")[0] for path in (checkout / "bitdance_kernels").glob("*.so")}


def _report(checkout):
    code = (
        "import bitdance_kernels as bk, torch; "
        "x = torch.ones(8); print(bk.pack_signs(x).item(), bk.explain(bk.pack_signs, x)['cpu'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=checkout,
        env={**os.environ, "PYTHONPATH": str(checkout)},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


def test_without_compiler_and_nvcc(checkout):
    done = _build(checkout, CXX="/hidden/c++", NVCC="/hidden/nvcc")
    assert done.returncode == 0, done.stderr
    assert "no C++ compiler, so no native module is built" in done.stderr
    assert _modules(checkout) == set()
    assert "255 it was not built (no C++ compiler was found at installation)" in _report(checkout)


def test_a_failing_compiler_leaves_the_module_out(checkout):
    broken = checkout / "broken-c++"
    broken.write_text("#!/bin/sh\nexit 1\n")
    broken.chmod(0o755)
    done = _build(checkout, CXX=str(broken), BITDANCE_BUILD_CUDA="0")
    assert done.returncode == 0, done.stderr
    assert "bitdance_kernels._cpu is left out, it failed to build" in done.stderr
    assert _modules(checkout) == set()
    strict = _build(checkout, CXX=str(broken), BITDANCE_BUILD_CUDA="0", BITDANCE_BUILD_STRICT="1")
    assert strict.returncode != 0


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"BITDANCE_BUILD_CUDA": "yes"}, "BITDANCE_BUILD_CUDA must be auto, 0 or 1, got 'yes'"),
        ({"BITDANCE_BUILD_CUDA": "1", "NVCC": "/hidden/nvcc"}, "but nvcc was not found"),
        ({"BITDANCE_BUILD_STRICT": "yes"}, "BITDANCE_BUILD_STRICT must be 0 or 1, got 'yes'"),
        (
            {"BITDANCE_BUILD_SANITIZE": "address"},
            "BITDANCE_BUILD_SANITIZE must be 0, 1 or thread, got 'address'",
        ),
        ({"BITDANCE_BUILD_COVERAGE": "true"}, "BITDANCE_BUILD_COVERAGE must be 0 or 1, got 'true'"),
        ({"BITDANCE_CUDA_ARCHS": "hopper"}, "'hopper' is no compute capability like 80 or 90a"),
    ],
)
def test_wrong_settings_are_refused(checkout, environment, message):
    if shutil.which(os.environ.get("CXX", "c++")) is None:
        environment = {**environment, "CXX": sys.executable}  # any program: nothing is compiled
    done = _build(checkout, **environment)
    assert done.returncode != 0
    assert message in done.stderr


@pytest.mark.skipif(shutil.which("g++") is None, reason="GCC reports which loops it vectorized")
@pytest.mark.skipif(platform.machine() != "x86_64", reason="AVX2")
@pytest.mark.parametrize("op", ["adaln_norm", "gated_residual", "patch_attention", "swiglu"])
def test_loops_over_channels_are_vectorized(op, tmp_path):
    """One that is not takes several times as long, and nothing else tells."""
    folder = ROOT / "csrc"
    command = ["g++", "-c", folder / "cpu" / op / f"{op}_avx2.cpp", "-o", tmp_path / "out.o"]
    command += [f"-I{folder}", f"-I{folder / 'include'}", "-fopenmp", "-fopt-info-vec-optimized"]
    command += [*SETUP["CXX_FLAGS"], *SETUP["ISA_FLAGS"]["_avx2"]]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = re.findall(r"(\w+\.h):(\d+):\d+: optimized: loop vectorized", done.stderr)
    vectorized = {int(line) for name, line in lines if name == f"{op}.h"}
    source = (folder / "cpu" / op / f"{op}.h").read_text(encoding="utf-8").splitlines()
    marked = {n + 2 for n, text in enumerate(source) if text.startswith("#pragma omp simd")}
    assert marked
    for line in marked:  # GCC names the loop or the first of its statements that it kept
        assert vectorized & set(range(line, line + 3)), line


def test_no_source_asks_for_a_card_before_blackwell():
    """They share one PTX, so that what only Hopper has would be left out without a word."""
    for path in (ROOT / "csrc").rglob("*"):
        if path.is_file():
            assert not re.search(r"__CUDA_ARCH__\s*[<>=]", path.read_text()), path


@pytest.mark.parametrize(
    ("source", "archs", "targets"),
    [
        ("x.cu", "80 90 100", "80:sm_80 80:sm_90 100:sm_100 100:compute_100"),
        ("x.cu", "90", "90:sm_90 90:compute_90"),
        ("x.cu", "86,90a", "86:sm_86 90a:sm_90a 90a:compute_90a"),
        ("a/x_sm90.cu", "80 90 100", "90:sm_90 90:sm_100 90:compute_90"),
        ("x_sm90.cu", "80", "90:sm_90 90:compute_90"),
        ("x_sm90.cu", "100 120", "90:sm_100 90:sm_120 90:compute_90"),
        ("x_sm90a.cu", "80 90 100", "90a:sm_90a"),
    ],
)
def test_targets_of_a_cuda_source(source, archs, targets, monkeypatch):
    monkeypatch.setenv("BITDANCE_CUDA_ARCHS", archs)
    assert " ".join(map(":".join, SETUP["cuda_targets"](source))) == targets


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists() or not SETUP["X86"], reason="x86 Linux")
def test_instruction_sets_of_this_processor_are_known():
    if not (known := testing.cpu_isas()):
        pytest.skip("no native module")
    found = {isa for isa in known if isa == "scalar" or _runs_here(f"_{isa}")}
    assert found == set(known)
    assert not SETUP["runs_here"](["-mno-such-set"])
    if "avx512" not in known:
        assert not _runs_here("_avx512")


def _runs_here(suffix):
    return SETUP["runs_here"](SETUP["ISA_FLAGS"][suffix])


def test_what_runs_here_has_the_checks_of_a_sanitizer(monkeypatch):
    code = "import runpy; f = runpy.run_path('setup.py'); print(f['flags']('x.cpp'))"
    code += "; f['flags'].__globals__['runs_here'] = lambda isa: '-mavx512f' not in isa"
    code += "; print(f['flags']('x_avx2.cpp')); print(f['flags']('x_avx512.cpp'))"
    monkeypatch.setenv("BITDANCE_BUILD_SANITIZE", "1")
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    lines = [line for line in done.stdout.splitlines() if line.startswith("['-std")]
    assert ["-fsanitize=address,undefined" in line for line in lines] == [True, True, False]


@pytest.mark.nightly
@pytest.mark.skipif(NVCC is None, reason="nvcc is not installed")
@pytest.mark.parametrize(
    "source", [path.relative_to(ROOT).as_posix() for path in sorted(ROOT.glob("csrc/cuda/**/*.cu"))]
)
def test_every_capability_compiles_without_warnings(source, tmp_path):
    environment = {**os.environ, "BITDANCE_BUILD_STRICT": "1"}
    environment.pop("BITDANCE_CUDA_ARCHS", None)
    code = f"import runpy; print(*runpy.run_path('setup.py')['flags']({source!r}))"
    command = [sys.executable, "-c", code]
    run = {"cwd": ROOT, "env": environment, "text": True, "capture_output": True, "check": False}
    flags = subprocess.run(command, **run).stdout.splitlines()[-1].split()
    assert any("sm_100" in flag for flag in flags)
    includes = ["-Icsrc", "-Icsrc/include"]
    done = subprocess.run([NVCC, *flags, *includes, "-c", source, "-o", tmp_path / "x.o"], **run)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(NVCC is None, reason="nvcc is not installed")
def test_a_source_for_hopper_is_compiled_for_hopper_and_later(tmp_path, monkeypatch):
    """Clusters and dependent launches do not compile from the PTX of the other sources."""
    monkeypatch.setenv("BITDANCE_CUDA_ARCHS", "80 90 100")
    text = """__global__ void kernel(unsigned* out) {
  asm volatile("griddepcontrol.wait;" ::: "memory");
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(out[threadIdx.x]));
  asm volatile("barrier.cluster.arrive.aligned; barrier.cluster.wait.aligned;" ::: "memory");
  asm volatile("griddepcontrol.launch_dependents;");
}
"""
    compile_object, flags = SETUP["compile_object"], SETUP["flags"]
    for name in ("x_sm90.cu", "x.cu"):
        (tmp_path / name).write_text(text)
    source, target = str(tmp_path / "x_sm90.cu"), tmp_path / "x.o"
    assert compile_object([NVCC, *flags(source)], source, target)
    assert not compile_object([NVCC, *flags(source)], source, target)
    command = [CUOBJDUMP, "-lelf", "-lptx", target]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    held = re.findall(r"\.(sm_\d+)\.(cubin|ptx)", printed)
    assert sorted(held) == [("sm_100", "cubin"), ("sm_90", "cubin"), ("sm_90", "ptx")]
    source = str(tmp_path / "x.cu")
    with pytest.raises(subprocess.CalledProcessError):
        compile_object([NVCC, *flags(source)], source, target)


SMALL = {
    "csrc/include/all.h": "",
    "csrc/common/one.h": "",
    "csrc/common/two.h": '#include "common/one.h"\n',
    "csrc/{side}/a/a{suffix}": '#include "all.h"\n#include "common/one.h"\n',
    "csrc/{side}/b/b{suffix}": '#include "common/two.h"\n',
    "csrc/{side}/c/c{suffix}": "",
    "csrc/bindings/module_{side}.cpp": '#include "all.h"\n',
}


@pytest.mark.parametrize("side", ["cpu", pytest.param("cuda", marks=pytest.mark.nightly)])
def test_a_changed_header_compiles_only_what_includes_it(side, tmp_path):
    if shutil.which(os.environ.get("CXX", "c++")) is None or (side == "cuda" and NVCC is None):
        pytest.skip("needs the compiler")
    for name in ("setup.py", "pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "bitdance_kernels").mkdir()
    (tmp_path / "csrc/bindings").mkdir(parents=True)
    (tmp_path / "csrc/bindings/module_cpu.cpp").write_text("")
    for name, text in SMALL.items():
        path = tmp_path / name.format(side=side, suffix=".cu" if side == "cuda" else ".cpp")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    sources = {"a", "b", "c", f"module_{side}"}

    def build(archs="90", **more):
        """Names of the sources that are compiled, and the lines printed."""
        cuda = str(int(side == "cuda"))
        done = _build(tmp_path, BITDANCE_BUILD_CUDA=cuda, BITDANCE_CUDA_ARCHS=archs, **more)
        assert done.returncode == 0, done.stderr
        return {Path(name).stem for name in re.findall(r" -c (\S+)", done.stdout)}, done.stdout

    def changed(header):
        """Make objects newer than their sources, and the header newer than the objects."""
        now = time.time()
        for path in tmp_path.rglob("*.*"):
            age = 1000 if path.suffix == ".o" else 2000
            os.utime(path, (now - age, now - age))
        os.utime(tmp_path / "csrc" / header, (now - 500, now - 500))
        return build(V="1")[0]

    assert build(V="1")[0] == sources | {"module_cpu"}
    printed = build()[1]
    assert re.findall(rf"^built bitdance_kernels._{side}: 0 of 4 files", printed, re.MULTILINE)
    assert len(printed.splitlines()) == (2 if side == "cuda" else 1)  # one for each module
    assert changed("common/one.h") == {"a", "b"}
    if side == "cpu":
        assert changed("common/two.h") == {"b"}
        assert changed("include/all.h") == {"a", "module_cpu"}
        assert build(archs="100", V="1")[0] == {"module_cpu"}  # whose command names them


def _backend(folder, call):
    """Call a hook of the build backend; returns the file that it wrote."""
    code = f"from setuptools import build_meta; print(build_meta.{call})"
    environment = {**os.environ, "CXX": "/hidden/c++", "NVCC": "/hidden/nvcc"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder, env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return folder / done.stdout.splitlines()[-1]


_MADE = ("__pycache__", "build", "*.egg-info")  # in a checkout that was installed from


def _files(*folders):
    return {
        path.relative_to(ROOT).as_posix()
        for folder in folders
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and path.suffix not in (".pyc", ".so")
        if not any(fnmatch(part, made) for part in path.relative_to(ROOT).parts for made in _MADE)
    }


def test_distributions_of_the_kernels_and_the_model_layer(checkout):
    """The source has all that a build needs, the wheel all that runs; neither has models."""
    for name in ("MANIFEST.in", "constraints.txt", "CHANGELOG.md"):
        shutil.copy(ROOT / name, checkout)
    with tarfile.open(_backend(checkout, "build_sdist('.')")) as archive:
        source = {name.partition("/")[2] for name in archive.getnames()}
    packages = _files("bitdance_kernels", "bitdance")
    assert packages | _files("csrc") | {"setup.py", "constraints.txt", "LICENSE"} <= source
    with zipfile.ZipFile(_backend(checkout, "build_wheel('.')")) as archive:
        wheel = {name for name in archive.namelist() if ".dist-info/" not in name}
        (metadata,) = (name for name in archive.namelist() if name.endswith("/METADATA"))
        page = archive.read(metadata).decode()
    assert wheel == packages
    assert f"\nProject-URL: Homepage, {SETUP['REPOSITORY']}\n" in page
    links = re.findall(r"\]\(([^)]*)\)", page) + re.findall(r'(?:src|href)="([^"]*)"', page)
    assert len(links) > 5
    assert all(link.startswith(("https://", "#")) for link in links), links
    assert not [name for name in source if "bitdance_models" in name]


def test_distribution_of_the_models(tmp_path):
    """Pure, complete and of the version that the library's extra asks for."""
    folder = tmp_path / "bitdance_models"
    shutil.copytree(ROOT / "bitdance_models", folder, ignore=shutil.ignore_patterns(*_MADE))
    wheel = _backend(folder, "build_wheel('.')")
    version = bitdance_kernels.__version__
    assert wheel.name == f"bitdance_models-{version}-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert held == _files("bitdance_models") - {"bitdance_models/pyproject.toml"}
    assert f'models = ["bitdance-models=={version}", ' in (ROOT / "pyproject.toml").read_text()


def test_citation_names_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == bitdance_kernels.__version__
    assert citation["repository-code"] == SETUP["REPOSITORY"]


@pytest.mark.parametrize(
    "path", [*ROOT.glob(".github/**/*.yml"), ROOT / ".pre-commit-config.yaml"], ids=lambda p: p.name
)
def test_configuration_of_services_is_yaml(path):
    """Every job has steps, and the commands are those of the project."""
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    for job in content.get("jobs", {}).values():
        assert job["runs-on"]
        assert all(("run" in step) != ("uses" in step) for step in job["steps"])


def test_workflows_run_what_ci_runs():
    commands = set(re.findall(r"^make (\S+)$", (ROOT / ".ci/run").read_text(), re.MULTILINE))
    jobs = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())["jobs"]
    run = {step["run"] for job in jobs.values() for step in job["steps"] if "run" in step}
    run |= {f"make {command}" for command in jobs["test"]["strategy"]["matrix"]["command"]}
    assert {f"make {command}" for command in commands} <= run


def test_pre_commit_has_the_versions_of_the_constraints():
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    constraints = (ROOT / "constraints.txt").read_text()
    for tool, repository in {
        "ruff": "ruff-pre-commit", "clang-format": "mirrors-clang-format", "codespell": "codespell"
    }.items():  # fmt: skip
        (rev,) = (r["rev"] for r in hooks if r["repo"].endswith(f"/{repository}"))
        assert f"\n{tool}=={rev.removeprefix('v')}\n" in constraints
