"""Encoder and decoder of the binary autoencoder; parameter names are those of the official checkpoints.

Widths: level i has ``ch * ch_mult[i]`` channels and works at ``1 / 2^i`` of the image's resolution.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from bitdance.config import NORM_GROUPS, AutoencoderConfig
from bitdance_kernels import group_norm_silu, swiglu

__all__ = ["AdaptiveGroupNorm", "CodeStatistics", "Decoder", "Encoder", "depth_to_space"]

_EPS = 1e-6
_REGISTER_TOKENS = 4
_ROPE_BASE = 10000.0
# The latent grid UniWeTok's positions refer to (256 pixels, 32 a code): whatever the image's size, cell
# centres are stretched over 8 cells.
_POSITION_GRID = 8

Normalize = Callable[..., torch.Tensor]
"""Has the signature of `group_norm_silu`. The tiled decoder passes its own, which knows the statistics
of the whole map."""


class CodeStatistics(NamedTuple):
    """Mean and standard deviation of a code over its positions, each [B, C]: the AdaGN condition."""

    mean: torch.Tensor
    std: torch.Tensor

    @classmethod
    def of(cls, codes: torch.Tensor) -> CodeStatistics:
        """Statistics of `codes` [B, C, h, w]: std = sqrt(unbiased variance + 1e-6)."""
        variance, mean = torch.var_mean(codes.float(), dim=(2, 3), correction=1)
        return cls(mean.to(codes.dtype), (variance + _EPS).sqrt().to(codes.dtype))


def depth_to_space(x: torch.Tensor, block: int) -> torch.Tensor:
    """Spread channels over blocks of pixels: out[c, b y + dy, b x + dx] = in[(b dy + dx) C + c, y, x].

    The channel varies fastest, unlike in ``torch.pixel_shuffle``.

    Args:
        x: [B, block^2 C, H, W].
        block: b, side of a block.

    Returns:
        [B, C, block H, block W].

    Raises:
        ValueError: block^2 does not divide the number of channels.
    """
    if x.dim() != 4 or x.shape[1] % block**2 != 0:
        raise ValueError(
            f"depth_to_space: x must be [B, {block**2} C, H, W] for block {block}, got {list(x.shape)}"
        )
    B, _, H, W = x.shape
    blocks = x.unflatten(1, (block, block, -1))  # B dy dx C H W
    return blocks.permute(0, 3, 4, 1, 5, 2).reshape(B, -1, block * H, block * W)


class ResBlock(nn.Module):
    """Two times norm, SiLU and 3x3 convolution, added to the input."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.norm1 = _group_norm(in_channels)
        self.norm2 = _group_norm(out_channels)
        self.conv1 = _conv3x3(in_channels, out_channels, bias=False)
        self.conv2 = _conv3x3(out_channels, out_channels, bias=False)
        self.nin_shortcut: nn.Module | None = None
        if in_channels != out_channels:
            self.nin_shortcut = nn.Conv2d(in_channels, out_channels, 1, bias=False)

    def forward(self, x: torch.Tensor, normalize: Normalize = group_norm_silu) -> torch.Tensor:
        """[B, in_channels, H, W] -> [B, out_channels, H, W]."""
        h = self.conv1(_apply_norm(self.norm1, x, normalize))
        h = self.conv2(_apply_norm(self.norm2, h, normalize))
        return h + (x if self.nin_shortcut is None else self.nin_shortcut(x))


class AdaptiveGroupNorm(nn.Module):
    """y = gamma(std) * GN(x) + beta(mean), with the statistics of the whole image's code.

    The scale is not offset by 1.
    """

    def __init__(self, z_channels: int, channels: int) -> None:
        super().__init__()
        self.gamma = nn.Linear(z_channels, channels)
        self.beta = nn.Linear(z_channels, channels)

    def forward(
        self, x: torch.Tensor, statistics: CodeStatistics, normalize: Normalize = group_norm_silu
    ) -> torch.Tensor:
        """[B, channels, H, W] -> the same shape."""
        scale, shift = self.gamma(statistics.std), self.beta(statistics.mean)
        return normalize(x, NORM_GROUPS, scale=scale, shift=shift, silu=False, eps=_EPS)


