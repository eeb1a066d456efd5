"""Encoder and decoder of the binary autoencoder.

Parameter names are those of the official checkpoints. Level i has ``ch * ch_mult[i]`` channels and
works at ``1 / 2^i`` of the image's resolution.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple, cast

import torch
from torch import nn

from bitdance.models.autoencoder.attention import (
    REGISTER_TOKENS,
    attend,
    attention_blocks,
    center_positions,
    edge_positions,
)
from bitdance.models.config import NORM_GROUPS, AutoencoderConfig
from bitdance.models.layers import Linear
from bitdance_kernels import group_norm_silu

__all__ = [
    "AdaptiveGroupNorm",
    "CodeStatistics",
    "Decoder",
    "Encoder",
    "Modulation",
    "Upsample",
    "depth_to_space",
]

_EPS = 1e-6

Normalize = Callable[..., torch.Tensor]
"""Has the signature of `group_norm_silu`. The tiled decoder passes its own, which knows the
statistics of the whole map."""


class CodeStatistics(NamedTuple):
    """Mean and standard deviation of latents over their positions, each [B, C], for AdaGN."""

    mean: torch.Tensor
    std: torch.Tensor

    @classmethod
    def of(cls, latents: torch.Tensor) -> CodeStatistics:
        """Statistics of `latents` [B, C, h, w]: std = sqrt(unbiased variance + 1e-6)."""
        # Not by torch.var_mean, which takes the values one by one on the CPU.
        wide = latents.to(torch.promote_types(latents.dtype, torch.float32))
        mean = wide.mean(dim=(2, 3), keepdim=True)
        variance = (wide - mean).square().sum(dim=(2, 3)) / (
            latents.shape[2] * latents.shape[3] - 1
        )
        return cls(mean[:, :, 0, 0].to(latents.dtype), (variance + _EPS).sqrt().to(latents.dtype))


class Modulation(NamedTuple):
    """What an adaptive norm multiplies a map's channels by and adds to them, each [B, channels]."""

    scale: torch.Tensor
    shift: torch.Tensor


def depth_to_space(x: torch.Tensor, block: int) -> torch.Tensor:
    """Spread channels over blocks of pixels.

    ``out[c, block * y + dy, block * x + dx] = in[(block * dy + dx) * C + c, y, x]``

    The channel varies fastest, unlike in ``torch.pixel_shuffle``.

    Args:
        x: [B, block^2 C, H, W].
        block: side of a block.

    Returns:
        [B, C, block H, block W], channels-last: for a channels-last `x` that is one copy of runs of
        ``block * C`` values.

    Raises:
        ValueError: block^2 does not divide the number of channels.
    """
    if x.dim() != 4 or x.shape[1] % block**2 != 0:
        expected = f"[B, {block**2} C, H, W] for block = {block}"
        raise ValueError(f"depth_to_space: x must be {expected}, got {list(x.shape)}")
    B, _, H, W = x.shape
    blocks = x.unflatten(1, (block, block, -1))  # B dy dx C H W
    pixels = blocks.permute(0, 4, 1, 5, 2, 3).reshape(B, block * H, block * W, -1)
    return pixels.permute(0, 3, 1, 2)


class ResBlock(nn.Module):
    """Two times norm, SiLU and 3x3 convolution, added to the input."""

    def __init__(self, in_channels: int, out_channels: int, **factory: Any) -> None:
        super().__init__()
        self.norm1 = _group_norm(in_channels, **factory)
        self.norm2 = _group_norm(out_channels, **factory)
        self.conv1 = _conv3x3(in_channels, out_channels, bias=False, **factory)
        self.conv2 = _conv3x3(out_channels, out_channels, bias=False, **factory)
        self.nin_shortcut: nn.Module | None = None
        if in_channels != out_channels:
            self.nin_shortcut = nn.Conv2d(in_channels, out_channels, 1, bias=False, **factory)

    def forward(self, x: torch.Tensor, normalize: Normalize = group_norm_silu) -> torch.Tensor:
        """[B, in_channels, H, W] -> [B, out_channels, H, W]."""
        h = self.conv1(_apply_norm(self.norm1, x, normalize))
        shortcut = x if self.nin_shortcut is None else self.nin_shortcut(x)
        h = _apply_norm(self.norm2, h, normalize)
        if isinstance(self.conv2, nn.Conv2d):
            return self.conv2(h).add_(shortcut)  # a fresh result, which no gradient needs
        return self.conv2(h, shortcut)  # packed, which adds too


