"""The text-to-image model: a language model whose sequence ends in patches of an image.

A sequence is the prompt, <|vision_start|>, tokens for height and width, and P - 1 query tokens. All
but the last P run causally. Those P, the width and the queries, are the first block; a block's
outputs condition the head that samples the next P tokens, which are the next block. Tokens of a
block see each other and all before them. Two-dimensional sinusoids are added to the head's
conditions, and to the tokens that are fed back.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from bitdance.models.autoencoder.autoencoder import BinaryAutoencoder
from bitdance.models.diffusion_head import DiffusionHead
from bitdance.models.projectors import TextToImageProjection, position_embedding_2d
from bitdance.models.qwen3 import Qwen3ForCausalLM
from bitdance.models.text_to_image_config import TextToImageConfig
from bitdance.models.token_order import generation_order, tokens_to_latents

__all__ = ["TextToImageModel"]


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
