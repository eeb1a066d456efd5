"""``python -m tools.new_op FAMILY NAME``: the skeleton of an op that passes every suite.

It computes y = x^2 in PyTorch, Triton and C++; replace that by the op. ``--without cpu`` (or
``triton``) leaves a backend out.
"""

from __future__ import annotations

import argparse
import bisect
import re
from collections.abc import Callable, Sequence
from pathlib import Path

HERE, ROOT = Path(__file__).parent, Path(__file__).parents[2]
FAMILIES = ("attention", "autoencode", "binary", "denoise")
FILES = {
    "op.py": "bitdance_kernels/FAMILY/NAME/op.py",
    "reference.py": "bitdance_kernels/FAMILY/NAME/reference.py",
    "triton.py": "bitdance_kernels/FAMILY/NAME/triton.py",
    "cpu.py": "bitdance_kernels/FAMILY/NAME/cpu.py",
    "kernel.cpp": "csrc/cpu/NAME/NAME.cpp",
    "case.py": "tests/cases/NAME.py",
    "test.py": "tests/ops/test_NAME.py",
}
BACKENDS = {"triton": ("triton.py",), "cpu": ("cpu.py", "kernel.cpp")}
INIT = "bitdance_kernels/__init__.py"
HEADER = "csrc/include/bitdance_kernels.h"
BINDINGS = "csrc/bindings/module_cpu.cpp"
DECLARATION = """\
// y = x^2 of `rows` rows of `channels` values.
int bdk_{}_cpu(bdk_rows x, bdk_rows y, int64_t rows, int64_t channels, int threads);

"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the files and lines of a new op and say what comes next."""
    parser = argparse.ArgumentParser(prog="python -m tools.new_op", description=__doc__)
    parser.add_argument("family", choices=FAMILIES)
    parser.add_argument("name", help="lower case with underscores")
    parser.add_argument("--without", nargs="+", choices=BACKENDS, default=[])
    parser.add_argument("--root", type=Path, default=ROOT, help="checkout (default: this one)")
    options = parser.parse_args(arguments)
    name, family, root = options.name, options.family, options.root
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        parser.error(f"name must be lower case with underscores, got {name!r}")
    if any((root / f"bitdance_kernels/{other}/{name}").exists() for other in FAMILIES):
        parser.error(f"there is an op {name}")
    files = write(root, family, name, options.without)
    files += enter(root, family, name, cpu="cpu" not in options.without)
    print(*files, sep="\n")
    print("\nNext: make venv (builds), make docs (drawing), python -m tests.offline_compile", name)


def write(root: Path, family: str, name: str, without: Sequence[str]) -> list[str]:
    """The files of the op; returns their paths."""
    paths = [f"bitdance_kernels/{family}/{name}/__init__.py"]
    (root / paths[0]).parent.mkdir()
    (root / paths[0]).write_text(f'"""Package of {name}."""\n')
    order = ", ".join(
        f'"{device}": ({backend}"reference"{"" if backend else ","})'
        for device, name_of in (("cuda", "triton"), ("cpu", "cpu"))
        for backend in ("" if name_of in without else f'"{name_of}", ',)
    )
    for template, path in FILES.items():
        if any(template in BACKENDS[backend] for backend in without):
            continue
        text = (HERE / f"{template}.in").read_text()
        text = text.replace("ORDER", f"{{{order}}}").replace("FAMILY", family).replace("NAME", name)
        paths.append(path.replace("FAMILY", family).replace("NAME", name))
        (root / paths[-1]).parent.mkdir(parents=True, exist_ok=True)
        (root / paths[-1]).write_text(text)
    return paths


def enter(root: Path, family: str, name: str, *, cpu: bool) -> list[str]:
    """The lines of the op in files that there are; returns their paths."""
    module = f"{family}.{name}.op"
    edits: dict[str, Callable[[str], str]] = {
        INIT: lambda text: into_block(
            into_block(text, r'    "[\w.]+": "[\w ]+",\n', f'    "{module}": "{name}",\n'),
            r"    from bitdance_kernels\.[\w.]+ import .*\n",
            f"    from bitdance_kernels.{module} import *\n",
        ),
        "CHANGELOG.md": lambda text: text.replace("\n* ", f"\n* `{name}`: y = x^2.\n* ", 1),
        f"docs/api/{family}.md": lambda text: f"{text}\n::: bitdance_kernels.{name}\n",
        "tests/test_results.py": lambda text: text.replace(
            "}  # fmt: skip\n\n\ndef test_every_op",
            f'    "{name}": (lambda d: bk.{name}(X.to(d)), [((3, 4, 16), GIVEN)]),\n'
            "}  # fmt: skip\n\n\ndef test_every_op",
        ),
    }
    if cpu:
        declaration = DECLARATION.format(name)
        edits[HEADER] = lambda text: re.sub(
            r"(?=#ifdef __cplusplus\n\})", declaration.replace("\\", r"\\"), text, count=1
        )
        edits[BINDINGS] = lambda text: text.replace(
            "\n}\n", f'\n  bind("{name}", bdk_{name}_cpu);\n}}\n', 1
        )
    for path, edit in edits.items():
        before = (root / path).read_text()
        after = edit(before)
        if after == before:
            raise RuntimeError(f"new_op: no place for {name} in {path}")
        (root / path).write_text(after)
    return list(edits)


def into_block(text: str, pattern: str, line: str) -> str:
    """`text` with `line` among the sorted lines that match `pattern`."""
    lines = list(re.finditer(rf"^{pattern}", text, re.MULTILINE))
    i = bisect.bisect([match[0] for match in lines], line)
    at = lines[i].start() if i < len(lines) else lines[-1].end()
    return text[:at] + line + text[at:]


if __name__ == "__main__":
    main()