class Encoder(nn.Module):
    """Image to one real number a bit; its sign is the bit."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        self.bounded = config.architecture == "conv_attention"
        widths = [config.ch * multiple for multiple in config.ch_mult]
        self.conv_in = _conv3x3(config.in_channels, config.ch, bias=False)
        self.down = nn.ModuleList()
        channels = config.ch
        for level, width in enumerate(widths):
            last = level == len(widths) - 1
            down = nn.Module()
            down.block = _res_blocks(config.num_res_blocks, channels, width)
            channels = width
            if not last:
                if config.architecture == "conv_attention":
                    channels = widths[level + 1]
                down.downsample = nn.Conv2d(width, channels, 3, stride=2, padding=1)
            self.down.append(down)
        if config.architecture == "conv_attention":
            self.register_token = nn.Embedding(_REGISTER_TOKENS, channels)
            self.mid_attn_blocks = _attention_blocks(config, channels)
        else:
            self.mid_block = _res_blocks(config.num_res_blocks, channels, channels)
        self.norm_out = _group_norm(channels)
        self.conv_out = nn.Conv2d(channels, config.z_channels, 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """[B, in_channels, H, W] -> [B, z_channels, H / downsampling, W / downsampling]."""
        h = self.conv_in(images)
        for down in self.down:
            for block in down.block:
                h = block(h)
            if hasattr(down, "downsample"):
                h = down.downsample(h)
        if self.bounded:
            h = _attend(h, self.register_token.weight, self.mid_attn_blocks, _edge_positions)
            h = _apply_norm(self.norm_out, h, silu=False)
            return 2 * torch.sigmoid(self.conv_out(h)) - 1
        for block in self.mid_block:
            h = block(h)
        return self.conv_out(_apply_norm(self.norm_out, h))


class Decoder(nn.Module):
    """Codes to an image, in three stages: `stem` at the code's resolution, `levels`, `head`.

    The stages are public for the tiled decoder, which runs the first ones on the whole code.
    """

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        widths = [config.ch * multiple for multiple in config.ch_mult]
        channels = widths[-1]
        in_channels = config.z_channels * (2 if config.gan_decoder else 1)
        self.conv_in = _conv3x3(in_channels, channels)
        if config.architecture == "conv_attention":
            self.register_token = nn.Embedding(_REGISTER_TOKENS, channels)
            self.mid_attn_blocks = _attention_blocks(config, channels)
        self.mid_block = _res_blocks(config.num_res_blocks, channels, channels)
        ups, norms = [], []
        for level in reversed(range(len(widths))):
            up = nn.Module()
            norms.append(AdaptiveGroupNorm(config.z_channels, channels))
            up.block = _res_blocks(config.num_res_blocks, channels, widths[level])
            channels = widths[level]
            if level > 0:
                up.upsample = _Upsample(channels)
            ups.append(up)
        self.up = nn.ModuleList(reversed(ups))
        self.adaptive = nn.ModuleList(reversed(norms))
        self.norm_out = _group_norm(channels)
        self.conv_out = _conv3x3(channels, config.out_ch)

    def forward(self, codes: torch.Tensor, noise: torch.Tensor | None = None) -> torch.Tensor:
        """[B, z_channels, h, w] -> [B, out_ch, h * downsampling, w * downsampling]."""
        h = self.stem(codes, noise)
        h = self.levels(h, CodeStatistics.of(codes), reversed(range(len(self.up))))
        return self.head(h)

    def stem(self, codes: torch.Tensor, noise: torch.Tensor | None) -> torch.Tensor:
        """First convolution and middle; the noise's channels follow the code's."""
        h = self.conv_in(codes if noise is None else torch.cat([codes, noise], dim=1))
        if hasattr(self, "mid_attn_blocks"):
            h = _attend(h, self.register_token.weight, self.mid_attn_blocks, _centre_positions)
        for block in self.mid_block:
            h = block(h)
        return h

    def levels(
        self,
        h: torch.Tensor,
        statistics: CodeStatistics,
        levels: Iterable[int],
        normalize: Normalize = group_norm_silu,
    ) -> torch.Tensor:
        """Run the given levels, coarsest (highest) first; every level but the coarsest begins with the
        upsampling into it.
        """
        for level in levels:
            if level + 1 < len(self.up):
                h = self.up[level + 1].upsample(h)
            h = self.adaptive[level](h, statistics, normalize)
            for block in self.up[level].block:
                h = block(h, normalize)
        return h

    def head(self, h: torch.Tensor, normalize: Normalize = group_norm_silu) -> torch.Tensor:
        """Last norm and convolution."""
        return self.conv_out(_apply_norm(self.norm_out, h, normalize))


class _Upsample(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = _conv3x3(channels, 4 * channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return depth_to_space(self.conv1(x), 2)


class _AttentionBlock(nn.Module):
    """Transformer block of UniWeTok: full attention with 2D RoPE, then SwiGLU; no biases."""

    def __init__(self, channels: int, num_heads: int) -> None:
        super().__init__()
        hidden = _round_up(int(8 / 3 * channels), 256)
        self.num_heads = num_heads
        self.attention_norm = nn.RMSNorm(channels, eps=_EPS)
        self.attention = nn.Module()
        self.attention.wqkv = nn.Linear(channels, 3 * channels, bias=False)
        self.attention.wo = nn.Linear(channels, channels, bias=False)
        self.ffn_norm = nn.RMSNorm(channels, eps=_EPS)
        self.feed_forward = nn.Module()
        self.feed_forward.w1 = nn.Linear(channels, 2 * hidden, bias=False)
        self.feed_forward.w2 = nn.Linear(hidden, channels, bias=False)

    def forward(self, x: torch.Tensor, rotation: torch.Tensor) -> torch.Tensor:
        """[B, T, C] and the tokens' rotations, complex [T, D / 2] -> [B, T, C]."""
        qkv = self.attention.wqkv(self.attention_norm(x))
        q, k, v = qkv.unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)  # each B H T D
        attended = F.scaled_dot_product_attention(_rotate(q, rotation), _rotate(k, rotation), v)
        x = x + self.attention.wo(attended.transpose(1, 2).flatten(2))
        return x + self.feed_forward.w2(swiglu(self.feed_forward.w1(self.ffn_norm(x))))


