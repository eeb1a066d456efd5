"""Draws the folders of both packages and their imports into docs/architecture.md: ``make docs``."""

from __future__ import annotations

import ast
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs/architecture.md"
BEGIN, END = "<!-- drawing -->\n", "<!-- end of drawing -->\n"


def imports(package: Path) -> dict[str, set[str]]:
    """Modules of a package, each with the modules of it that it imports, anywhere in its code."""
    paths = {
        ".".join(path.relative_to(package.parent).with_suffix("").parts).removesuffix(
            ".__init__"
        ): path
        for path in package.rglob("*.py")
    }
    arrows: dict[str, set[str]] = {}
    for module, path in paths.items():
        arrows[module] = set()
        for node in ast.walk(ast.parse(path.read_text())):
            names: list[str] = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                names = [f"{node.module}.{alias.name}" for alias in node.names]
                names = [name if name in paths else node.module for name in names]
            arrows[module] |= {name for name in names if name in paths and name != module}
        arrows[module].discard(package.name)
    return arrows


def drawing() -> str:
    """Folders as rooms and imports between them as arrows, in Mermaid."""
    arrows: Counter[tuple[str, str]] = Counter()
    for module, imported in imports(ROOT / "bitdance").items():
        folder = module.split(".")[1] if "." in module else ""
        for other in imported if folder else ():
            below = other.split(".")[1]
            arrows[folder, below] += below != folder
    lines = ["```mermaid", "flowchart TD", "  subgraph bitdance"]
    folders = sorted({folder for pair in arrows for folder in pair})
    lines += [f"    {folder}" for folder in folders]
    lines += [f"    {a} --> {b}" for (a, b), count in sorted(arrows.items()) if count]
    lines += ["  end", "  subgraph bitdance_kernels"]
    rooms: dict[str, list[str]] = {}
    for path in sorted((ROOT / "bitdance_kernels").glob("*/*/op.py")):
        rooms.setdefault(path.parent.parent.name, []).append(path.parent.name)
    lines += [f'    {family}["{family}: {", ".join(ops)}"]' for family, ops in rooms.items()]
    lines += ["  end", "  bitdance --> bitdance_kernels", "  bitdance_kernels --> csrc", "```"]
    return "\n".join(lines) + "\n"


def build() -> str:
    """The page with the drawing of today's imports."""
    before, rest = PAGE.read_text().split(BEGIN)
    return before + BEGIN + drawing() + END + rest.split(END)[1]


if __name__ == "__main__":
    PAGE.write_text(build())
    print(f"wrote {PAGE}")
