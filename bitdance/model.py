"""The class-conditional model: tokenizer, transformer and diffusion head under one roof.

A sequence is the class prefix, P - 1 query tokens and the image's tokens in generation order
without the last P. The transformer's output at a position conditions the head that generates the
token P positions on; so the P outputs of each block of P give the next patch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from bitdance.autoencoder import BinaryAutoencoder
from bitdance.config import ModelConfig
from bitdance.diffusion_head import DiffusionHead
from bitdance.kv_cache import KVCache
from bitdance.projectors import InputProjection
from bitdance.sampler import Schedule, binarize, sample_patch
from bitdance.token_order import codes_to_tokens, generation_order, tokens_to_codes
from bitdance.transformer import Transformer, cell_centres, rope_table_2d
from bitdance_kernels import Ranges, block_causal_ranges, flip_signs, noise_keys

__all__ = ["BitDanceModel", "StepResult", "TrainingDraws", "guidance_at"]

_EPS = 1e-6


@dataclass(frozen=True)
class TrainingDraws:
    """The random numbers of one training step; what is None is drawn, in this order.

    Attributes:
        flips: two uniforms [B, N, C] each, see ``flip_signs``.
        drop: uniform [B]; the class is hidden where it is below the dropout probability.
        time: [R], see ``DiffusionHead.loss``; R = B N / P times ``diff_batch_mul``.
        noise: [R, P, C] ([R, C] with one token a step).
    """

    flips: tuple[torch.Tensor, torch.Tensor] | None = None
    drop: torch.Tensor | None = None
    time: torch.Tensor | None = None
    noise: torch.Tensor | None = None


class StepResult(NamedTuple):
    """One AR step of ``BitDanceModel.sample``; rows are conditional ones, then unconditional."""

    step: int
    """Number of the step, from 0."""
    cfg: float
    """Guidance of the step."""
    hidden: torch.Tensor
    """The transformer's normalised outputs: at step 0 of the whole prefix, else [rows, P, dim]."""
    prediction: torch.Tensor
    """float32 [rows, P, C], the sampler's last state; its signs are the tokens."""
    tokens: torch.Tensor
    """[rows, P, C] of +1 and -1."""
    packed: torch.Tensor
    """uint8 [rows, P, ceil(C / 8)], the same as bits."""


def guidance_at(step: int, steps: int, scale: float, schedule: str) -> float:
    """Guidance of AR step `step`: constant, or linear as 1 + (scale - 1) step / steps.

    The linear schedule begins at exactly 1, no guidance, and never reaches the scale.

    Raises:
        ValueError: `schedule` is unknown.
    """
    if schedule == "constant":
        return scale
    if schedule == "linear":
        return 1 + (scale - 1) * step / steps
    raise ValueError(f"cfg_schedule must be 'linear' or 'constant', got {schedule!r}")