class AdaptiveGroupNorm(nn.Module):
    """y = gamma(std) * GN(x) + beta(mean), with the statistics of the latents of the whole image.

    The scale is not offset by 1.
    """

    def __init__(self, z_channels: int, channels: int, **factory: Any) -> None:
        super().__init__()
        self.gamma = Linear(z_channels, channels, **factory)
        self.beta = Linear(z_channels, channels, **factory)

    def modulation(self, statistics: CodeStatistics) -> Modulation:
        """Statistics of latents that the norm uses."""
        return Modulation(self.gamma(statistics.std), self.beta(statistics.mean))

    def forward(
        self, x: torch.Tensor, modulation: Modulation, normalize: Normalize = group_norm_silu
    ) -> torch.Tensor:
        """[B, channels, H, W] -> the same shape."""
        return normalize(x, NORM_GROUPS, **modulation._asdict(), silu=False, eps=_EPS)


class _Down(nn.Module):
    """A level of the encoder: residual blocks, then, but on the last level, half the resolution."""

    def __init__(self, config: AutoencoderConfig, level: int, **factory: Any) -> None:
        super().__init__()
        widths = [config.ch * multiple for multiple in config.ch_mult]
        # Who changes the width: BitDance's first residual block, or UniWeTok's strided convolution.
        attention = config.architecture == "conv_attention"
        before = widths[level] if attention else [config.ch, *widths][level]
        self.block = _res_blocks(config.num_res_blocks, before, widths[level], **factory)
        self.downsample: nn.Module | None = None
        if level + 1 < len(widths):
            after = widths[level + 1] if attention else widths[level]
            self.downsample = nn.Conv2d(widths[level], after, 3, stride=2, padding=1, **factory)

    def forward(self, h: torch.Tensor) -> torch.Tensor:
        for block in self.block:
            h = block(h)
        return h if self.downsample is None else self.downsample(h)


class Encoder(nn.Module):
    """Image to one real number a bit; its sign is the bit."""

    def __init__(self, config: AutoencoderConfig, **factory: Any) -> None:
        super().__init__()
        self.config = config
        levels = len(config.ch_mult)
        channels = config.ch * config.ch_mult[-1]
        self.conv_in = _conv3x3(config.in_channels, config.ch, bias=False, **factory)
        self.down = nn.ModuleList(_Down(config, level, **factory) for level in range(levels))
        if config.architecture == "conv_attention":
            self.register_token = nn.Embedding(REGISTER_TOKENS, channels, **factory)
            self.mid_attn_blocks = attention_blocks(config, channels, **factory)
        else:
            self.mid_block = _res_blocks(config.num_res_blocks, channels, channels, **factory)
        self.norm_out = _group_norm(channels, **factory)
        self.conv_out = nn.Conv2d(channels, config.z_channels, 1, **factory)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """[B, in_channels, H, W] -> [B, z_channels, H / downsampling, W / downsampling]."""
        h = self.conv_in(images)
        for down in self.down:
            h = down(h)
        if self.config.architecture == "conv_attention":
            tokens, heads = self.register_token.weight, self.config.n_heads
            h = attend(h, tokens, self.mid_attn_blocks, heads, edge_positions)
            h = _apply_norm(self.norm_out, h, silu=False)
            return 2 * torch.sigmoid(self.conv_out(h)) - 1
        for block in self.mid_block:
            h = block(h)
        return self.conv_out(_apply_norm(self.norm_out, h))


