"""The tokens before an image: the prompt, and special tokens that tell the size of the image."""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from bitdance.io.files import CheckpointError, one_line
from bitdance.io.validation import brief

__all__ = [
    "NO_PROMPT",
    "PROMPT",
    "TextTokenizer",
    "check_tokenizers",
    "count_queries",
    "image_prefix",
    "load_tokenizer",
    "save_tokenizer",
    "special_ids",
    "token_ids",
]

PROMPT = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
"""The conditional text, around what a user asks for."""

_MAX_QUERIES = 1 << 16

NO_PROMPT = "<|im_start|>assistant\n"
"""The unconditional text."""


class TextTokenizer(Protocol):
    """A tokenizer of texts, such as Hugging Face's transformers and tokenizers have."""

    def encode(self, text: str, /) -> Any:
        """Token ids of a text, as ``token_ids`` takes them."""

    def convert_tokens_to_ids(self, token: str, /) -> int | None:
        """Id of a token; ``token_to_id`` serves too."""


def check_tokenizers() -> None:
    """Raise ImportError unless tokenizers or transformers is installed."""
    if not any(importlib.util.find_spec(name) for name in ("tokenizers", "transformers")):
        raise ImportError(
            "from_pretrained: tokenizer must be given, or tokenizers installed to load that of the "
            "release: pip install tokenizers"
        )


def load_tokenizer(folder: Path) -> TextTokenizer:
    """The text tokenizer of a release: its ``tokenizer.json``, or what transformers makes of it.

    Args:
        folder: folder of the tokenizer, or of a model with a folder "tokenizer".

    Raises:
        CheckpointError: the folder has no tokenizer that the installed packages can load.
    """
    if (folder / "tokenizer").is_dir():
        folder /= "tokenizer"
    path = folder / "tokenizer.json"
    with contextlib.suppress(ImportError):
        from tokenizers import Tokenizer

        if path.is_file():
            try:
                return Tokenizer.from_file(str(path))
            except Exception as error:  # it raises Exception itself
                raise CheckpointError(f"{path} is damaged: {one_line(error)}") from error
    try:
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except ImportError as error:
        needed = "tokenizers" if path.is_file() else "transformers"
        raise CheckpointError(
            f"{folder}: its text tokenizer needs {needed}: pip install {needed}"
        ) from error
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder} has no text tokenizer: {one_line(error)}") from error


def save_tokenizer(tokenizer: TextTokenizer, folder: Path) -> None:
    """Write a tokenizer for ``load_tokenizer``.

    Raises:
        TypeError: it has neither method of the two libraries.
    """
    for name, target in (("save_pretrained", folder), ("save", str(folder / "tokenizer.json"))):
        if hasattr(tokenizer, name):
            getattr(tokenizer, name)(target)
            return
    raise TypeError(
        "tokenizer must be a tokenizer with save_pretrained or save, got "
        f"{type(tokenizer).__name__}"
    )


def token_ids(tokenizer: TextTokenizer, text: str) -> list[int]:
    """Token ids of a text.

    Args:
        tokenizer: tokenizer whose ``encode`` returns a flat list, an array or a tensor of ids [n]
            or [1, n], a mapping with "input_ids", or an object with ``ids``.
        text: text to encode.

    Raises:
        TypeError: it returns something else.
    """
    encoded = tokenizer.encode(text)
    if isinstance(encoded, Mapping) and "input_ids" in encoded:
        encoded = encoded["input_ids"]
    ids: Any = getattr(encoded, "ids", encoded)
    if hasattr(ids, "tolist"):
        ids = ids.tolist()
    if isinstance(ids, Sequence) and len(ids) == 1 and isinstance(ids[0], Sequence):
        ids = ids[0]
    whole = isinstance(ids, Sequence) and all(
        isinstance(i, int | np.integer) and not isinstance(i, bool) for i in ids
    )
    if not whole or isinstance(ids, str | bytes):
        raise TypeError(f"tokenizer.encode must return a list of token ids, got {brief(encoded)}")
    return [int(i) for i in ids]


def image_prefix(tokenizer: TextTokenizer, grid: tuple[int, int], parallel_num: int) -> list[int]:
    """Ids of the tokens between a prompt and an image.

    Args:
        tokenizer: tokenizer with the special tokens.
        grid: tokens vertically and horizontally.
        parallel_num: P, tokens a step.

    Returns:
        Ids of <|vision_start|>, height, width and P - 1 queries.

    Raises:
        TypeError: `tokenizer` has no method that knows tokens.
        ValueError: there is no such token, since images of that size were not trained.
    """
    height, width = grid
    names = ["<|vision_start|>", f"<|res_{height}|>", f"<|res_{width}|>"]
    names += [f"<|query_{i}|>" for i in range(1, parallel_num)]
    purpose = f"for images of {height} x {width} tokens, {parallel_num} a step"
    return special_ids(tokenizer, names, purpose)


def count_queries(tokenizer: TextTokenizer) -> int:
    """Number of query tokens that a tokenizer knows, one less than the tokens per step."""
    number = 0
    with contextlib.suppress(ValueError):
        while number < _MAX_QUERIES:
            special_ids(tokenizer, [f"<|query_{number + 1}|>"], "")
            number += 1
    return number


def special_ids(tokenizer: TextTokenizer, names: Sequence[str], purpose: str) -> list[int]:
    """Ids of special tokens.

    Args:
        tokenizer: tokenizer with the special tokens.
        names: the tokens.
        purpose: what they are needed for, for errors.

    Raises:
        TypeError: `tokenizer` has no method that knows tokens.
        ValueError: it lacks a token.
    """
    # Tokenizers of the library of that name have the second.
    to_id = getattr(tokenizer, "convert_tokens_to_ids", None) or getattr(
        tokenizer, "token_to_id", None
    )
    if to_id is None:
        raise TypeError(
            "tokenizer must be a tokenizer with convert_tokens_to_ids or token_to_id, got "
            f"{type(tokenizer).__name__}"
        )
    ids = {name: to_id(name) for name in names}
    unknown = (None, getattr(tokenizer, "unk_token_id", None))
    missing = [name for name in names if ids[name] in unknown]
    if missing:
        raise ValueError(f"tokenizer must have {', '.join(missing[:3])} {purpose}, got none")
    return [id for name in names if (id := ids[name]) is not None]
