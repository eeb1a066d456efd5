"""Masks as intervals: for each query one range of visible keys."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import InitVar, dataclass
from typing import Any

import torch
from torch.utils import _pytree as pytree

from bitdance_kernels._shared import checks
from bitdance_kernels.attention._shared import intervals

__all__ = ["Ranges", "block_causal_ranges", "dense_mask", "packed_document_ranges"]

_MODES = ("causal", "parallel")

# The first two tokens of an image in the text-to-image layout (start of vision, height) are causal;
# the third one (width) opens the first patch, together with the P - 1 query tokens.
_CAUSAL_HEAD = 2


# Compared and hashed by identity, since `==` of tensors is no bool.
@dataclass(frozen=True, eq=False)
class Ranges:
    """For query i, the visible keys: start_i <= j < end_i.

    Both ends never decrease with i. A query with start_i >= end_i sees nothing. This covers causal,
    block-causal, prefix and packed-document attention in O(T) memory, and tells a kernel which
    tiles need no mask (all keys visible) and which need no work (none visible).

    Attributes:
        start: int32 [T], or [B, T] for ranges that differ between the rows of a batch.
        end: int32, the same shape and device.

    Args:
        start: as above.
        end: as above.
        keys: number of keys, to check the values against; not stored.
        validate: False leaves the values unread. Use it for values known to be right where reading
            them is no option: on a GPU they have to be waited for, and in a CUDA graph or under
            ``torch.compile`` they are not there. Dtype, shape and device are checked in any case.

    Raises:
        TypeError: a tensor is not int32.
        ValueError: other than one or two dimensions; shapes or devices that differ; a value that
            is negative, over `keys`, or less than the one before it.

    Example:
        >>> import torch
        >>> causal = torch.arange(3, dtype=torch.int32)
        >>> dense_mask(Ranges(torch.zeros_like(causal), causal + 1)).int()
        tensor([[1, 0, 0],
                [1, 1, 0],
                [1, 1, 1]], dtype=torch.int32)
    """

    start: torch.Tensor
    end: torch.Tensor
    keys: InitVar[int | None] = None
    validate: InitVar[bool] = True

    def __post_init__(self, keys: int | None, validate: bool) -> None:
        for name, tensor in (("start", self.start), ("end", self.end)):
            if not isinstance(tensor, torch.Tensor):
                raise TypeError(f"Ranges: {name} must be an int32 tensor, got {type(tensor)}")
            checks.dtype("Ranges", name, tensor, (torch.int32,))
            checks.rank("Ranges", name, tensor, 1, 2)
        checks.shape("Ranges", "end", self.end, self.start.shape)
        checks.same_device("Ranges", "start", self.start, end=self.end)
        if validate:
            _check_values("start", self.start, keys)
            _check_values("end", self.end, keys)


def _check_values(name: str, values: torch.Tensor, keys: int | None) -> None:
    falls = values[..., 1:] < values[..., :-1]
    outside = values < 0 if keys is None else (values < 0) | (values > keys)
    if not bool(falls.any() | outside.any()):
        return
    wrong = outside.nonzero()
    if len(wrong):
        index = tuple(wrong[0].tolist())
        expected = "0 or more" if keys is None else f"from 0 to {keys}, the number of keys"
        raise checks.fail("Ranges", name, expected, _element(name, values, index))
    *row, i = falls.nonzero()[0].tolist()
    before, after = _element(name, values, (*row, i)), _element(name, values, (*row, i + 1))
    raise checks.fail("Ranges", name, "never decreasing", f"{after} after {before}")


def _element(name: str, values: torch.Tensor, index: Sequence[int]) -> str:
    return f"{name}[{', '.join(map(str, index))}] = {int(values[tuple(index)])}"


def _unflatten(leaves: Iterable[Any], _: None) -> Ranges:
    # PyTorch's tracers put anything in place of leaves, so nothing is checked here.
    ranges = object.__new__(Ranges)
    for name, leaf in zip(("start", "end"), leaves, strict=True):
        object.__setattr__(ranges, name, leaf)
    return ranges


# Functions over all tensors of a call (moving to a device, tracing) then reach these two.
pytree.register_pytree_node(
    Ranges,
    lambda ranges: ([ranges.start, ranges.end], None),
    _unflatten,
    serialized_type_name=f"{__name__}.Ranges",
)


def block_causal_ranges(
    prefix: int,
    patches: int,
    patch_tokens: int,
    *,
    tokens: int | None = None,
    device: torch.device | str = "cpu",
) -> Ranges:
    """Ranges of a sequence of `prefix` causal tokens followed by patches.

    Token i < prefix sees tokens 0 .. i. A token of a patch sees everything up to the end of its
    patch. No token sees a later patch.

    The first patch is predicted by the last token before the image and P - 1 query tokens, which
    form the first bidirectional block. So the prefix is one shorter than what stands before the
    query tokens: with L class tokens and N patches to predict the ranges of BitDance's ImageNet
    models are ``block_causal_ranges(L - 1, N, P)``, of L + P - 1 + (N - 1) P tokens. With P = 1
    this is plain causal attention.

    Args:
        prefix: causal tokens before the first block, 0 or more.
        patches: blocks, 0 or more.
        patch_tokens: P, tokens per block, 1 or more.
        tokens: T, if the last block is incomplete: more than all but the last block need, and no
            more than ``prefix + patches * patch_tokens``, the default.
        device: of the result.

    Returns:
        Ranges of int32 [T]. Built on the device, without waiting for it.

    Raises:
        TypeError: a number is not an integer.
        ValueError: a number is outside the above.

    Example:
        >>> block_causal_ranges(1, 2, 3).end
        tensor([1, 4, 4, 4, 7, 7, 7], dtype=torch.int32)
        >>> block_causal_ranges(1, 2, 3, tokens=6).end
        tensor([1, 4, 4, 4, 6, 6], dtype=torch.int32)
    """
    op = "block_causal_ranges"
    _check_count(op, "prefix", prefix, 0)
    _check_count(op, "patches", patches, 0)
    _check_count(op, "patch_tokens", patch_tokens, 1)
    total = prefix + patches * patch_tokens
    if tokens is not None:
        _check_count(op, "tokens", tokens, 0)
        minimum = total - patch_tokens + 1 if patches else total
        if not minimum <= tokens <= total:
            expected = (
                f"from {minimum} to {total}, so that the last of {patches} patches has a token"
            )
            raise checks.fail(op, "tokens", expected, tokens)
        total = tokens
    i = torch.arange(total, dtype=torch.int32, device=device)
    block = torch.div(i - prefix, patch_tokens, rounding_mode="floor")
    block_end = (prefix + (block + 1) * patch_tokens).clamp(max=total)
    end = torch.where(i < prefix, i + 1, block_end)
    return Ranges(torch.zeros_like(i), end, validate=False)


def packed_document_ranges(
    document_lengths: Iterable[int],
    segments: Iterable[tuple[int, str]],
    *,
    patch_tokens: int,
    device: torch.device | str = "cpu",
) -> Ranges:
    """Ranges of several documents of text and images packed into one sequence.

    Attention never leaves a document, and is causal within it. In a "parallel" segment (an image)
    the first two tokens are causal like text, and the rest falls into bidirectional blocks of P
    tokens, the last of which may be incomplete.

    Args:
        document_lengths: tokens of each document, 0 or more.
        segments: (tokens, mode) of each stretch of the same sequence, in order; mode is "causal"
            (text) or "parallel" (an image). They cover the same number of tokens as the documents.
        patch_tokens: P, tokens per block, 1 or more.
        device: of the result.

    Returns:
        Ranges of int32 [T], T the number of tokens in all.

    Raises:
        TypeError: a length is not an integer.
        ValueError: a negative length, an unknown mode, or documents and segments that do not cover
            the same number of tokens.

    Example:
        >>> packed_document_ranges([4, 6], [(5, "causal"), (5, "parallel")], patch_tokens=2).start
        tensor([0, 0, 0, 0, 4, 4, 4, 4, 4, 4], dtype=torch.int32)
        >>> packed_document_ranges([4, 6], [(5, "causal"), (5, "parallel")], patch_tokens=2).end
        tensor([ 1,  2,  3,  4,  5,  6,  7,  9,  9, 10], dtype=torch.int32)
    """
    op = "packed_document_ranges"
    _check_count(op, "patch_tokens", patch_tokens, 1)
    documents, segments = list(document_lengths), list(segments)
    for n, length in enumerate(documents):
        _check_count(op, f"document_lengths[{n}]", length, 0)
    for n, (length, mode) in enumerate(segments):
        _check_count(op, f"segments[{n}][0]", length, 0)
        if mode not in _MODES:
            raise checks.fail(op, f"segments[{n}][1]", " or ".join(map(repr, _MODES)), repr(mode))
    total, covered = sum(documents), sum(length for length, _ in segments)
    if covered != total:
        raise checks.fail(op, "segments", f"{total} tokens long like the documents", covered)

    i = torch.arange(total, dtype=torch.int64, device="cpu")
    start, document_end = _spread(documents)
    segment_start, segment_end = _spread([length for length, _ in segments])
    parallel = torch.repeat_interleave(
        torch.tensor([mode == "parallel" for _, mode in segments], dtype=torch.bool, device="cpu"),
        torch.tensor([length for length, _ in segments], dtype=torch.int64, device="cpu"),
    )
    first = segment_start + _CAUSAL_HEAD
    block = torch.div(i - first, patch_tokens, rounding_mode="floor")
    block_end = torch.minimum(first + (block + 1) * patch_tokens, segment_end)
    end = torch.where(parallel & (i >= first), block_end, i + 1)
    end = torch.minimum(end, document_end)  # where a document ends within a block
    return Ranges(
        start.to(device, torch.int32), end.to(device, torch.int32), keys=total, validate=False
    )


def _spread(lengths: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """For every token the first token of its segment, and the one after the last."""
    size = torch.tensor(lengths, dtype=torch.int64, device="cpu")
    end = torch.repeat_interleave(size.cumsum(0), size)
    return end - torch.repeat_interleave(size, size), end


def dense_mask(ranges: Ranges, keys: int | None = None) -> torch.Tensor:
    """Dense mask of `ranges`, one bool per query and key, to inspect or for other libraries.

    ``mask[..., i, j] = start[..., i] <= j < end[..., i]``.

    Args:
        ranges: of T queries.
        keys: Tk, the number of keys; T by default.

    Returns:
        bool [T, Tk] or [B, T, Tk]; True where query i may attend to key j, as
        ``torch.nn.functional.scaled_dot_product_attention`` reads it (there, insert the head
        dimension: ``mask.unsqueeze(-3)``).

    Raises:
        TypeError: `ranges` are no ``Ranges``.
        ValueError: `keys` is negative.

    Example:
        >>> dense_mask(block_causal_ranges(1, 1, 2)).int()
        tensor([[1, 0, 0],
                [1, 1, 1],
                [1, 1, 1]], dtype=torch.int32)
    """
    if not isinstance(ranges, Ranges):
        raise TypeError(f"dense_mask: ranges must be Ranges, got {type(ranges).__name__}")
    if keys is None:
        keys = ranges.start.shape[-1]
    _check_count("dense_mask", "keys", keys, 0)
    return intervals.visible(ranges.start, ranges.end, keys)


def _check_count(op: str, argument: str, value: int, minimum: int) -> None:
    if not isinstance(value, (int, torch.SymInt)) or isinstance(value, bool):
        raise TypeError(f"{op}: {argument} must be an integer, got {value!r}")
    if value < minimum:
        raise checks.fail(op, argument, f"{minimum} or more", value)