class Upsample(nn.Module):
    """Twice the resolution: a convolution to four times the channels, spread over 2 x 2 pixels."""

    def __init__(self, channels: int, **factory: Any) -> None:
        super().__init__()
        self.conv1 = _conv3x3(channels, 4 * channels, **factory)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B, channels, H, W] -> [B, channels, 2 H, 2 W]."""
        return depth_to_space(self.conv1(x), 2)


class _Up(nn.Module):
    """A level of the decoder: residual blocks; `upsample` leads into the next finer level."""

    def __init__(self, config: AutoencoderConfig, level: int, **factory: Any) -> None:
        super().__init__()
        widths = [config.ch * multiple for multiple in config.ch_mult]
        before = [*widths, widths[-1]][level + 1]
        self.block = _res_blocks(config.num_res_blocks, before, widths[level], **factory)
        self.upsample: nn.Module | None = Upsample(widths[level], **factory) if level > 0 else None

    def forward(self, h: torch.Tensor, normalize: Normalize) -> torch.Tensor:
        for block in self.block:
            h = block(h, normalize)
        return h


class Decoder(nn.Module):
    """Latents to an image, in three stages: `stem` (at their resolution), `levels`, `head`.

    The stages are public for the tiled decoder, which runs the first ones on all latents.
    Maps are channels-last, the layout in which convolutions and norms are fastest, and nothing
    between two convolutions changes it. Weights of that layout save a copy of them a call:
    ``decoder.to(memory_format=torch.channels_last)``, as ``BitDance`` does.
    """

    def __init__(self, config: AutoencoderConfig, **factory: Any) -> None:
        super().__init__()
        self.config = config
        widths = [config.ch * multiple for multiple in config.ch_mult]
        in_channels = config.z_channels * (2 if config.gan_decoder else 1)
        self.conv_in = _conv3x3(in_channels, widths[-1], **factory)
        if config.architecture == "conv_attention":
            self.register_token = nn.Embedding(REGISTER_TOKENS, widths[-1], **factory)
            self.mid_attn_blocks = attention_blocks(config, widths[-1], **factory)
        self.mid_block = _res_blocks(config.num_res_blocks, widths[-1], widths[-1], **factory)
        self.up = nn.ModuleList(_Up(config, level, **factory) for level in range(len(widths)))
        self.adaptive = nn.ModuleList(
            AdaptiveGroupNorm(config.z_channels, width, **factory)
            for width in [*widths[1:], widths[-1]]
        )
        self.norm_out = _group_norm(widths[0], **factory)
        self.conv_out = _conv3x3(widths[0], config.out_ch, **factory)

    def forward(self, latents: torch.Tensor, noise: torch.Tensor | None = None) -> torch.Tensor:
        """[B, z_channels, h, w] -> [B, out_ch, h * downsampling, w * downsampling]."""
        modulations = self.modulations(latents)
        h = self.stem(latents, noise)
        h = self.levels(h, modulations, reversed(range(len(self.up))))
        return self.head(h)

    def modulations(self, latents: torch.Tensor) -> list[Modulation]:
        """Statistics of latents that the adaptive norm of every level uses.

        All at once: one by one, between large maps, such small products take twice as long on the
        CPU, whose caches have forgotten how.
        """
        statistics = CodeStatistics.of(latents)
        return [cast(AdaptiveGroupNorm, norm).modulation(statistics) for norm in self.adaptive]

    def stem(self, latents: torch.Tensor, noise: torch.Tensor | None) -> torch.Tensor:
        """First convolution and middle; the noise's channels follow those of the latents."""
        h = latents if noise is None else torch.cat([latents, noise], dim=1)
        h = self.conv_in(h.contiguous(memory_format=torch.channels_last))
        if self.config.architecture == "conv_attention":
            tokens, heads = self.register_token.weight, self.config.n_heads
            h = attend(h, tokens, self.mid_attn_blocks, heads, center_positions)
        for block in self.mid_block:
            h = block(h)
        return h

    def levels(
        self,
        h: torch.Tensor,
        modulations: Sequence[Modulation],
        levels: Iterable[int],
        normalize: Normalize = group_norm_silu,
    ) -> torch.Tensor:
        """Run the given levels, coarsest (highest) first.

        Every level but the coarsest begins with the upsampling into it.
        """
        for level in levels:
            if level + 1 < len(self.up):
                upsample = cast(_Up, self.up[level + 1]).upsample
                assert upsample is not None  # only level 0 has none
                h = upsample(h)
            h = self.adaptive[level](h, modulations[level], normalize)
            h = self.up[level](h, normalize)
        return h

    def head(self, h: torch.Tensor, normalize: Normalize = group_norm_silu) -> torch.Tensor:
        """Last norm and convolution."""
        return self.conv_out(_apply_norm(self.norm_out, h, normalize))


def _apply_norm(
    norm: nn.GroupNorm, x: torch.Tensor, normalize: Normalize = group_norm_silu, silu: bool = True
) -> torch.Tensor:
    return normalize(x, norm.num_groups, norm.weight, norm.bias, silu=silu, eps=norm.eps)


def _group_norm(channels: int, **factory: Any) -> nn.GroupNorm:
    return nn.GroupNorm(NORM_GROUPS, channels, eps=_EPS, **factory)


def _conv3x3(in_channels: int, out_channels: int, bias: bool = True, **factory: Any) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=bias, **factory)


def _res_blocks(count: int, in_channels: int, out_channels: int, **factory: Any) -> nn.ModuleList:
    """`count` blocks, the first of which changes the width."""
    widths = [in_channels] + [out_channels] * count
    return nn.ModuleList(ResBlock(*pair, **factory) for pair in pairwise(widths))
