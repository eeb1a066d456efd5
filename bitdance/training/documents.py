"""Documents of text and images, and the packed sequences that the model is trained on."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from bitdance.models.packed_batch import PackedBatch
from bitdance.models.token_order import generation_order
from bitdance.pipelines.prompts import (
    NO_PROMPT,
    PROMPT,
    TextTokenizer,
    image_prefix,
    special_ids,
    token_ids,
)
from bitdance_kernels import packed_document_ranges

__all__ = [
    "Document",
    "DocumentMaker",
    "ImageSegment",
    "TextSegment",
    "add_image_tokens",
    "document_length",
    "pack_documents",
]

_BEFORE_CAPTION = PROMPT.split("{}")[0]
_ENDS = ("<|vision_end|>", "<|im_end|>")


@dataclass(frozen=True)
class TextSegment:
    """Text, each token of which sees all tokens of its document before it.

    Attributes:
        ids: token ids.
        predicted: half-open range of the tokens that have a loss, in the row before each.
    """

    ids: tuple[int, ...]
    predicted: tuple[int, int] = (0, 0)


@dataclass(frozen=True)
class ImageSegment:
    """An image with the tokens before it.

    Attributes:
        prefix: ids of <|vision_start|>, height and width, and of P - 1 queries if it is generated.
        grid: tokens vertically and horizontally.
        codes: uint8 [h w, C / 8 rounded up], bits in raster order.
        key: number by which random numbers are drawn.
        generated: whether the image is to be predicted; else it is seen as text is.
    """

    prefix: tuple[int, ...]
    grid: tuple[int, int]
    codes: np.ndarray
    key: int = 0
    generated: bool = True


Document = Sequence[TextSegment | ImageSegment]


def document_length(document: Document) -> int:
    """Tokens of a document."""
    return sum(
        len(part.ids) if isinstance(part, TextSegment) else len(part.prefix) + len(part.codes)
        for part in document
    )


def pack_documents(documents: Sequence[Document], parallel_num: int) -> PackedBatch:
    """Put documents one after the other.

    All tokens of an image are fed, those of the last patch for what follows. A patch is predicted
    by the one before it, the first by the width and the queries.

    Args:
        documents: at least one, each of at least one token.
        parallel_num: P, tokens a step.

    Raises:
        ValueError: an image is not made of whole patches, or has other tokens than its grid.
    """
    maker = _Packer(parallel_num)
    for document in documents:
        maker.add(document)
    return maker.batch()


class _Packer:
    def __init__(self, parallel_num: int) -> None:
        self._parallel_num = parallel_num
        self._ids: list[int] = []
        self._lengths: list[int] = []
        self._segments: list[tuple[int, str]] = []
        self._grids: list[tuple[int, int]] = []
        self._packed: list[np.ndarray] = []
        self._fed: list[int] = []
        self._loss_tokens: list[int] = []
        self._loss_rows: list[int] = []
        self._text_rows: list[int] = []
        self._labels: list[int] = []

    def add(self, document: Document) -> None:
        start = len(self._ids)
        for part in document:
            if isinstance(part, TextSegment):
                self._add_text(part, start)
            else:
                self._add_image(part)
        self._lengths.append(len(self._ids) - start)

    def _add_text(self, part: TextSegment, start: int) -> None:
        first, end = part.predicted
        row = len(self._ids)
        first = max(first, 1 if row == start else 0)  # nothing predicts a document's first token
        self._text_rows += range(row + first - 1, row + end - 1)
        self._labels += part.ids[first:end]
        self._ids += part.ids
        self._segments.append((len(part.ids), "causal"))

    def _add_image(self, part: ImageSegment) -> None:
        count, P = part.grid[0] * part.grid[1], self._parallel_num
        if part.codes.shape[0] != count:
            raise ValueError(
                f"pack_documents: codes must be {count} of an image of {part.grid[0]} x "
                f"{part.grid[1]}, got {part.codes.shape[0]}"
            )
        first = len(self._ids) + len(part.prefix)
        if part.generated:
            number = len(self._fed)
            self._loss_tokens += range(number, number + count)
            self._loss_rows += range(first - P, first - P + count)
        self._fed += range(first, first + count)
        self._packed.append(np.asarray(part.codes)[_order(part.grid, P)])
        self._grids.append(part.grid)
        self._ids += [*part.prefix, *[0] * count]
        kind = "parallel" if part.generated else "causal"
        self._segments.append((len(part.prefix) + count, kind))

    def batch(self) -> PackedBatch:
        def tensor(values: Sequence[int]) -> torch.Tensor:
            return torch.from_numpy(np.array(values, np.int64))  # torch.tensor takes longer

        packed = np.concatenate(self._packed) if self._packed else np.empty((0, 1), np.uint8)
        return PackedBatch(
            token_ids=tensor(self._ids),
            position_ids=tensor([i for length in self._lengths for i in range(length)]),
            ranges=packed_document_ranges(
                self._lengths, self._segments, patch_tokens=self._parallel_num
            ),
            grids=tuple(self._grids),
            packed=torch.from_numpy(packed),
            fed_rows=tensor(self._fed),
            loss_tokens=tensor(self._loss_tokens),
            loss_rows=tensor(self._loss_rows),
            text_rows=tensor(self._text_rows),
            text_labels=tensor(self._labels),
        )


@functools.cache
def _order(grid: tuple[int, int], parallel_num: int) -> np.ndarray:
    """Raster index of the k-th token of an image."""
    return generation_order(grid, parallel_num, "patch").numpy()


def add_image_tokens(
    tokenizer: TextTokenizer, grids: Sequence[tuple[int, int]], parallel_num: int
) -> None:
    """Add the special tokens that documents need to a tokenizer that can learn them.

    That is one of the library of that name; others have to have them.
    """
    if not hasattr(tokenizer, "token_to_id") or not hasattr(tokenizer, "add_special_tokens"):
        return
    sides = sorted({side for grid in grids for side in grid})
    names = ["<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>"]
    names += [f"<|res_{side}|>" for side in sides]
    names += [f"<|query_{i}|>" for i in range(1, parallel_num)]
    missing = [name for name in names if tokenizer.token_to_id(name) is None]
    if missing:
        tokenizer.add_special_tokens(missing)


class DocumentMaker:
    """Documents of one caption and one picture, in the form that pipelines prompt with.

    Args:
        tokenizer: tokenizer of texts, with the special tokens.
        parallel_num: P, tokens a step.
        text_loss: whether captions and the ends of image and answer have a loss.

    Raises:
        ValueError: the tokenizer lacks a special token.
    """

    def __init__(self, tokenizer: TextTokenizer, parallel_num: int, *, text_loss: bool) -> None:
        self._tokenizer, self._parallel_num, self._text_loss = tokenizer, parallel_num, text_loss
        ends = special_ids(tokenizer, _ENDS, "after an image")
        self._ends = TextSegment(tuple(ends), (0, len(ends) if text_loss else 0))
        self._im_end = ends[1]
        self._marks = set(special_ids(tokenizer, ("<|im_start|>", "<|vision_start|>"), "of texts"))
        self._marks |= set(ends)
        self._before = token_ids(tokenizer, _BEFORE_CAPTION)
        self._no_prompt = TextSegment(tuple(token_ids(tokenizer, NO_PROMPT)))
        self._prefixes: dict[tuple[int, int], tuple[int, ...]] = {}

    @property
    def ends(self) -> tuple[int, ...]:
        """Ids after an image."""
        return self._ends.ids

    def caption(self, text: str) -> TextSegment:
        """The prompt of a caption.

        Raises:
            ValueError: the caption is empty, or has special tokens.
        """
        if not text.strip():
            raise ValueError(f"caption must be text, got {text!r}")
        ids = token_ids(self._tokenizer, PROMPT.format(text))
        pairs = zip(ids, self._before, strict=False)
        first = next((i for i, (a, b) in enumerate(pairs) if a != b), len(self._before))
        end = ids.index(self._im_end, first) if self._im_end in ids[first:] else len(ids)
        tail = len(self._no_prompt.ids)
        if self._marks & {*ids[first:end], *ids[end + 1 : -tail]}:
            raise ValueError(f"caption must not have special tokens, got {text[:80]!r}")
        return TextSegment(tuple(ids), (first, end + 1) if self._text_loss else (0, 0))

    def prefix(self, grid: tuple[int, int]) -> tuple[int, ...]:
        """Ids between a prompt and an image.

        Raises:
            ValueError: the tokenizer has no token for a side of `grid`.
        """
        if grid not in self._prefixes:
            self._prefixes[grid] = tuple(image_prefix(self._tokenizer, grid, self._parallel_num))
        return self._prefixes[grid]

    def length(self, caption: TextSegment, grid: tuple[int, int]) -> int:
        """Tokens of a document with a caption and an image of `grid` tokens."""
        prefix = len(self.prefix(grid))
        return len(caption.ids) + prefix + grid[0] * grid[1] + len(self._ends.ids)

    def document(
        self, caption: TextSegment | None, grid: tuple[int, int], codes: np.ndarray, key: int
    ) -> Document:
        """A caption, or None for the unconditional prompt, and the image it is of."""
        text = self._no_prompt if caption is None else caption
        return (text, ImageSegment(self.prefix(grid), grid, codes, key), self._ends)
