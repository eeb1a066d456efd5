"""Writes the kernels in the layout of the Hugging Face ``kernels`` hub.

    python integrations/kernels_hub/build.py --out build/kernels-hub

The folder is a project of ``kernel-builder`` (``build.toml``, ``flake.nix``, ``torch-ext``) and
holds what it would build of it, ``build/torch-cpu`` and ``build/torch-cuda``, which ``kernels``
loads. All is Python and Triton: absolute imports of the package are made relative, and its ops get
a namespace of their own, so that a process may load any number of builds beside the installed
package.
"""

from __future__ import annotations

import argparse
import ast
import base64
import hashlib
import json
import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["build", "main", "relative_imports"]

_HERE = Path(__file__).parent
_ROOT = _HERE.parents[1]
_PACKAGE = "bitdance_kernels"
_NAMESPACE = "_dispatch/namespace.py"
# The package as a program, and what its tests compare with.
_LEFT_OUT = frozenset({"__main__.py", "env_report.py", "testing.py"})
_ID = re.compile(r"[a-z0-9_]+")

_OPS = '''"""The namespace of this build's ops."""

import torch

_NAME = {name!r}
ops = getattr(torch.ops, _NAME)


def add_op_namespace_prefix(op_name: str) -> str:
    """The qualified name of an op."""
    return f"{{_NAME}}::{{op_name}}"
'''
_NAMESPACE_OF_BUILD = '''"""The namespace of the ops: that of this build."""

from .._ops import add_op_namespace_prefix

NAMESPACE = add_op_namespace_prefix("").removesuffix("::")
'''
# For versions of `kernels` that load the folder below a variant, by its file alone.
_COMPATIBILITY = '''"""The names of the folder above, for older versions of kernels."""

import importlib.util
import sys
from pathlib import Path

_FILE = Path(__file__).parents[1] / "__init__.py"
_NAME = "{name}_package"
_module = sys.modules.get(_NAME)
if _module is None:
    _spec = importlib.util.spec_from_file_location(_NAME, _FILE)
    _module = importlib.util.module_from_spec(_spec)
    sys.modules[_NAME] = _module
    _spec.loader.exec_module(_module)
__all__ = list(_module.__all__)
globals().update({{name: getattr(_module, name) for name in __all__}})
'''


def relative_imports(source: str, package: Sequence[str]) -> str:
    """Source text of a module whose imports of the package are relative.

    Args:
        source: text of the module.
        package: names of the folders between the package and the module.

    Raises:
        ValueError: it imports the package in a form that has no relative one.
    """
    lines = source.splitlines(keepends=True)
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            if any(alias.name.split(".")[0] == _PACKAGE for alias in node.names):
                raise ValueError(f"relative_imports: line {node.lineno} must be a from-import")
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            root, _, rest = str(node.module).partition(".")
            if root == _PACKAGE:
                line, dots = lines[node.lineno - 1], "." * (len(package) + 1)
                old = f"from {node.module} import"
                if old not in line:
                    raise ValueError(f"relative_imports: line {node.lineno} must be {old!r}")
                lines[node.lineno - 1] = line.replace(old, f"from {dots}{rest} import", 1)
    return "".join(lines)


def build(out: Path, unique_id: str | None = None) -> dict[str, str]:
    """Write the folder.

    Args:
        out: folder to write; what an earlier call has written there is replaced.
        unique_id: what tells this build from others, of small letters, digits and "_"; by default a
            hash of the code.

    Returns:
        Names of the variants, each with the id of the build, which is the name of the module and
        the namespace of its ops.

    Raises:
        FileExistsError: the folder holds something else.
        ValueError: `unique_id` has other characters.
    """
    if unique_id is not None and not _ID.fullmatch(unique_id):
        raise ValueError(f"build: unique_id must be of a-z, 0-9 and _, got {unique_id!r}")
    if out.exists() and any(out.iterdir()) and not (out / "torch-ext" / _PACKAGE).is_dir():
        raise FileExistsError(f"build: out must be empty, or of an earlier build, got {out}")
    general = tomllib.loads((_HERE / "build.toml").read_text("utf-8"))["general"]
    files = _files()
    digest = hashlib.sha256(json.dumps(sorted(files.items())).encode()).hexdigest()
    unique = unique_id or digest[:10]

    _replace(out / "torch-ext" / _PACKAGE, files)
    for name in ("build.toml", "flake.nix", "CARD.md"):
        shutil.copyfile(_HERE / name, out / name)
    shutil.copyfile(_ROOT / "LICENSE", out / "LICENSE")
    ids = {}
    for backend in general["backends"]:
        variant, name = f"torch-{backend}", f"_{_PACKAGE}_{backend}_{unique}"
        ids[variant] = name
        built = {
            **files,
            "_ops.py": _OPS.format(name=name),
            f"{_PACKAGE}/__init__.py": _COMPATIBILITY.format(name=name),
        }
        metadata = _metadata(general, name, backend, built)
        built["metadata.json"] = json.dumps(metadata, indent=2) + "\n"
        _replace(out / "build" / variant, built)
    return ids


def _files() -> dict[str, str]:
    """Files of the package by path, as they are in any build."""
    files, package = {}, _ROOT / _PACKAGE
    for path in sorted(package.rglob("*")):
        name = path.relative_to(package).as_posix()
        if name in _LEFT_OUT or path.suffix not in (".py", ".json"):
            continue
        text = path.read_text("utf-8")
        if path.suffix == ".py":
            text = relative_imports(text, PurePosixPath(name).parts[:-1])
        files[name] = text
    files[_NAMESPACE] = _NAMESPACE_OF_BUILD
    return files


def _metadata(
    general: Mapping[str, Any], name: str, backend: str, files: Mapping[str, str]
) -> dict[str, Any]:
    hashes = {path: hashlib.sha256(text.encode()).digest() for path, text in files.items()}
    return {
        "name": general["name"],
        "id": name,
        "version": general["version"],
        "license": general["license"],
        "upstream": general["upstream"],
        "python-depends": [],
        "backend": {"type": backend},
        "digest": {
            "algorithm": "sha256",
            "files": {p: base64.b64encode(h).decode() for p, h in sorted(hashes.items())},
        },
    }


def _replace(folder: Path, files: Mapping[str, str]) -> None:
    """Write the files of a folder, and nothing else there."""
    if folder.exists():
        shutil.rmtree(folder)
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8", newline="\n")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--id", help="what tells this build from others; default: a hash of it")
    options = parser.parse_args(arguments)
    try:
        ids = build(options.out, options.id)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    for variant, name in ids.items():
        print(f"{options.out / 'build' / variant}: torch.ops.{name}")


if __name__ == "__main__":
    main()
