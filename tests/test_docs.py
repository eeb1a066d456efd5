"""The documents are true: code blocks run, commands exist, the API reference is up to date."""

import doctest
import importlib
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import bitdance_kernels

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
PAGE = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
FUNCTIONS = [
    name
    for name in bitdance_kernels.__all__
    if not name.startswith("_") and getattr(bitdance_kernels, name).__module__ != "builtins"
]


def _blocks(page, kind):
    return re.findall(rf"```python{kind}\n(.*?)```", page.read_text(), re.DOTALL)


@pytest.mark.parametrize("page", ["README.md", "docs/backends.md"])
def test_code_runs(page):
    blocks = _blocks(ROOT / page, "")
    assert blocks
    for block in blocks:
        exec(compile(block, page, "exec"), {})


@PAGE
def test_code_compiles(page):
    """Also what cannot run here, such as a call on a GPU; signatures of api.md are not code."""
    if page.name != "api.md":
        for block in _blocks(page, "[^\n]*"):
            compile(block, page.name, "exec")


@pytest.mark.slow
def test_site_has_every_page(tmp_path):
    """`make docs` builds it; a page that is not in the navigation cannot be found."""
    navigation = (ROOT / "mkdocs.yml").read_text()
    for page in (ROOT / "docs").glob("*.md"):
        assert f": {page.name}\n" in navigation, page.name
    shutil.copytree(ROOT / "docs", tmp_path / "docs")
    shutil.copy(ROOT / "mkdocs.yml", tmp_path)
    command = [sys.executable, "-m", "zensical", "build", "--strict"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "site/binary/index.html").exists()


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


def test_api_reference_is_up_to_date():
    build_api = _script("build_api")
    assert build_api.OUT.read_text() == build_api.build(), "run `make docs`"


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