class BitDanceModel(nn.Module):
    """BitDance for ImageNet-like classes, for any number of tokens per step.

    Parameter names and shapes are those of the official checkpoints, the tokenizer's below ``vae.``
    included.

    Args:
        config: its shape.
    """

    order: torch.Tensor
    freqs: torch.Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        dim = config.dim
        self.vae = BinaryAutoencoder(config.autoencoder)
        if config.parallel_num > 1:
            self.query_token = nn.Parameter(0.02 * torch.randn(1, config.parallel_num - 1, dim))
        self.cls_embedding = nn.Embedding(config.num_classes + 1, dim * config.cls_token_num)
        self.proj_in = InputProjection(config.token_bits, dim)
        self.emb_norm = nn.RMSNorm(dim, eps=_EPS)
        self.layers = Transformer(config.n_layer, dim, config.n_head)
        self.norm = nn.RMSNorm(dim, eps=_EPS)
        self.pos_for_diff = nn.Embedding(config.tokens, dim)
        self.head = DiffusionHead(config.head)
        nn.init.normal_(self.cls_embedding.weight, std=0.02)
        nn.init.normal_(self.pos_for_diff.weight, std=0.02)

        grid = (config.grid, config.grid)
        order = generation_order(grid, config.parallel_num, config.parallel_mode)
        # The last P tokens are never fed in.
        fed = cell_centres(*grid)[order[: config.tokens - config.parallel_num]]
        freqs = rope_table_2d(fed, self.layers.head_dim, config.prefix)
        self.register_buffer("order", order, persistent=False)
        self.register_buffer("freqs", freqs, persistent=False)
        self._cache: KVCache | None = None

    def ranges(self) -> Ranges:
        """Mask of a whole training sequence, as intervals."""
        config = self.config
        return block_causal_ranges(
            config.cls_token_num - 1, config.ar_steps, config.parallel_num, device=self.freqs.device
        )

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        """Images [B, 3, H, W] in [-1, 1] to tokens [B, N, C] of +1 and -1, in generation order."""
        with torch.no_grad():
            codes = self.vae.encode(images)
        return codes_to_tokens(codes, self.config.patch_size, self.order)

    def decode(self, tokens: torch.Tensor) -> torch.Tensor:
        """Tokens [B, N, C] of +1 and -1, in generation order, to images [B, 3, H, W]."""
        return self.vae.decode(self.to_codes(tokens))

    def to_codes(self, tokens: torch.Tensor) -> torch.Tensor:
        """Tokens [B, N, C] in generation order to the tokenizer's map [B, latent_dim, h, w]."""
        grid = (self.config.grid, self.config.grid)
        return tokens_to_codes(tokens, self.config.patch_size, self.order, grid)

    def _prefix(self, labels: torch.Tensor) -> torch.Tensor:
        """Class tokens and query tokens, [B, cls + P - 1, dim]."""
        config = self.config
        rows = self.cls_embedding(labels).view(len(labels), config.cls_token_num, config.dim)
        if config.parallel_num == 1:
            return rows
        return torch.cat([rows, self.query_token.expand(len(labels), -1, -1)], dim=1)

    def _labels(self, labels: torch.Tensor) -> None:
        """Check that they are classes; on the CPU the values too."""
        if labels.dim() != 1 or labels.dtype not in (torch.int64, torch.int32):
            raise ValueError(f"labels must be int64 [B], got {labels.dtype} {list(labels.shape)}")
        count = self.config.num_classes
        if labels.device.type == "cpu" and bool(((labels < 0) | (labels >= count)).any()):
            raise ValueError(f"labels must be 0 to {count - 1}, got {labels.tolist()}")

    def forward(
        self, tokens: torch.Tensor, labels: torch.Tensor, draws: TrainingDraws | None = None
    ) -> torch.Tensor:
        """Training loss of a batch: the mean of the head's loss over all tokens.

        In training mode bits of the tokens that are fed in flip and classes are hidden, at the
        configured rates; the targets stay clean.

        Args:
            tokens: [B, N, C] of +1 and -1 in generation order, as ``encode`` gives.
            labels: int64 [B].
            draws: random numbers to use, for comparisons.

        Returns:
            A scalar.

        Raises:
            ValueError: shapes or labels do not fit.
        """
        target, cond = self.conditions(tokens, labels, draws)
        draws = draws or TrainingDraws()
        return self.head.loss(target, cond, time_draw=draws.time, noise=draws.noise)

    def conditions(
        self, tokens: torch.Tensor, labels: torch.Tensor, draws: TrainingDraws | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Targets and conditioning of the head: [R, P, C] and [R, P, dim] ([R, ...] with P = 1).

        Every patch of the batch ``diff_batch_mul`` times over, since each is trained at that many
        noise levels.
        """
        config = self.config
        expected = (len(labels), config.tokens, config.token_bits)
        if tokens.shape != expected:
            raise ValueError(f"tokens must be {list(expected)}, got {list(tokens.shape)}")
        self._labels(labels)
        draws = draws or TrainingDraws()
        fed = tokens
        if self.training:
            fed = self._perturb(tokens, draws.flips)
            drop = draws.drop
            drop = torch.rand(len(labels), device=labels.device) if drop is None else drop
            labels = torch.where(drop < config.class_dropout_prob, config.num_classes, labels)
        fed = self.proj_in(fed[:, : config.tokens - config.parallel_num].to(self._dtype))
        sequence = self.emb_norm(torch.cat([self._prefix(labels), fed], dim=1))
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

    def _perturb(
        self, tokens: torch.Tensor, flips: tuple[torch.Tensor, torch.Tensor] | None
    ) -> torch.Tensor:
        """Flip bits at the configured rate."""
        if flips is None:
            flips = (torch.rand_like(tokens), torch.rand_like(tokens))
        # The op works on whole bytes of bits; a batch need not be a multiple of 8 of them.
        missing = -tokens.numel() % 8
        r1, r2 = (F.pad(uniform.flatten(), (0, missing)) for uniform in flips)
        bits = F.pad(tokens.flatten(), (0, missing))
        flipped = flip_signs(bits, self.config.perturb_rate, uniforms=(r1, r2))
        return flipped[: tokens.numel()].view_as(tokens)

    @torch.no_grad()
    def sample(
        self,
        labels: torch.Tensor,
        *,
        steps: int = 100,
        cfg_scale: float = 1.0,
        cfg_schedule: str = "linear",
        seeds: Sequence[int] | None = None,
        sample_ids: Sequence[int] | None = None,
        noise: Sequence[Sequence[torch.Tensor]] | None = None,
        on_step: Callable[[StepResult], None] | None = None,
    ) -> torch.Tensor:
        """Generate the tokens of one image per label.

        With guidance the batch holds 2 B rows, conditional first. Where the guidance of a step is 1
        although the scale is more (step 0 of the linear schedule), both halves draw noise of their
        own and go on with tokens of their own; at the other steps they share them. This is the
        published behaviour.

        Args:
            labels: int64 [B].
            steps: noisy denoising steps per patch.
            cfg_scale: guidance; at most 1 is none, and no unconditional rows are computed.
            cfg_schedule: "linear" or "constant", see ``guidance_at``.
            seeds: one per image; an image's noise depends on its seed and sample id alone.
            sample_ids: one per image, by default 0.
            noise: instead of seeds, per AR step the draws of ``sample_patch``.
            on_step: called after every AR step; may raise to stop.

        Returns:
            [B, N, C] of +1 and -1, in generation order.

        Raises:
            ValueError: an argument is out of range.
        """
        config = self.config
        self._labels(labels)
        if (seeds is None) == (noise is None):
            raise ValueError("sample: give either seeds or noise")
        guidance = [
            guidance_at(i, config.ar_steps, cfg_scale, cfg_schedule) for i in range(config.ar_steps)
        ]
        guided = cfg_scale > 1
        rows = (
            torch.cat([labels, torch.full_like(labels, config.num_classes)]) if guided else labels
        )
        cache = self._reserve(len(rows))
        schedule = Schedule.of(self.head.net, steps)
        position = self.pos_for_diff.weight
        x = self._prefix(rows)
        ranges: Ranges | None = self._prefill_ranges()
        made = []
        for i, cfg in enumerate(guidance):
            x = self.layers.decode(self.emb_norm(x), self.freqs, cache, ranges)
            hidden, ranges = self.norm(x), None
            first = i * config.parallel_num
            last = hidden[:, -config.parallel_num :]
            cond = last + position[first : first + config.parallel_num]
            shared = guided and cfg > 1
            prediction = sample_patch(
                self.head.net,
                schedule,
                cond if config.parallel_num > 1 else cond.squeeze(1),
                cfg=cfg if shared else None,
                noise=None if noise is None else noise[i],
                keys=None if seeds is None else self._keys(seeds, sample_ids, i, guided, shared),
            ).view(-1, config.parallel_num, config.token_bits)
            if shared:
                prediction = torch.cat([prediction, prediction])
            tokens, packed = binarize(prediction)
            made.append(tokens[: len(labels)])
            if on_step is not None:
                on_step(StepResult(i, cfg, hidden, prediction, tokens, packed))
            x = self.proj_in(tokens.to(self._dtype))
        return torch.cat(made, dim=1)

    def _keys(
        self,
        seeds: Sequence[int],
        sample_ids: Sequence[int] | None,
        step: int,
        guided: bool,
        shared: bool,
    ) -> torch.Tensor:
        ids = [0] * len(seeds) if sample_ids is None else list(sample_ids)
        streams = (0, 1) if guided and not shared else (0,)
        device = self.freqs.device
        keys = [
            noise_keys(list(seeds), ids, ar_step=step, stream=stream, device=device)
            for stream in streams
        ]
        return torch.cat(keys)

    def _prefill_ranges(self) -> Ranges:
        config = self.config
        return block_causal_ranges(
            config.cls_token_num - 1, 1, config.parallel_num, device=self.freqs.device
        )

    def _reserve(self, rows: int) -> KVCache:
        """The cache of the last run if it fits, else a new one."""
        tokens, dtype, device = len(self.freqs), self._dtype, self.freqs.device
        if self._cache is None or not self._cache.fits(rows, tokens, dtype, device):
            self._cache = KVCache(
                self.config.n_layer,
                rows,
                tokens,
                self.layers.num_heads,
                self.layers.head_dim,
                dtype=dtype,
                device=device,
            )
        self._cache.reset()
        return self._cache
