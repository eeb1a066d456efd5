"""The rows of slots up to the head: prompts, caches and the transformer's steps.

A row is computed as in a batch of its image alone: by the same functions on the same values, so
that a slot gives the bits that the image has alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeVar

import torch

from bitdance.models.class_conditional import BitDanceModel
from bitdance.models.diffusion_head import HeadNetwork
from bitdance.models.kv_cache import KVCache
from bitdance.models.layers import compute_dtype
from bitdance.models.projectors import position_embedding_2d
from bitdance.models.text_to_image import TextToImageModel
from bitdance.sampling import graphs
from bitdance.sampling.class_conditional import ClassSequence
from bitdance.sampling.text_to_image import TextSequence

__all__ = ["ClassSlots", "Feed", "Prefilled", "Prompt", "SlotSequence", "TextSlots"]

Feed = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""Feeds patches: tokens [rows, P, C] and their positions [rows, P, dim] to outputs [rows, P, dim].

The outputs are normalized, and condition the head for the next patch.
"""

_PROMPT_STEP = 256  # tokens by which the cache of prompts grows


@dataclass(frozen=True)
class Prefilled:
    """What an image begins with.

    Attributes:
        hidden: outputs that condition the first patch, [rows, P, dim].
        cache: cache of its rows.
        tokens: tokens in the longest row.
        columns: patches side by side in the image.
    """

    hidden: torch.Tensor
    cache: KVCache
    tokens: int
    columns: int


Given = TypeVar("Given", contravariant=True)


