"""The published sampler in plain PyTorch, on the weights of a ``BitDanceModel``: the baseline.

Written after the published code's order of operations, with what makes it slow: every call of the
head embeds the time and the conditioning again and projects the state for both halves of a guided
batch; keys and values are kept in the weights' dtype (float32 master weights, under autocast) and
cast whole at every step; attention writes its scores; every update is a chain of small operations.
The published code compiles the head's step, without CUDA graphs; so does this where `compiled`.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.shapes.attention import rope_complex
from benchmarks.shapes.denoise import swiglu_torch
from bitdance.models.autoencoder.blocks import CodeStatistics, Decoder, ResBlock
from bitdance.models.class_conditional import BitDanceModel
from bitdance.models.diffusion_head import LEAST_REMAINING, HeadNetwork
from bitdance.sampling.ar_sampler import guidance_at
from bitdance_kernels import dense_mask

_LAST = 0.95
Cache = list[tuple[Tensor, Tensor]]


class Published:
    """Sampling and decoding as published.

    Args:
        model: whose weights are used.
        compiled: compile the step of the head, as published; but for the AR step without guidance,
            which would have to be compiled for itself.
    """

    def __init__(self, model: BitDanceModel, *, compiled: bool) -> None:
        if model.config.time_shift != 1:
            raise ValueError("Published: the class-conditional models have time_shift 1")
        self.model = model
        self.decoder = PublishedDecoder(model.vae.decoder)
        self.step: Callable[..., Tensor] = euler_maruyama
        if compiled:
            self.step = torch.compile(euler_maruyama, dynamic=False)

    @torch.no_grad()
    def sample(
        self, labels: Tensor, *, num_inference_steps: int, guidance_scale: float,
        noise: Sequence[Sequence[Tensor]] | None = None,
        on_step: Callable[[int], None] | None = None,
    ) -> Tensor:  # fmt: skip
        """Tokens [B, N, C] of +1 and -1, with the linear schedule of guidance.

        `noise` holds, for each AR step, the initial state and one draw a denoising step; drawn by
        default. `on_step` is called with the AR step's number after each.
        """
        model, config = self.model, self.model.config
        P, guided = config.parallel_num, guidance_scale > 1
        unconditional = torch.full_like(labels, config.num_classes)
        rows = torch.cat([labels, unconditional]) if guided else labels
        cache = self._cache(len(rows))
        x, start = model.prefix(rows), 0
        mask: Tensor | None = dense_mask(model.ranges(patches=1))
        patches = []
        for i in range(config.ar_steps):
            cfg = guidance_at(i, config.ar_steps, guidance_scale, "linear")
            hidden = self.trunk(model.emb_norm(x), cache, start, mask)
            start += x.shape[1]
            cond = hidden[:, -P:] + model.pos_for_diff.weight[i * P : (i + 1) * P]
            cond = cond if P > 1 else cond.squeeze(1)
            shared, drawn = guided and cfg > 1, None if noise is None else noise[i]
            bits = self._patch(cond, num_inference_steps, cfg if shared else None, drawn)
            tokens = bits.view(-1, P, config.token_bits)
            tokens = torch.cat([tokens, tokens]) if shared else tokens
            patches.append(tokens[: len(labels)])
            x, mask = model.embed(tokens), None
            if on_step is not None:
                on_step(i)
        return torch.cat(patches, dim=1)

    def trunk(self, x: Tensor, cache: Cache, start: int, mask: Tensor | None) -> Tensor:
        """New tokens through all blocks; the cache is written at `start`."""
        end = start + x.shape[1]

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            keys, values = cache[layer]
            keys[:, start:end], values[:, start:end] = k, v
            return _attention(q, keys[:, :end].to(v.dtype), values[:, :end].to(v.dtype), mask)

        model = self.model
        return model.norm(transformer(model.layers, x, model.freqs[start:end], attend))

    @torch.no_grad()
    def decode(self, tokens: Tensor) -> Tensor:
        """Images of tokens [B, N, C]."""
        return self.decoder(self.model.to_latents(tokens))

    def _cache(self, rows: int) -> Cache:
        layers, like = self.model.layers, self.model.norm.weight
        shape = (rows, len(self.model.freqs), layers.num_heads, layers.head_dim)
        return [(like.new_zeros(shape), like.new_zeros(shape)) for _ in range(len(layers))]

    def _patch(
        self, cond: Tensor, steps: int, cfg: float | None, noise: Sequence[Tensor] | None
    ) -> Tensor:
        net = self.model.head.net
        rows = len(cond) if cfg is None else len(cond) // 2
        shape = (rows, *cond.shape[1:-1], net.config.ch_target)
        x = torch.randn(shape, device=cond.device) if noise is None else noise[0]
        scale = None if cfg is None else torch.full((), cfg, device=cond.device)
        step = self.step if cfg is not None else euler_maruyama
        t = torch.zeros(len(cond), device=cond.device)
        dt = torch.full((), _LAST / steps, device=cond.device)
        for i in range(steps):
            eps = torch.randn_like(x) if noise is None else noise[i + 1]
            x = step(net, x, t, dt, cond, scale, eps)
            t = t + dt
        t = torch.full_like(t, _LAST)
        x = x + _velocity(net, x, t, cond, scale) * (1 - _LAST)
        return torch.where(x > 0, 1.0, -1.0)


class PublishedDecoder:
    """Decoding as published: maps and weights are contiguous, every step is an operation.

    Args:
        decoder: whose weights are copied; a convolutional one that takes no noise.
    """

    def __init__(self, decoder: Decoder) -> None:
        if decoder.config.architecture != "conv" or decoder.config.gan_decoder:
            raise ValueError("PublishedDecoder: decoder must be convolutional and without noise")
        self.decoder: Any = copy.deepcopy(decoder)
        for parameter in self.decoder.parameters():
            parameter.data = parameter.data.contiguous()

    @torch.no_grad()
    def __call__(self, codes: Tensor) -> Tensor:
        """Images of codes [B, C, h, w]."""
        decoder, statistics = self.decoder, CodeStatistics.of(codes)
        h = decoder.conv_in(codes.contiguous())
        for block in decoder.mid_block:
            h = _residual(block, h)
        for level in reversed(range(len(decoder.up))):
            if level + 1 < len(decoder.up):
                h = _depth_to_space(decoder.up[level + 1].upsample.conv1(h))
            adaptive = decoder.adaptive[level]
            h = F.group_norm(h, decoder.norm_out.num_groups, eps=decoder.norm_out.eps)
            scale, shift = adaptive.gamma(statistics.std), adaptive.beta(statistics.mean)
            h = scale[..., None, None] * h + shift[..., None, None]
            for block in decoder.up[level].block:
                h = _residual(block, h)
        return decoder.conv_out(_swish(decoder.norm_out(h)))


def _residual(block: ResBlock, x: Tensor) -> Tensor:
    h = block.conv1(_swish(block.norm1(x)))
    h = block.conv2(_swish(block.norm2(h)))
    return h + (x if block.nin_shortcut is None else block.nin_shortcut(x))


def _swish(x: Tensor) -> Tensor:
    return x * torch.sigmoid(x)


def _depth_to_space(x: Tensor) -> Tensor:
    blocks = x.unflatten(1, (2, 2, -1)).permute(0, 3, 4, 1, 5, 2)  # B C H dy W dx
    return blocks.flatten(4, 5).flatten(2, 3).contiguous()


def euler_maruyama(
    net: HeadNetwork, x: Tensor, t: Tensor, dt: Tensor, cond: Tensor, cfg: Tensor | None,
    eps: Tensor,
) -> Tensor:  # fmt: skip
    """One noisy step: velocity, guidance, score, drift and diffusion."""
    velocity = _velocity(net, x, t, cond, cfg)
    at = t[: len(x)].reshape(-1, *[1] * (x.dim() - 1))
    score = (at * velocity - x) / (1 - at)
    drift = velocity + (1 - at) * score
    return x + drift * dt + torch.sqrt(2 * (1 - at) * dt) * eps


def _velocity(net: HeadNetwork, x: Tensor, t: Tensor, cond: Tensor, cfg: Tensor | None) -> Tensor:
    both = x if cfg is None else torch.cat([x, x])
    remaining = (1 - t).clamp_min(LEAST_REMAINING).reshape(-1, *[1] * (x.dim() - 1))
    velocity = (head(net, both, t, cond).float() - both) / remaining
    if cfg is None:
        return velocity
    conditional, unconditional = velocity.chunk(2)
    return unconditional + cfg * (conditional - unconditional)


def transformer(layers: Any, x: Tensor, freqs: Tensor, attend: Callable[..., Tensor]) -> Tensor:
    """All blocks; `attend` takes the number of a block and its rotated q, k and v [B, T, H, D]."""
    for i, block in enumerate(layers):
        qkv = block.attention.wqkv(block.attention_norm(x))
        q, k, v = qkv.unflatten(-1, (3, layers.num_heads, -1)).unbind(2)
        out = attend(i, rope_complex(q, freqs), rope_complex(k, freqs), v)
        x = x + block.attention.wo(out.flatten(2))
        x = x + feed_forward(block.feed_forward, block.ffn_norm(x))
    return x


def head(net: HeadNetwork, x: Tensor, t: Tensor, cond: Tensor) -> Tensor:
    """The network, all of it, op by op."""
    time = net.time_embed(t)
    time = time.reshape(time.shape[0], *[1] * (x.dim() - 2), time.shape[1])
    y = F.silu(time + net.cond_embed(cond))
    h = net.input_proj(x.to(cond.dtype))
    modulations = [layer(y) for layer in net.ada_ln_blocks]
    blocks: Any = net.res_blocks
    for i, block in enumerate(blocks):
        modulation = modulations[i * len(modulations) // len(blocks)]
        if net.config.architecture == "mlp":
            scale, shift, gate = modulation.chunk(3, dim=-1)
            h = h + gate * feed_forward(block, block.norm(h) * (1 + scale) + shift)
            continue
        scale1, shift1, gate1, scale2, shift2, gate2 = modulation.chunk(6, dim=-1)
        qkv = block.attn.wqkv(block.norm1(h) * (1 + scale1) + shift1)
        q, k, v = qkv.unflatten(-1, (3, block.attn.num_heads, -1)).unbind(-3)
        h = h + gate1 * block.attn.wo(_attention(q, k, v, None).flatten(2))
        h = h + gate2 * feed_forward(block, block.norm2(h) * (1 + scale2) + shift2)
    scale, shift = net.final_layer.ada_ln_modulation(y).chunk(2, dim=-1)
    h = F.layer_norm(h, h.shape[-1:], eps=1e-6) * (1 + scale) + shift
    x = net.final_layer.linear(h)
    return 2 * torch.sigmoid(x) - 1 if net.config.architecture == "t2i" else x


def _attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """[B, T, H, D], with the scores in memory."""
    q, k, v = (tensor.transpose(1, 2) for tensor in (q, k, v))
    scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf)
    return (scores.softmax(-1).to(v.dtype) @ v).transpose(1, 2)


def feed_forward(network: Any, x: Tensor) -> Tensor:
    return network.w2(swiglu_torch(network.w1(x)))
