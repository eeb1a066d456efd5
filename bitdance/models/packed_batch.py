"""What the text-to-image model is trained on: documents of text and images in one sequence."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import torch

from bitdance_kernels import Ranges, unpack_signs

__all__ = ["PackedBatch", "PackedDraws"]


@dataclass(frozen=True, eq=False)
class PackedBatch:
    """Documents, one after the other, and which of their rows have a loss.

    Image tokens are numbered over all images, in the order of the images and within one in that of
    generation. A row is a position of the sequence.

    Attributes:
        token_ids: int64 [T], id of each row; of no meaning where an image token is.
        position_ids: int64 [T], position of each row in its document.
        ranges: rows that each row sees, T of them.
        grids: tokens of each image, vertically and horizontally.
        packed: uint8 [N, C / 8 rounded up], bits of the image tokens.
        fed_rows: int64 [N], row of each image token.
        loss_tokens: int64 [M], image tokens that are to be predicted, whole patches; their bits
            flip in training, those of other images do not.
        loss_rows: int64 [M], row that predicts each of them.
        text_rows: int64 [R], rows that predict a text token.
        text_labels: int64 [R], ids of these tokens.

    Raises:
        ValueError: lengths do not fit each other.
    """

    token_ids: torch.Tensor
    position_ids: torch.Tensor
    ranges: Ranges
    grids: tuple[tuple[int, int], ...]
    packed: torch.Tensor
    fed_rows: torch.Tensor
    loss_tokens: torch.Tensor
    loss_rows: torch.Tensor
    text_rows: torch.Tensor
    text_labels: torch.Tensor

    def __post_init__(self) -> None:
        T, N = len(self.token_ids), sum(h * w for h, w in self.grids)
        for name, expected in (
            ("position_ids", T),
            ("packed", N),
            ("fed_rows", N),
            ("loss_rows", len(self.loss_tokens)),
            ("text_labels", len(self.text_rows)),
        ):
            if len(getattr(self, name)) != expected:
                got = len(getattr(self, name))
                raise ValueError(f"PackedBatch: {name} must be {expected} long, got {got}")
        if self.ranges.start.shape != (T,):
            got_shape = list(self.ranges.start.shape)
            raise ValueError(f"PackedBatch: ranges must be of {T} rows, got {got_shape}")

    def to(self, device: torch.device | str) -> PackedBatch:
        """The batch on another device."""
        return _map(self, lambda tensor: tensor.to(device))

    def tokens(self, bits: int) -> torch.Tensor:
        """Image tokens of +1 and -1, float32 [N, bits].

        Raises:
            ValueError: tokens have another number of bits.
        """
        if not len(self.packed):
            return torch.empty(0, bits, dtype=torch.float32, device=self.packed.device)
        width = -(-bits // 8)
        if self.packed.shape[1:] != (width,):
            raise ValueError(
                f"PackedBatch: packed must be [N, {width}] for tokens of {bits} bits, got "
                f"{list(self.packed.shape)}"
            )
        return unpack_signs(self.packed)[:, :bits]


@dataclass(frozen=True, eq=False)
class PackedDraws:
    """Random numbers of a training step with a ``PackedBatch``; those that are None are drawn.

    With G = M / P patches, and ``mul`` the number of times that the head sees each, row m G + g of
    what has mul G rows is for patch g.

    Attributes:
        flips: two uniforms [M, C] each; a bit flips where the first is below the rate times the
            second.
        time: [mul G], what times are made of, see ``DiffusionHead.loss``.
        noise: [mul G, P, C].
    """

    flips: tuple[torch.Tensor, torch.Tensor] | None = None
    time: torch.Tensor | None = None
    noise: torch.Tensor | None = None


def _map(batch: PackedBatch, function: Callable[[torch.Tensor], torch.Tensor]) -> PackedBatch:
    ranges = Ranges(function(batch.ranges.start), function(batch.ranges.end), validate=False)
    changes: dict[str, Any] = {"ranges": ranges}
    for field in fields(batch):
        value = getattr(batch, field.name)
        if isinstance(value, torch.Tensor):
            changes[field.name] = function(value)
    return replace(batch, **changes)