class SlotSequence(Protocol[Given]):
    """What slots need of a model."""

    network: HeadNetwork
    """The head's network."""
    patch_shape: tuple[int, int]
    """(P, C): tokens of a patch, bits of a token."""
    head_patch: int | None
    """P as the head takes it; None for a head of single tokens."""
    width: int
    """Channels of the outputs."""
    max_ar_steps: int
    """Maximum number of patches of an image."""

    def ar_steps(self, start: Given) -> int:
        """Patches of an image.

        Raises:
            ValueError: the image does not fit into a slot.
        """

    def allocate(self, rows: int) -> KVCache:
        """An empty cache for images of any size up to the maximum."""

    def prefill(self, start: Given, rows: int) -> Prefilled:
        """Run what comes before the first patch; valid until the next call.

        Args:
            start: what the image shows.
            rows: 2 with guidance, the conditional row first; else 1.
        """

    def positions(self, step: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
        """Position embeddings [slots, P, dim] of patches.

        Args:
            step: int64 [slots], number of the patch.
            columns: int64 [slots], patches side by side in the image.
        """

    def feed(self, cache: KVCache) -> Feed:
        """The function that feeds patches to the rows of a cache, with buffers of its own."""


class ClassSlots:
    """Slots of a class-conditional model; an image starts with its label, see ``SlotSequence``.

    Args:
        model: the networks.
    """

    def __init__(self, model: BitDanceModel) -> None:
        config = model.config
        P = config.parallel_num
        self.model, self.network = model, model.head.net
        self.patch_shape, self.head_patch = (P, config.token_bits), P if P > 1 else None
        self.width, self.max_ar_steps = config.dim, config.ar_steps
        self._columns = config.grid // math.isqrt(P)
        self._first: dict[int, tuple[ClassSequence, graphs.Runner]] = {}

    def ar_steps(self, start: int) -> int:
        """See ``SlotSequence``; all images have as many.

        Raises:
            ValueError: there is no such class.
        """
        count = self.model.config.num_classes
        if not 0 <= start < count:
            raise ValueError(f"ClassSlots: label must be 0 to {count - 1}, got {start}")
        return self.max_ar_steps

    def allocate(self, rows: int) -> KVCache:
        """See ``SlotSequence``."""
        return self._allocate(rows, len(self.model.freqs))

    def prefill(self, start: int, rows: int) -> Prefilled:
        """See ``SlotSequence``."""
        P = self.patch_shape[0]
        tokens = self.model.config.cls_token_num + P - 1
        if rows not in self._first:
            made = ClassSequence(self.model, self._allocate(rows, tokens), use_kernels=True)
            made.load()
            self._first[rows] = made, graphs.make_runner(made.labels.device)
        sequence, run = self._first[rows]
        sequence.labels[:1] = start

        def first() -> tuple[torch.Tensor]:
            sequence.cache.reset()
            return (sequence.first()[:, -P:],)

        (hidden,) = run(first)
        return Prefilled(hidden, sequence.cache, tokens, self._columns)

    def positions(self, step: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
        """See ``SlotSequence``."""
        weight = self.model.pos_for_diff.weight
        return weight.unflatten(0, (-1, self.patch_shape[0])).index_select(0, step)

    def feed(self, cache: KVCache) -> Feed:
        """See ``SlotSequence``."""
        sequence = ClassSequence(self.model, cache, use_kernels=True)
        sequence.load()

        def feed(tokens: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
            sequence.tokens.copy_(tokens)
            return sequence.next()

        return feed

    def _allocate(self, rows: int, tokens: int) -> KVCache:
        layers = self.model.layers
        return KVCache.allocate(
            len(layers), rows, tokens, layers.num_heads, layers.head_dim,
            dtype=compute_dtype(layers), device=self.model.freqs.device,
        )  # fmt: skip


@dataclass(frozen=True)
class Prompt:
    """What an image of a text-to-image model starts with.

    Attributes:
        rows: token ids up to the first patch, of the conditional row and with guidance of the
            unconditional one; see ``TextToImageSampler.token_rows``.
        grid: tokens of the image, vertically and horizontally.
    """

    rows: tuple[tuple[int, ...], ...]
    grid: tuple[int, int]


class TextSlots:
    """Slots of a text-to-image model, for images of different sizes; see ``SlotSequence``.

    Args:
        model: the networks.
        max_prompt_tokens: maximum number of tokens before the first patch.
        max_image_tokens: maximum number of tokens of an image.
    """

    def __init__(
        self, model: TextToImageModel, *, max_prompt_tokens: int, max_image_tokens: int
    ) -> None:
        config = model.config
        P = config.parallel_num
        self.model, self.network = model, model.vision_head.net
        self.patch_shape = P, config.autoencoder.z_channels
        self.head_patch: int | None = P
        self.width, self.max_ar_steps = config.llm.hidden_size, max_image_tokens // P
        self.max_prompt_tokens, self.max_image_tokens = max_prompt_tokens, max_image_tokens
        self._side = math.isqrt(P)
        device = model.llm_model.model.norm.weight.device
        # An image may be one patch high. A row's and a column's sinusoids have the same values.
        cells = max_image_tokens // self._side
        line = torch.arange(cells, dtype=torch.int64, device="cpu")
        columns = position_embedding_2d(line, max(1, cells), self.width)
        self._sinusoids = columns[:, : self.width // 2].to(device)
        inside = torch.arange(P, dtype=torch.int64, device=device)
        self._inside = inside // self._side, inside % self._side
        self._prompts: dict[int, TextSequence] = {}

    def ar_steps(self, start: Prompt) -> int:
        """See ``SlotSequence``.

        Raises:
            ValueError: the prompt or the image is too large for a slot.
        """
        height, width = start.grid
        longest = max(map(len, start.rows))
        if longest > self.max_prompt_tokens:
            raise ValueError(
                f"TextSlots: prompts must have at most {self.max_prompt_tokens} tokens with those "
                f"of the size, got {longest}"
            )
        if height * width > self.max_image_tokens:
            raise ValueError(
                f"TextSlots: images must have at most {self.max_image_tokens} tokens, got "
                f"{height} x {width}"
            )
        return height * width // self.patch_shape[0]

    def allocate(self, rows: int) -> KVCache:
        """See ``SlotSequence``."""
        # The last patch is not fed back.
        tokens = self.max_prompt_tokens + self.max_image_tokens - self.patch_shape[0]
        return self.model.llm_model.model.allocate(rows, tokens)

    def prefill(self, start: Prompt, rows: int) -> Prefilled:
        """See ``SlotSequence``."""
        tokens = max(map(len, start.rows))
        sequence = self._prompts.get(rows)
        if sequence is None or sequence.cache.layers[0][0].shape[1] < tokens:
            rounded = -(-tokens // _PROMPT_STEP) * _PROMPT_STEP
            self._prompts.pop(rows, None)  # first, so that the new one has the room
            sequence = self._sequence(self.model.llm_model.model.allocate(rows, rounded))
            self._prompts[rows] = sequence
        sequence.prefill(start.rows)
        hidden = sequence.next()
        return Prefilled(hidden, sequence.cache, tokens, start.grid[1] // self._side)

    def positions(self, step: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
        """See ``SlotSequence``."""
        corner = step // columns * self._side, step % columns * self._side
        row, column = (
            self._sinusoids[at[:, None] + inside]
            for at, inside in zip(corner, self._inside, strict=True)
        )
        return torch.cat([column, row], dim=-1)

    def feed(self, cache: KVCache) -> Feed:
        """See ``SlotSequence``."""
        sequence = self._sequence(cache)

        def feed(tokens: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
            sequence.block.copy_(self.model.embed(tokens) + positions)
            return sequence.next()

        return feed

    def _sequence(self, cache: KVCache) -> TextSequence:
        # Its own positions, of one size, are not used.
        sequence = TextSequence(self.model, cache, (self._side, self._side))
        sequence.load()
        return sequence
