"""The documents are true: code blocks run, commands exist, the API reference is up to date."""

import doctest
import importlib
import re
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


def test_readme_code_runs():
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert blocks
    for block in blocks:
        exec(compile(block, "README.md", "exec"), {})


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


def test_api_reference_is_up_to_date():
    sys.path.insert(0, str(ROOT / "docs"))
    try:
        build_api = importlib.import_module("build_api")
    finally:
        sys.path.pop(0)
    assert build_api.OUT.read_text() == build_api.build(), "run `make docs`"


@pytest.mark.parametrize("name", FUNCTIONS)
def test_docstring_examples(name):
    member = getattr(bitdance_kernels, name)
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
