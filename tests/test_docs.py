"""The documents are true: code blocks run, commands exist, the API reference is complete."""

import doctest
import importlib
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

import bitdance
import bitdance_kernels
from bitdance_kernels._dispatch.op import REGISTRY

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
PAGE = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
FUNCTIONS = [
    name
    for name in bitdance_kernels.__all__
    if not name.startswith("_") and getattr(bitdance_kernels, name).__module__ != "builtins"
]


def _blocks(page, kind):
    return re.findall(rf"```python{kind}\n(.*?)```", page.read_text(), re.DOTALL)


def test_readme_is_short():
    assert len((ROOT / "README.md").read_bytes()) < 9000


def test_readme_has_every_op_with_its_backends():
    table = re.search(r"\n\| op \|.*?\n\n", (ROOT / "README.md").read_text(), re.DOTALL)[0]
    listed = {}
    for names, _, backends in re.findall(r"^\| (`.*?) \| (.*?) \| (.*?) \|$", table, re.MULTILINE):
        for name in re.findall(r"`(\w+)`", names):
            assert name not in listed
            listed[name] = set(backends.split(", ")) - {""}
    registered = {
        name: {backend for order in op.order.values() for backend in order} - {"reference"}
        for name, op in REGISTRY.items()
        if hasattr(bitdance_kernels, name)
    }
    assert listed == registered


@pytest.mark.parametrize("page", ["README.md", "docs/attention.md", "docs/backends.md"])
def test_code_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = _blocks(ROOT / page, "")
    assert blocks
    for block in blocks:
        exec(compile(block, page, "exec"), {})


@PAGE
def test_code_compiles(page):
    """Also what cannot run here, such as a call on a GPU."""
    for block in _blocks(page, "[^\n]*"):
        compile(block, page.name, "exec")


def _identifiers():
    """Names that the pages of the API reference describe."""
    pages = (ROOT / "docs/api").glob("*.md")
    names = [name for page in pages for name in re.findall(r"^::: (\S+)", page.read_text(), re.M)]
    return [name for name in names if name != "bitdance_kernels.testing"]  # a module


@pytest.mark.parametrize("package", [bitdance, bitdance_kernels], ids=lambda p: p.__name__)
def test_reference_has_every_public_name_once(package):
    names = [f"{package.__name__}.{name}" for name in package.__all__ if name != "__version__"]
    described = [name for name in _identifiers() if name.rpartition(".")[0] == package.__name__]
    assert sorted(described) == sorted(names)


def test_every_page_is_in_the_navigation():
    navigation = (ROOT / "mkdocs.yml").read_text()
    for page in (ROOT / "docs").rglob("*.md"):
        assert f": {page.relative_to(ROOT / 'docs')}\n" in navigation, page.name


@pytest.mark.slow
@pytest.mark.nightly
def test_site_is_complete_and_loads_nothing_from_elsewhere(tmp_path):
    """Strict: a page outside the navigation, a dead link or a name without code is an error."""
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", tmp_path]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    pages = {page: page.read_text() for page in tmp_path.rglob("*.html")}
    for page, text in pages.items():
        loaded = re.findall(r"<(?:script|img|iframe)\b[^>]*\bsrc=\"([^\"]+)", text)
        loaded += re.findall(r"<link rel=\"(?:stylesheet|preload|icon)\" href=\"([^\"]+)", text)
        assert loaded
        assert not [url for url in loaded if "//" in url], page
    reference = "".join(text for page, text in pages.items() if "api" in page.parts)
    for name in _identifiers():
        assert f'id="{name}"' in reference, name
    for name in FUNCTIONS:
        entry = reference.split(f'id="bitdance_kernels.{name}"')[1].partition("<h2 ")[0]
        assert inspect.isclass(getattr(bitdance_kernels, name)) or 'class="doc-sig' in entry, name
    assert "pack_signs" in (tmp_path / "search/search_index.json").read_text()


def test_drawings_can_be_made_and_are_there(tmp_path):
    sys.path.insert(0, str(ROOT / "docs"))
    try:
        importlib.import_module("build_drawings").build(tmp_path)
    finally:
        sys.path.pop(0)
    made = {drawing.name for drawing in tmp_path.iterdir()}
    assert made
    assert made <= {drawing.name for drawing in (ROOT / "docs/plots").iterdir()}, "run `make docs`"


@PAGE
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


@PAGE
def test_make_targets_exist(page):
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"(?:^|`)make ([\w-]+)", page.read_text(), re.MULTILINE):
        assert re.search(rf"^(\S+ )*{target}( \S+)*:", makefile, re.MULTILINE), target


def _script(name):
    """A module of docs/."""
    sys.path.insert(0, str(ROOT / "docs"))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.pop(0)


def test_mask_plot_is_up_to_date():
    plot = _script("make_mask_plot")
    assert plot.OUT.read_text() == plot.draw(plot.DOCUMENTS), "run `make docs`"


@pytest.mark.parametrize("name", FUNCTIONS)
def test_docstring_examples(name):
    member = getattr(bitdance_kernels, name)
    if member is bitdance_kernels.CpuGraph and member.unavailable() is not None:
        pytest.skip(member.unavailable())
    tests = doctest.DocTestFinder(recurse=False).find(
        member, name, globs={**vars(bitdance_kernels)}
    )
    for test in tests:
        result = doctest.DocTestRunner().run(test)
        assert result.failed == 0


def test_tour_draws_its_picture(tmp_path):
    out = tmp_path / "new" / "demo.png"
    command = [sys.executable, ROOT / "examples/tour.py", "--out", out]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    assert "10.0% of the bits" in done.stdout or re.search(
        r"\b(9|10)\.\d% of the bits", done.stdout
    )
    assert out.read_bytes().startswith(b"\x89PNG")
