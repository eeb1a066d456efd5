"""Where the library's code reads and writes files, found in its source."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

__all__ = ["READS", "WRITES", "sites"]

_ROOT = Path(__file__).parents[3]

READS = frozenset({
    "read_json", "read_toml", "read_pickle", "read_tensors", "read_weights", "read_checkpoint",
    "read_text", "read_bytes", "safe_open", "load_file", "ParquetFile", "from_file", "memmap",
    "fromfile", "open_image", "ImageArray", "ZipFile", "read_arrays", "FileSystemReader",
})  # fmt: skip
"""Names of functions that read a file."""
WRITES = frozenset({
    "replace_file", "temporary_file", "write_text", "write_bytes", "save_image", "save_array",
    "write_tensors", "save_tensors", "save_file", "StagedFolder", "make_locked_folder", "publish",
    "write_images", "write_index", "savefig", "ParquetWriter", "savez", "write_settings",
    "mkdtemp", "save_tokenizer", "save_release",
})  # fmt: skip
"""Names of functions that write a file."""


def sites(names: frozenset[str], *, modes: str) -> Iterator[str]:
    """ "module.function", or the class, in which one of `names` is called.

    Args:
        names: functions.
        modes: letters of the modes of ``open`` that count too.
    """
    for package in ("bitdance", "bitdance_kernels"):
        for path in sorted((_ROOT / package).rglob("*.py")):
            module = ".".join(path.relative_to(_ROOT).with_suffix("").parts)
            for node in ast.parse(path.read_text(encoding="utf-8")).body:
                if isinstance(node, ast.FunctionDef | ast.ClassDef):
                    calls = (n for n in ast.walk(node) if isinstance(n, ast.Call))
                    if any(_counts(call, names, modes) for call in calls):
                        yield f"{module.removesuffix('.__init__')}.{node.name}"


def _counts(call: ast.Call, names: frozenset[str], modes: str) -> bool:
    function = call.func
    owner = ""
    if isinstance(function, ast.Attribute):
        name = function.attr
        owner = function.value.id if isinstance(function.value, ast.Name) else ""
    else:
        name = function.id if isinstance(function, ast.Name) else ""
    if name in names:
        return True
    if name in ("save", "load") and owner in ("np", "torch", "json", "image"):
        return owner != "json" and (name == "save") == ("w" in modes)
    if name != "open":
        return False
    texts = [a.value for a in call.args if isinstance(a, ast.Constant)]
    flags = {
        node.attr for a in call.args for node in ast.walk(a) if isinstance(node, ast.Attribute)
    }
    if owner == "os":
        return bool(flags & {"O_CREAT", "O_WRONLY"}) == ("w" in modes)
    found = next((t for t in texts if isinstance(t, str) and set(t) <= set("rwxabt+")), "r")
    return bool(set(found) & set(modes))
