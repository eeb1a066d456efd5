"""Lists of prompts of text-to-image benchmarks."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from bitdance.io.files import one_line, require_file
from bitdance.io.image_files import printable
from bitdance.io.validation import brief

__all__ = ["LAYOUTS", "Layout", "Prompt", "read_prompts"]

Layout = Literal["geneval", "dpg"]
LAYOUTS: tuple[Layout, ...] = ("geneval", "dpg")


@dataclass(frozen=True)
class Prompt:
    """A prompt.

    Attributes:
        name: name of its file or folder.
        text: the prompt.
        metadata: JSON of its line, which GenEval's evaluation reads.
    """

    name: str
    text: str
    metadata: str = ""


def read_prompts(path: str | Path, layout: Layout) -> list[Prompt]:
    """The prompts of a benchmark, which its authors publish.

    Args:
        path: for "geneval", a file with a JSON object on each line, with the key "prompt"; for
            "dpg", a folder of text files, one prompt each, whose names are the ids, or a JSON file
            with an object of prompts by id, or a list of objects with "id" (or "item_id") and
            "prompt" (or "text").
        layout: "geneval" or "dpg".

    Raises:
        FileNotFoundError: there is no such file or folder.
        ValueError: it has no prompts, or is not as described; the line or key is named.
    """
    path = Path(path)
    if layout not in LAYOUTS:
        raise ValueError(f"read_prompts: layout must be 'geneval' or 'dpg', got {brief(layout)}")
    if not path.exists():
        raise FileNotFoundError(f"no such file or folder: {printable(path)}")
    if path.is_dir() and layout == "geneval":
        raise ValueError(f"{printable(path)} must be a file of JSON lines, got a folder")
    try:
        if path.is_dir():
            found = list(_of_folder(path))
        else:
            text = require_file(path).read_text(encoding="utf-8")  # a pipe would be waited for
            found = list((_of_lines if layout == "geneval" else _of_json)(text))
    except UnicodeDecodeError as error:
        raise ValueError(f"{printable(path)} must be UTF-8: {one_line(error)}") from error
    except _FormatError as error:
        raise ValueError(f"{printable(path)}: {error}") from None
    if not found:
        raise ValueError(f"{printable(path)} has no prompts")
    names = set()
    for prompt in found:
        if not prompt.text.strip():
            raise ValueError(f"{printable(path)}: the prompt {brief(prompt.name)} is empty")
        if prompt.name in names:
            raise ValueError(f"{printable(path)}: the id {brief(prompt.name)} is given twice")
        if Path(prompt.name).name != prompt.name or prompt.name.startswith("."):
            raise ValueError(f"{printable(path)}: the id {brief(prompt.name)} is no file name")
        names.add(prompt.name)
    return found


class _FormatError(Exception):
    pass


def _of_lines(text: str) -> Iterable[Prompt]:
    count = 0
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        content = _json(line, f"line {number}")
        prompt = content.get("prompt") if isinstance(content, dict) else None
        if not isinstance(prompt, str):
            raise _FormatError(f"line {number} must be an object with a prompt, got {brief(line)}")
        yield Prompt(f"{count:05d}", prompt, json.dumps(content))
        count += 1


def _of_folder(folder: Path) -> Iterable[Prompt]:
    for file in sorted(folder.glob("*.txt")):
        yield Prompt(file.stem, require_file(file).read_text(encoding="utf-8").strip())


def _of_json(text: str) -> Iterable[Prompt]:
    content = _json(text, "it")
    if isinstance(content, dict):
        content = [{"id": name, "prompt": prompt} for name, prompt in content.items()]
    if not isinstance(content, list):
        raise _FormatError(f"it must be an object or a list, got {brief(content)}")
    for item in content:
        known = item if isinstance(item, dict) else {}
        name = known.get("id", known.get("item_id"))
        prompt = known.get("prompt", known.get("text"))
        if not isinstance(name, (str, int)) or not isinstance(prompt, str):
            raise _FormatError(f"items must have an id and a prompt, got {brief(item)}")
        yield Prompt(str(name), prompt)


def _json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _FormatError(f"{where} is not JSON: {one_line(error)}") from None