def _attend(
    h: torch.Tensor,
    register_tokens: torch.Tensor,
    blocks: nn.ModuleList,
    positions: Callable[[int, torch.device], torch.Tensor],
) -> torch.Tensor:
    """Run attention blocks over a map's positions and the register tokens, which do not come back."""
    B, C, H, W = h.shape
    tokens = torch.cat([register_tokens.to(h.dtype).expand(B, -1, -1), h.flatten(2).mT], dim=1)
    if len(blocks) > 0:
        head_dim = C // blocks[0].num_heads
        rotation = _rotations(positions(H, h.device), positions(W, h.device), head_dim)
        for block in blocks:
            tokens = block(tokens, rotation)
    return tokens[:, len(register_tokens) :].mT.unflatten(2, (H, W))


def _edge_positions(size: int, device: torch.device) -> torch.Tensor:
    """The encoder's: the first and the last cell's centres lie on those of the reference grid."""
    steps = torch.arange(size, device=device, dtype=torch.float32)
    return steps * ((_POSITION_GRID - 1) / (size - 1)) + 0.5


def _centre_positions(size: int, device: torch.device) -> torch.Tensor:
    """The decoder's: the last cell's centre lies on that of the reference grid."""
    centres = torch.arange(size, device=device, dtype=torch.float32) + 0.5
    return centres * ((_POSITION_GRID - 0.5) / (size - 0.5))


def _rotations(y: torch.Tensor, x: torch.Tensor, head_dim: int) -> torch.Tensor:
    """Rotation of every token as a unit complex number for each pair, complex64 [R + H W, head_dim / 2].

    The first head_dim / 4 pairs turn with the column, the others with the row; frequencies are
    10000^(-2 i / (head_dim / 2)), positions start at 1. The R register tokens come first, unrotated.
    """
    pairs = head_dim // 4
    exponents = torch.arange(pairs, device=x.device, dtype=torch.float32) / pairs
    frequencies = _ROPE_BASE**-exponents
    rows, columns = torch.meshgrid(y + 1, x + 1, indexing="ij")
    angles = torch.cat([columns.reshape(-1, 1) * frequencies, rows.reshape(-1, 1) * frequencies], -1)
    angles = F.pad(angles, (0, 0, _REGISTER_TOKENS, 0))
    return torch.polar(torch.ones_like(angles), angles)


def _rotate(x: torch.Tensor, rotation: torch.Tensor) -> torch.Tensor:
    """Turn the pairs (0, 1), (2, 3), ... of x [..., T, D]."""
    pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)).contiguous())
    return torch.view_as_real(pairs * rotation).flatten(-2).to(x.dtype)


def _apply_norm(
    norm: nn.GroupNorm, x: torch.Tensor, normalize: Normalize = group_norm_silu, silu: bool = True
) -> torch.Tensor:
    return normalize(x, norm.num_groups, norm.weight, norm.bias, silu=silu, eps=norm.eps)


def _group_norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(NORM_GROUPS, channels, eps=_EPS)


def _conv3x3(in_channels: int, out_channels: int, bias: bool = True) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=bias)


def _res_blocks(count: int, in_channels: int, out_channels: int) -> nn.ModuleList:
    """`count` blocks, the first of which changes the width."""
    widths = [in_channels] + [out_channels] * count
    return nn.ModuleList(ResBlock(a, b) for a, b in zip(widths, widths[1:], strict=False))


def _attention_blocks(config: AutoencoderConfig, channels: int) -> nn.ModuleList:
    return nn.ModuleList(
        _AttentionBlock(channels, config.n_heads) for _ in range(config.attn_blocks)
    )


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple
