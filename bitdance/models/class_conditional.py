"""The class-conditional model: autoencoder, transformer and diffusion head.

A sequence is the class prefix, P - 1 query tokens and the image's tokens in generation order
without the last P. The transformer's output at a position conditions the head that generates the
token P positions on; so the P outputs of each block of P give the next patch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from bitdance.models.autoencoder.autoencoder import BinaryAutoencoder
from bitdance.models.config import ModelConfig
from bitdance.models.diffusion_head import DiffusionHead
from bitdance.models.kv_cache import KVCache
from bitdance.models.layers import RMSNorm
from bitdance.models.perturbation import perturb
from bitdance.models.projectors import InputProjection
from bitdance.models.token_order import generation_order, latents_to_tokens, tokens_to_latents
from bitdance.models.tracing import is_traced
from bitdance.models.transformer import Transformer, cell_centers, rope_table_2d
from bitdance_kernels import Ranges, block_causal_ranges

__all__ = ["BitDanceModel", "TrainingDraws"]

_EPS = 1e-6


@dataclass(frozen=True)
class TrainingDraws:
    """Random numbers of one training step; those that are None are drawn, in this order.

    Attributes:
        flips: seeds of the images' flips, int64 [B], or two uniforms [B, N, C] each; see `perturb`.
        drop: uniform [B]; the class is hidden where it is below the dropout probability.
        time: [R], see ``DiffusionHead.loss``; R = B N / P times ``diff_batch_mul``.
        noise: [R, P, C] ([R, C] with one token a step).
    """

    flips: torch.Tensor | tuple[torch.Tensor, torch.Tensor] | None = None
    drop: torch.Tensor | None = None
    time: torch.Tensor | None = None
    noise: torch.Tensor | None = None


class BitDanceModel(nn.Module):
    """BitDance for ImageNet-like classes, for any number of tokens per step.

    Parameter names and shapes are those of the official checkpoints; those of the autoencoder are
    below ``vae.`` and need no gradients, since it is trained on its own.

    Args:
        config: shape of the model.
        **factory: ``dtype`` and ``device`` as torch.nn's layers take them.
    """

    def __init__(self, config: ModelConfig, **factory: Any) -> None:
        super().__init__()
        self.config = config
        dim = config.dim
        self.vae = BinaryAutoencoder(config.autoencoder, **factory).requires_grad_(False)
        if config.parallel_num > 1:
            queries = (1, config.parallel_num - 1, dim)
            made = torch.empty(queries, dtype=factory.get("dtype"), device=factory.get("device"))
            self.query_token = nn.Parameter(made)
            nn.init.normal_(self.query_token, std=0.02)
        self.cls_embedding = nn.Embedding(
            config.num_classes + 1, dim * config.cls_token_num, **factory
        )
        self.proj_in = InputProjection(config.token_bits, dim, **factory)
        self.emb_norm = RMSNorm(dim, eps=_EPS, **factory)
        self.layers = Transformer(config.n_layer, dim, config.n_head, **factory)
        self.norm = RMSNorm(dim, eps=_EPS, **factory)
        self.pos_for_diff = nn.Embedding(config.tokens, dim, **factory)
        self.head = DiffusionHead(config.head, **factory)
        nn.init.normal_(self.cls_embedding.weight, std=0.02)
        nn.init.normal_(self.pos_for_diff.weight, std=0.02)

        self._tables: tuple[torch.Tensor, torch.Tensor] | None = None

    @property
    def blocks(self) -> tuple[nn.Module, nn.Module]:
        """Blocks of the transformer, and of the head."""
        return self.layers, self.head.net.res_blocks

    @property
    def order(self) -> torch.Tensor:
        """Raster index of the k-th token that is generated, int64 [N]."""
        return self._order_and_freqs()[0]

    @property
    def freqs(self) -> torch.Tensor:
        """Rotation of every position of the sequence, see ``rope_table_2d``."""
        return self._order_and_freqs()[1]

    def _order_and_freqs(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Both tables, on the device of the parameters.

        They are not buffers: ``.to(dtype)`` would round the angles, and a model built on the meta
        device would never get them.
        """
        device = self.norm.weight.device
        if self._tables is None or self._tables[0].device != device:
            config = self.config
            grid = (config.grid, config.grid)
            # Tensors made in inference mode could not be used in training.
            with torch.inference_mode(False):
                order = generation_order(grid, config.parallel_num, config.parallel_mode)
                # The last P tokens are never an input.
                fed = cell_centers(*grid)[order[: config.tokens - config.parallel_num]]
                freqs = rope_table_2d(fed, self.layers.head_dim, config.prefix)
                tables = order.to(device), freqs.to(device)
            if is_traced():  # these have no values, or belong to the program
                return tables
            self._tables = tables
        return self._tables

    def ranges(self, patches: int | None = None) -> Ranges:
        """Mask of a sequence that predicts `patches` patches, by default all, as intervals."""
        config = self.config
        patches = config.ar_steps if patches is None else patches
        return block_causal_ranges(
            config.cls_token_num - 1, patches, config.parallel_num, device=self.freqs.device
        )

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        """Images to tokens.

        Args:
            images: [B, 3, H, W] in [-1, 1], of the model's resolution.

        Returns:
            [B, N, C] of +1 and -1, in generation order.

        Raises:
            TypeError: `images` is not floating point.
            ValueError: another shape.
        """
        config = self.config
        side = config.grid * config.patch_size * config.autoencoder.downsampling
        shape = (config.autoencoder.in_channels, side, side)
        if images.dim() != 4 or images.shape[1:] != shape:
            expected = f"[B, {shape[0]}, {side}, {side}]"
            raise ValueError(f"images must be {expected}, got {list(images.shape)}")
        with torch.no_grad():
            return self.to_tokens(self.vae.encode(images))

    def decode(self, tokens: torch.Tensor) -> torch.Tensor:
        """Tokens [B, N, C] of +1 and -1, in generation order, to images [B, 3, H, W].

        Raises:
            ValueError: `tokens` has another shape.
        """
        return self.vae.decode(self.to_latents(tokens))

    def to_tokens(self, latents: torch.Tensor) -> torch.Tensor:
        """Latents [B, latent_dim, h, w], with any strides, to tokens [B, N, C].

        Raises:
            ValueError: `latents` has another shape.
        """
        config = self.config
        side = config.grid * config.patch_size
        if latents.dim() != 4 or latents.shape[1:] != (config.latent_dim, side, side):
            expected = f"[B, {config.latent_dim}, {side}, {side}]"
            raise ValueError(f"latents must be {expected}, got {list(latents.shape)}")
        return latents_to_tokens(latents, config.patch_size, self.order)

    def to_latents(self, tokens: torch.Tensor) -> torch.Tensor:
        """Tokens [B, N, C] in generation order to latents [B, latent_dim, h, w].

        Raises:
            ValueError: `tokens` has another shape.
        """
        self._check_tokens(tokens)
        grid = (self.config.grid, self.config.grid)
        return tokens_to_latents(tokens, self.config.patch_size, self.order, grid)

    def _check_tokens(self, tokens: torch.Tensor, rows: int | None = None) -> None:
        of_image = (self.config.tokens, self.config.token_bits)
        right_rows = rows is None or tokens.shape[:1] == (rows,)
        if tokens.dim() != 3 or tokens.shape[1:] != of_image or not right_rows:
            expected = f"[{'B' if rows is None else rows}, {of_image[0]}, {of_image[1]}]"
            raise ValueError(f"tokens must be {expected}, got {list(tokens.shape)}")

    def check_labels(self, labels: torch.Tensor, *, values: bool) -> None:
        """Check that labels are int64 or int32 [B], and with `values` that they are classes.

        Checking values waits for a GPU.

        Raises:
            ValueError: `labels` has another dtype, shape or values.
        """
        if labels.dim() != 1 or labels.dtype not in (torch.int64, torch.int32):
            raise ValueError(f"labels must be int64 [B], got {labels.dtype} {list(labels.shape)}")
        count = self.config.num_classes
        if values and bool(((labels < 0) | (labels >= count)).any()):
            raise ValueError(f"labels must be 0 to {count - 1}, got {labels.tolist()}")

    def prefix(self, labels: torch.Tensor) -> torch.Tensor:
        """Class tokens and query tokens, [B, cls + P - 1, dim]; label ``num_classes`` is none."""
        config = self.config
        rows = self.cls_embedding(labels).view(labels.shape[0], config.cls_token_num, config.dim)
        if config.parallel_num == 1:
            return rows
        return torch.cat([rows, self.query_token.expand(labels.shape[0], -1, -1)], dim=1)

    def embed(self, tokens: torch.Tensor) -> torch.Tensor:
        """Input of the transformer [B, n, dim] for tokens [B, n, C] of +1 and -1.

        Like the whole residual stream, it has the dtype of the parameters under autocast too.
        """
        return self.proj_in(tokens.to(self._dtype)).to(self._dtype)

    def forward(
        self, tokens: torch.Tensor, labels: torch.Tensor, draws: TrainingDraws | None = None
    ) -> torch.Tensor:
        """Training loss of a batch: the mean of the head's loss over all tokens.

        In training mode bits of the input tokens flip and classes are hidden, at the configured
        rates; the targets stay clean.

        Args:
            tokens: [B, N, C] of +1 and -1 in generation order, as ``encode`` gives.
            labels: int64 [B].
            draws: random numbers to use; drawn by default.

        Returns:
            A scalar, float32.

        Raises:
            ValueError: `tokens` or `labels` has another shape, or a label is out of range.
        """
        target, cond = self.conditions(tokens, labels, draws)
        draws = draws or TrainingDraws()
        return self.head.loss(target, cond, time_draw=draws.time, noise=draws.noise)

    def conditions(
        self, tokens: torch.Tensor, labels: torch.Tensor, draws: TrainingDraws | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Targets and conditioning of the head: [R, P, C] and [R, P, dim] ([R, ...] with P = 1).

        Targets have the dtype of `tokens`, the conditioning that of the parameters, also under
        autocast. Every patch is repeated ``diff_batch_mul`` times, since it is trained at that many
        noise levels.
        """
        config = self.config
        on_host = labels.device.type == "cpu" and not is_traced()
        self.check_labels(labels, values=on_host)
        self._check_tokens(tokens, labels.shape[0])
        draws = draws or TrainingDraws()
        fed = tokens
        if self.training:
            fed = perturb(tokens, config.perturb_rate, draws.flips)
            drop = draws.drop
            if drop is None:
                drop = torch.rand(labels.shape[0], dtype=torch.float32, device=labels.device)
            labels = torch.where(drop < config.class_dropout_prob, config.num_classes, labels)
        fed = self.embed(fed[:, : config.tokens - config.parallel_num])
        sequence = self.emb_norm(torch.cat([self.prefix(labels), fed], dim=1))
        hidden = self.norm(self.layers(sequence, self.freqs, self.ranges()))
        cond = hidden[:, -config.tokens :] + self.pos_for_diff.weight
        patch = () if config.parallel_num == 1 else (config.parallel_num,)
        times = config.diff_batch_mul
        return (
            tokens.reshape(-1, *patch, config.token_bits).repeat(times, *[1] * (len(patch) + 1)),
            cond.reshape(-1, *patch, config.dim).repeat(times, *[1] * (len(patch) + 1)),
        )

    @property
    def _dtype(self) -> torch.dtype:
        return self.norm.weight.dtype

    @torch.no_grad()
    def decode_step(
        self, x: torch.Tensor, cache: KVCache, mask: Ranges | None = None
    ) -> torch.Tensor:
        """Normalized outputs of new tokens, which are added to the cache.

        Args:
            x: embedded tokens [B, T, dim], from ``prefix`` or ``embed``.
            cache: cache of B rows.
            mask: which keys each token sees, for the first tokens of an empty cache; by default
                the whole cache and the new tokens.

        Returns:
            [B, T, dim].
        """
        return self.norm(self.layers.decode(self.emb_norm(x), self.freqs, cache, mask))
