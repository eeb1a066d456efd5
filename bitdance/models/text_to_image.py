"""The text-to-image model: a language model whose sequence ends in patches of an image.

A sequence is the prompt, <|vision_start|>, tokens for height and width, and P - 1 query tokens. All
but the last P run causally. Those P, the width and the queries, are the first block; a block's
outputs condition the head that samples the next P tokens, which are the next block. Tokens of a
block see each other and all before them. Two-dimensional sinusoids are added to the head's
conditions, and to the tokens that are fed back.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from bitdance.models.autoencoder.autoencoder import BinaryAutoencoder
from bitdance.models.diffusion_head import DiffusionHead
from bitdance.models.packed_batch import PackedBatch, PackedDraws
from bitdance.models.perturbation import perturb
from bitdance.models.projectors import TextToImageProjection, position_embedding_2d
from bitdance.models.qwen3 import Qwen3ForCausalLM, rope_frequencies, rotations
from bitdance.models.text_to_image_config import TextToImageConfig
from bitdance.models.token_order import generation_order, tokens_to_latents

__all__ = ["Losses", "TextToImageModel"]

_TEXT_ROWS = 512  # rows whose logits exist at a time


class Losses(NamedTuple):
    """Losses of a packed batch; which means are taken, and how they are weighted, is the caller's.

    Attributes:
        text: [R], cross entropy of each text token.
        vision: [mul M / P, P], squared error of each token that the head predicts.
    """

    text: torch.Tensor
    vision: torch.Tensor

    def means(self) -> torch.Tensor:
        """Means of both, [2]; the mean of nothing is 0."""
        return torch.stack([losses.sum() / max(1, losses.numel()) for losses in self])


class Conditions(NamedTuple):
    """What the head is trained on.

    Attributes:
        hidden: [T, C], normalized outputs of the language model.
        fed: [N, bits], image tokens after flips.
        embedded: [N, C], as they enter the language model.
        target: [mul M / P, P, bits], bits to predict.
        cond: [mul M / P, P, C], conditioning of the head.
    """

    hidden: torch.Tensor
    fed: torch.Tensor
    embedded: torch.Tensor
    target: torch.Tensor
    cond: torch.Tensor


class TextToImageModel(nn.Module):
    """Language model, head, autoencoder and projector, under the names of the official pipeline.

    Args:
        config: shape of the model.
        **factory: ``dtype`` and ``device`` as torch.nn's layers take them.
    """

    def __init__(self, config: TextToImageConfig, **factory: Any) -> None:
        super().__init__()
        self.config = config
        self.llm_model = Qwen3ForCausalLM(config.llm, **factory)
        self.vision_head = DiffusionHead(config.head, **factory)
        self.ae = BinaryAutoencoder(config.autoencoder, **factory)
        self.embed_vision_mlp = TextToImageProjection(
            config.autoencoder.z_channels, config.llm.hidden_size, **factory
        )

    @property
    def blocks(self) -> tuple[nn.Module, nn.Module]:
        """Blocks of the language model, and of the head."""
        return self.llm_model.model.layers, self.vision_head.net.res_blocks

    def order(self, grid: tuple[int, int]) -> torch.Tensor:
        """Raster index of the k-th token of an image of `grid` tokens (height, width)."""
        device = self.llm_model.model.norm.weight.device
        return generation_order(grid, self.config.parallel_num, "patch", device)

    def positions(self, grid: tuple[int, int]) -> torch.Tensor:
        """Position embeddings of the tokens of an image, float32 [N, C], in generation order."""
        return position_embedding_2d(self.order(grid), grid[1], self.config.llm.hidden_size)

    def decode(self, tokens: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
        """Tokens [B, N, bits] of +1 and -1, in generation order, to images [B, 3, H, W].

        Raises:
            ValueError: `tokens` are not those of an image of `grid` tokens.
        """
        return self.ae.decode(self.to_latents(tokens, grid))

    def to_latents(self, tokens: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
        """Tokens [B, N, bits] in generation order to latents [B, bits, h, w].

        Raises:
            ValueError: `tokens` are not those of an image of `grid` tokens.
        """
        expected = (grid[0] * grid[1], self.config.autoencoder.z_channels)
        if tokens.dim() != 3 or tokens.shape[1:] != expected:
            raise ValueError(f"tokens must be {['B', *expected]}, got {list(tokens.shape)}")
        return tokens_to_latents(tokens, 1, self.order(grid), grid)

    def embed(self, tokens: torch.Tensor) -> torch.Tensor:
        """Input of the language model [B, n, hidden] for tokens [B, n, bits] of +1 and -1."""
        return self.embed_vision_mlp(tokens.to(self.embed_vision_mlp.fc1.weight.dtype))

    def forward(
        self,
        batches: Sequence[PackedBatch],
        draws: Sequence[PackedDraws] | None = None,
        *,
        perturb_rate: float = 0.0,
        repeats: int = 1,
    ) -> torch.Tensor:
        """Mean losses of packed batches, float32 [n, 2]: of text and of vision; see ``losses``."""
        draws = draws or [PackedDraws()] * len(batches)
        return torch.stack([
            self.losses(batch, drawn, perturb_rate=perturb_rate, repeats=repeats).means()
            for batch, drawn in zip(batches, draws, strict=True)
        ])  # fmt: skip

    def losses(
        self,
        batch: PackedBatch,
        draws: PackedDraws | None = None,
        *,
        perturb_rate: float = 0.0,
        repeats: int = 1,
    ) -> Losses:
        """Losses of a packed batch, of each token, with gradients.

        Args:
            batch: documents.
            draws: random numbers to use; drawn by default.
            perturb_rate: twice the probability by which a bit that is fed flips in training mode;
                targets stay clean.
            repeats: number of times and noises at which the head sees each patch.

        Raises:
            ValueError: tokens have other bits than the model's, or draws do not fit the batch.
        """
        draws = draws or PackedDraws()
        made = self.conditions(batch, draws, perturb_rate=perturb_rate, repeats=repeats)
        vision = self.vision_head.loss(
            made.target, made.cond, time_draw=draws.time, noise=draws.noise
        )
        text = self.text_losses(made.hidden[batch.text_rows], batch.text_labels)
        return Losses(text, vision)

    def conditions(
        self,
        batch: PackedBatch,
        draws: PackedDraws | None = None,
        *,
        perturb_rate: float = 0.0,
        repeats: int = 1,
    ) -> Conditions:
        """What the head is trained on; arguments as for ``losses``."""
        config, trunk, draws = self.config, self.llm_model.model, draws or PackedDraws()
        tokens = batch.tokens(config.autoencoder.z_channels)
        positions = self._positions_of(batch.grids, tokens.device)
        fed = tokens
        if self.training and perturb_rate > 0 and len(batch.loss_tokens):
            flipped = perturb(tokens[batch.loss_tokens], perturb_rate, draws.flips)
            fed = tokens.index_copy(0, batch.loss_tokens, flipped)
        x = trunk.embed_tokens(batch.token_ids)
        embedded = self.embed(fed).to(x.dtype) + positions.to(x.dtype)
        x = x.index_copy(0, batch.fed_rows, embedded)
        frequencies = rope_frequencies(config.llm.head_dim, config.llm.rope_theta)
        freqs = rotations(batch.position_ids, frequencies.to(x.device))
        hidden = trunk(x[None], freqs, batch.ranges)[0]
        cond = hidden[batch.loss_rows] + positions[batch.loss_tokens].to(hidden.dtype)
        patches = (-1, config.parallel_num)
        target = tokens[batch.loss_tokens].unflatten(0, patches)
        return Conditions(
            hidden, fed, embedded,
            target.repeat(repeats, 1, 1), cond.unflatten(0, patches).repeat(repeats, 1, 1),
        )  # fmt: skip

    def text_losses(self, hidden: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Cross entropy of text tokens, float32 [R].

        Logits of a few rows exist at a time, and are computed again for the gradient.

        Args:
            hidden: [R, C], outputs of the language model.
            labels: int64 [R].
        """
        weight = self.llm_model.output_weight
        parts = zip(hidden.split(_TEXT_ROWS), labels.split(_TEXT_ROWS), strict=True)
        return torch.cat([
            checkpoint(_cross_entropy, rows, weight, ids, use_reentrant=False)
            for rows, ids in parts
        ])  # fmt: skip

    def _positions_of(self, grids: Sequence[tuple[int, int]], device: torch.device) -> torch.Tensor:
        """Position embeddings of the tokens of several images, float32 [N, C]."""
        width, P = self.config.llm.hidden_size, self.config.parallel_num
        parts = [_positions(grid, P, width, device) for grid in grids]
        return torch.cat([*parts, torch.empty(0, width, dtype=torch.float32, device=device)])


@lru_cache(maxsize=64)
def _positions(
    grid: tuple[int, int], parallel_num: int, width: int, device: torch.device
) -> torch.Tensor:
    order = generation_order(grid, parallel_num, "patch", device)
    return position_embedding_2d(order, grid[1], width)


def _cross_entropy(
    hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor
) -> torch.Tensor:
    logits = F.linear(hidden.to(weight.dtype), weight)
    return F.cross_entropy(logits.float(), labels, reduction="none")
