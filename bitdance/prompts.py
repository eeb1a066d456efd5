"""What stands before an image's tokens: a text, and special tokens that say what is to come."""

from __future__ import annotations

from typing import Protocol

__all__ = ["NO_PROMPT", "PROMPT", "Words", "image_prefix"]

PROMPT = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
"""The conditional text, around what a user asks for."""

NO_PROMPT = "<|im_start|>assistant\n"
"""The unconditional text."""


class Words(Protocol):
    """A tokenizer of texts; those of Hugging Face's transformers are of this kind."""

    def encode(self, text: str, /) -> list[int]:
        """Token ids of a text."""

    def convert_tokens_to_ids(self, token: str, /) -> int | None:
        """Id of a token."""


def image_prefix(words: Words, grid: tuple[int, int], parallel_num: int) -> list[int]:
    """Ids of what stands between a prompt and an image's tokens.

    Args:
        words: knows the special tokens.
        grid: tokens vertically and horizontally.
        parallel_num: P, tokens a step.

    Returns:
        Ids of <|vision_start|>, height, width and P - 1 queries.

    Raises:
        ValueError: there is no such token, since images of that size were not trained.
    """
    height, width = grid
    names = ["<|vision_start|>", f"<|res_{height}|>", f"<|res_{width}|>"]
    names += [f"<|query_{i}|>" for i in range(1, parallel_num)]
    ids = {name: words.convert_tokens_to_ids(name) for name in names}
    unknown = (None, getattr(words, "unk_token_id", None))
    missing = [name for name in names if ids[name] in unknown]
    if missing:
        raise ValueError(
            f"tokenizer must have {', '.join(missing[:3])} for images of {height} x {width} "
            f"tokens, {parallel_num} a step, got none"
        )
    return [id for name in names if (id := ids[name]) is not None]
