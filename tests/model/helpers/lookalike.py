"""Models built like the authors' ImageNet models: their attributes, arguments and draws.

Plain formulas, written for these tests, without anything of this library; parameters have the
names of the published checkpoints. ``build`` makes one from a golden case's description.
"""

import math
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import nn


def draw(kind, like=None, shape=None):
    """Every random number of the model; tests put recorded ones in its place."""
    return torch.randn_like(like) if shape is None else getattr(torch, kind)(shape)


def turned(x, freqs):
    """Pairs of channels rotated; freqs [T, D / 2, 2]."""
    a, b = x.unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = freqs[None, :, None].unbind(-1)
    return torch.stack([a * cos - b * sin, a * sin + b * cos], -1).flatten(-2)


class Attention(nn.Module):
    def __init__(self, dim, n_head, masked):
        super().__init__()
        self.n_head, self.head_dim, self.masked = n_head, dim // n_head, masked
        self.wqkv = nn.Linear(dim, 3 * dim, bias=False)
        self.wo = nn.Linear(dim, dim, bias=False)
        self.attn_dropout_p, self.resid_dropout = 0.0, nn.Dropout(0.0)
        if not masked:
            self.causal = True
        self.k_cache = self.v_cache = self.kv_cache_size = None

    def enable_kv_cache(self, bsz, max_seq_len):
        if self.kv_cache_size != (bsz, max_seq_len):
            shape = (bsz, self.n_head, max_seq_len, self.head_dim)
            self.k_cache, self.v_cache = self.wo.weight.new_zeros(2, *shape)
            self.kv_cache_size = (bsz, max_seq_len)

    def forward(self, x, *rest):
        mask, freqs_cis, start_pos, end_pos = [*([None] * (not self.masked)), *rest, None, None][:4]
        q, k, v = self.wqkv(x).unflatten(-1, (3, self.n_head, -1)).unbind(2)
        q, k, v = (t.transpose(1, 2) for t in (turned(q, freqs_cis), turned(k, freqs_cis), v))
        if self.k_cache is not None and start_pos is not None:
            self.k_cache[:, :, start_pos:end_pos] = k
            self.v_cache[:, :, start_pos:end_pos] = v
            k, v = self.k_cache[:, :, :end_pos], self.v_cache[:, :, :end_pos]
        scores = q @ k.mT / math.sqrt(self.head_dim)
        if mask is None and x.shape[1] > 1:
            mask = torch.full(scores.shape[-2:], -torch.inf).triu(1 + k.shape[2] - x.shape[1])
        if x.shape[1] > 1:
            scores = scores + mask
        out = (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)
        return self.resid_dropout(self.wo(out))


class FeedForward(nn.Module):
    def __init__(self, dim, inner, out, bias):
        super().__init__()
        self.w1, self.w2 = nn.Linear(dim, 2 * inner, bias=bias), nn.Linear(inner, out, bias=bias)
        self.ffn_dropout = nn.Dropout(0.0)

    def forward(self, x):
        gate, value = self.w1(x).chunk(2, -1)
        return self.ffn_dropout(self.w2(F.silu(gate) * value))


class Layer(nn.Module):
    def __init__(self, dim, n_head, masked):
        super().__init__()
        self.attention = Attention(dim, n_head, masked)
        self.feed_forward = FeedForward(dim, -(-int(8 * dim / 3) // 256) * 256, dim, False)
        self.attention_norm, self.ffn_norm = nn.RMSNorm(dim, 1e-6), nn.RMSNorm(dim, 1e-6)
        self.drop_path = nn.Identity()

    def forward(self, x, *rest):
        x = x + self.drop_path(self.attention(self.attention_norm(x), *rest))
        return x + self.drop_path(self.feed_forward(self.ffn_norm(x)))

    forward_onestep = forward


class PatchAttention(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.n_head = max(1, dim // 64)
        self.wqkv, self.wo = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

    def forward(self, x):
        q, k, v = self.wqkv(x).unflatten(-1, (3, self.n_head, -1)).permute(2, 0, 3, 1, 4)
        return self.wo(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class HeadBlock(nn.Module):
    def __init__(self, dim, attends):
        super().__init__()
        if attends:
            self.norm1, self.attn = nn.LayerNorm(dim, 1e-6), PatchAttention(dim)
            self.norm2 = nn.LayerNorm(dim, 1e-6)
        else:
            self.norm = nn.LayerNorm(dim, 1e-6)
        inner = int(1.5 * dim)
        self.w1, self.w2 = nn.Linear(dim, 2 * inner), nn.Linear(inner, dim)

    def forward(self, x, *modulation):
        if len(modulation) == 6:
            scale, shift, gate, *modulation = modulation
            x = x + self.attn(self.norm1(x) * (1 + scale) + shift) * gate
        scale, shift, gate = modulation
        norm = self.norm2 if hasattr(self, "norm2") else self.norm
        a, b = self.w1(norm(x) * (1 + scale) + shift).chunk(2, -1)
        return x + self.w2(F.silu(a) * b) * gate


class TimeEmbedding(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(256, dim), nn.SiLU(), nn.Linear(dim, dim))

    def forward(self, t):
        angles = 1000 * t[:, None] * torch.exp(-math.log(10000) * torch.arange(128) / 128)
        embedding = torch.cat([angles.cos(), angles.sin()], -1)
        return self.mlp(embedding.to(self.mlp[0].weight.dtype))


class FinalLayer(nn.Module):
    def __init__(self, dim, out):
        super().__init__()
        self.norm_final = nn.LayerNorm(dim, 1e-6, elementwise_affine=False)
        self.ada_ln_modulation, self.linear = nn.Linear(dim, 2 * dim), nn.Linear(dim, out)

    def forward(self, x, y):
        scale, shift = self.ada_ln_modulation(y).chunk(2, -1)
        return self.linear(self.norm_final(x) * (1 + scale) + shift)


class HeadNet(nn.Module):
    def __init__(self, target, cond, dim, depth, adaln, attends):
        super().__init__()
        self.grad_checkpointing = False
        self.time_embed = TimeEmbedding(dim)
        self.cond_embed, self.input_proj = nn.Linear(cond, dim), nn.Linear(target, dim)
        self.res_blocks = nn.ModuleList(HeadBlock(dim, attends) for _ in range(depth))
        self.chunks, self.every = 6 if attends else 3, max(1, depth // adaln)
        self.ada_ln_blocks = nn.ModuleList(nn.Linear(dim, self.chunks * dim) for _ in range(adaln))
        self.final_layer = FinalLayer(dim, target)

    def forward(self, x, t, c):
        t = self.time_embed(t)
        y = F.silu(t.view(len(t), *[1] * (x.dim() - 2), -1) + self.cond_embed(c))
        x = self.input_proj(x)
        for i, block in enumerate(self.res_blocks):
            x = block(x, *self.ada_ln_blocks[i // self.every](y).chunk(self.chunks, -1))
        return self.final_layer(x, y)


class Head(nn.Module):
    def __init__(self, net, target, time_shift, p_mean, p_std, schedule):
        super().__init__()
        self.net, self.ch_target, self.time_shift = net, target, time_shift
        self.time_schedule, self.P_mean, self.P_std = schedule, p_mean, p_std

    def shifted(self, t):
        return 1 / self.time_shift / (1 / self.time_shift + 1 / t - 1)

    def forward(self, x, cond):
        if self.time_schedule == "uniform":
            t = draw("rand", shape=(len(x),))
        else:
            t = torch.sigmoid(draw("randn", shape=(len(x),)) * self.P_std + self.P_mean)
        t = self.shifted(t)
        e, of_row = draw("randn_like", x), t.view(-1, *[1] * (x.dim() - 1))
        z, rest = (1 - of_row) * e + of_row * x, (1 - of_row).clamp_min(0.05)
        return (((x - z) / rest - (self.net(z, t, cond) - z) / rest) ** 2).mean()

    def sample(self, z, cfg, num_sampling_steps):
        times = 2 if cfg > 1 else 1
        x = draw("randn", shape=(len(z) // times, *z.shape[1:-1], self.ch_target))
        grid = self.shifted(torch.linspace(0, 0.95, num_sampling_steps + 1))
        t = torch.zeros(())

        def velocity(t):
            both = torch.cat([x] * times)
            v = (self.net.forward(both, t.expand(len(z)).clone(), z) - both) / max(1 - t, 0.05)
            if times == 1:
                return v
            conditional, unconditional = v.chunk(2)
            return unconditional + cfg * (conditional - unconditional)

        for dt in grid.diff():
            v = velocity(t)
            score = (t * v - x) / (1 - t)
            noise = draw("randn_like", x)
            x = x + (v + (1 - t) * score) * dt + torch.sqrt(2 * (1 - t) * dt) * noise
            t = t + dt
        x = x + velocity(torch.tensor(0.95)) * 0.05
        return torch.cat([x] * times)


class ConvBlock(nn.Module):
    def __init__(self, before, after):
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(32, before, 1e-6), nn.GroupNorm(32, after, 1e-6)
        self.conv1 = nn.Conv2d(before, after, 3, padding=1, bias=False)
        self.conv2 = nn.Conv2d(after, after, 3, padding=1, bias=False)
        if before != after:
            self.nin_shortcut = nn.Conv2d(before, after, 1, bias=False)

    def forward(self, x):
        h = self.conv2(F.silu(self.norm2(self.conv1(F.silu(self.norm1(x))))))
        return h + (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x)


class AdaNorm(nn.Module):
    def __init__(self, bits, channels):
        super().__init__()
        self.gn = nn.GroupNorm(32, channels, 1e-6, affine=False)
        self.gamma, self.beta = nn.Linear(bits, channels), nn.Linear(bits, channels)

    def forward(self, x, code):
        scale = self.gamma((code.flatten(2).var(-1) + 1e-6).sqrt())
        return scale[..., None, None] * self.gn(x) + self.beta(code.mean((2, 3)))[..., None, None]


class Upsampler(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 4 * channels, 3, padding=1)

    def forward(self, x):
        b, c, h, w = x.shape
        x = self.conv1(x).view(b, 2, 2, c, h, w)
        return x.permute(0, 3, 4, 1, 5, 2).reshape(b, c, 2 * h, 2 * w)


def level(before, after, count, **more):
    """A nameless level with ``block``, and ``downsample`` or ``upsample``."""
    module = nn.Module()
    widths = [before, *[after] * count]
    module.block = nn.ModuleList(ConvBlock(*pair) for pair in pairwise(widths))
    for name, layer in more.items():
        setattr(module, name, layer)
    return module


class Encoder(nn.Module):
    def __init__(self, ch, ch_mult, num_res_blocks, bits):
        super().__init__()
        widths = [ch, *(ch * m for m in ch_mult)]
        self.conv_in = nn.Conv2d(3, ch, 3, padding=1, bias=False)
        self.down = nn.ModuleList()
        for i, (a, b) in enumerate(pairwise(widths)):
            last = i + 2 == len(widths)
            more = {} if last else {"downsample": nn.Conv2d(b, b, 3, stride=2, padding=1)}
            self.down.append(level(a, b, num_res_blocks, **more))
        top = widths[-1]
        self.mid_block = nn.ModuleList(ConvBlock(top, top) for _ in range(num_res_blocks))
        self.norm_out, self.conv_out = nn.GroupNorm(32, top, 1e-6), nn.Conv2d(top, bits, 1)

    def forward(self, x):
        x = self.conv_in(x)
        for down in self.down:
            for block in down.block:
                x = block(x)
            x = down.downsample(x) if hasattr(down, "downsample") else x
        for block in self.mid_block:
            x = block(x)
        return self.conv_out(F.silu(self.norm_out(x)))


class Decoder(nn.Module):
    def __init__(self, ch, ch_mult, num_res_blocks, bits, noisy):
        super().__init__()
        self.noisy, widths = noisy, [ch * m for m in ch_mult]
        top = widths[-1]
        self.conv_in = nn.Conv2d(bits * (1 + noisy), top, 3, padding=1)
        self.mid_block = nn.ModuleList(ConvBlock(top, top) for _ in range(num_res_blocks))
        before = [*widths[1:], top]
        self.adaptive = nn.ModuleList(AdaNorm(bits, width) for width in before)
        self.up = nn.ModuleList(
            level(a, b, num_res_blocks, **({"upsample": Upsampler(b)} if i else {}))
            for i, (a, b) in enumerate(zip(before, widths, strict=True))
        )
        self.norm_out = nn.GroupNorm(32, ch, 1e-6)
        self.conv_out = nn.Conv2d(ch, 3, 3, padding=1)

    def forward(self, z):
        x = self.conv_in(torch.cat([z, draw("randn_like", z)], 1) if self.noisy else z)
        for block in self.mid_block:
            x = block(x)
        for i in reversed(range(len(self.up))):
            x = self.adaptive[i](x, z)
            for block in self.up[i].block:
                x = block(x)
            x = self.up[i].upsample(x) if i else x
        return self.conv_out(F.silu(self.norm_out(x)))


class Autoencoder(nn.Module):
    def __init__(self, bits, ch, ch_mult, num_res_blocks, noisy=False):
        super().__init__()
        self.encoder = Encoder(ch, ch_mult, num_res_blocks, bits)
        self.decoder = Decoder(ch, ch_mult, num_res_blocks, bits, noisy)

    def encode(self, images):
        return torch.where(self.encoder(images) > 0, 1.0, -1.0)

    def decode(self, codes):
        return self.decoder(codes)


class Model(nn.Module):
    """One token a step, or with ``parallel_num`` several: the latter has queries and a mask."""

    def __init__(
        self, vae, *, dim, n_layer, n_head, diff_layers, diff_dim, diff_adanln_layers, latent_dim,
        down_size, patch_size, resolution, diff_batch_mul, cls_token_num, num_classes,
        time_shift=1.0, time_schedule="logit_normal", P_std=1.0, P_mean=0.0, parallel_num=None,
        parallel_mode="standard", **_,
    ):  # fmt: skip
        super().__init__()
        self.vae, self.latent_dim, self.patch_size = vae, latent_dim, patch_size
        self.num_classes, self.cls_token_num = num_classes, cls_token_num
        self.diff_batch_mul, self.grid = diff_batch_mul, resolution // (down_size * patch_size)
        self.h = self.w = self.grid
        self.P, count, bits = parallel_num or 1, self.grid**2, latent_dim * patch_size**2
        self.total_tokens = count + cls_token_num
        self.cls_embedding = nn.Embedding(num_classes + 1, dim * cls_token_num)
        self.proj_in = FeedForward(bits, int(1.5 * dim), dim, True)
        self.emb_norm, self.norm = nn.RMSNorm(dim, 1e-6), nn.RMSNorm(dim, 1e-6)
        masked = parallel_num is not None
        self.layers = nn.ModuleList(Layer(dim, n_head, masked) for _ in range(n_layer))
        self.pos_for_diff = nn.Embedding(count, dim)
        net = HeadNet(bits, dim, diff_dim, diff_layers, diff_adanln_layers, masked)
        self.head = Head(net, bits, time_shift, P_mean, P_std, time_schedule)

        index = torch.arange(count)
        if masked and parallel_mode == "patch":
            side = math.isqrt(parallel_num)
            index = index.view(self.grid // side, side, self.grid // side, side)
            index = index.transpose(1, 2).flatten()
        self.order = index
        fed = index[: count - self.P]
        half = dim // n_head // 2
        frequencies = 10000 ** (-torch.arange(0, half, 2) / half)
        at = torch.stack([fed % self.grid, fed // self.grid], 1) + 1.5
        angles = (at[:, :, None] * frequencies).flatten(1)
        angles = torch.cat([torch.zeros(cls_token_num + self.P - 1, half), angles])
        freqs = torch.stack([angles.cos(), angles.sin()], -1)
        self.register_buffer("freqs_cis", freqs, persistent=False)
        if masked:
            self.parallel_num = parallel_num
            self.query_token = nn.Parameter(torch.zeros(1, parallel_num - 1, dim))
            i = torch.arange(count + cls_token_num - 1)
            block = (i - cls_token_num + 1).div(parallel_num, rounding_mode="floor")
            together = (block[None] == block[:, None]) & (block >= 0)[:, None]
            seen = (i[None] <= i[:, None]) | together
            mask = torch.where(seen, 0.0, -torch.inf)[None, None]
            self.register_buffer("attn_mask", mask, persistent=False)

    def to_tokens(self, codes):
        p = self.patch_size
        cells = codes.unflatten(2, (-1, p)).unflatten(4, (-1, p))
        return cells.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)[:, self.order]

    def to_latents(self, tokens):
        p, raster = self.patch_size, torch.empty_like(tokens)
        raster[:, self.order] = tokens
        cells = raster.view(-1, self.grid, self.grid, self.latent_dim, p, p)
        return cells.permute(0, 3, 1, 4, 2, 5).flatten(4).flatten(2, 3).contiguous()

    def prefix(self, labels):
        rows = self.cls_embedding(labels).view(len(labels), self.cls_token_num, -1)
        if self.P == 1:
            return rows
        return torch.cat([rows, self.query_token.expand(len(labels), -1, -1)], 1)

    def masks(self, start=None, end=None):
        """What stands for the mask in a call: nothing in a model of one token a step."""
        return [self.attn_mask[:, :, start:end, :end]] if hasattr(self, "attn_mask") else []

    def forward(self, images, class_id, cached=False):
        tokens = self.to_tokens(images if cached else self.vae.encode(images).detach())
        fed = self.proj_in(tokens[:, : -self.P])
        x = self.emb_norm(torch.cat([self.prefix(class_id), fed], 1))
        masks = [self.attn_mask] if hasattr(self, "attn_mask") else []
        for layer in self.layers:
            x = layer(x, *masks, self.freqs_cis)
        x = self.norm(x[:, -tokens.shape[1] :]) + self.pos_for_diff.weight
        patch = (self.P,) if hasattr(self, "parallel_num") else ()
        target, cond = (
            t.reshape(-1, *patch, t.shape[-1]).repeat(self.diff_batch_mul, *[1] * (len(patch) + 1))
            for t in (tokens, x)
        )
        return self.head(target, cond)

    def enable_kv_cache(self, bsz):
        for layer in self.layers:
            layer.attention.enable_kv_cache(bsz, self.total_tokens)

    def forward_model(self, x, *rest):
        *mask, start_pos, end_pos = rest
        x = self.emb_norm(x)
        for layer in self.layers:
            freqs = self.freqs_cis[start_pos:end_pos]
            x = layer.forward_onestep(x, *mask, freqs, start_pos, end_pos)
        return self.norm(x)

    def head_sample(self, x, diff_pos, sample_steps, cfg_scale, cfg_schedule="linear"):
        x = x + self.pos_for_diff.weight[diff_pos * self.P : (diff_pos + 1) * self.P]
        x = x if hasattr(self, "parallel_num") else x.squeeze(1)
        cfg = 1.0
        if cfg_scale > 1:
            share = diff_pos / (self.grid**2 // self.P) if cfg_schedule == "linear" else 1
            cfg = 1 + (cfg_scale - 1) * share
        prediction = self.head.sample(x, num_sampling_steps=sample_steps, cfg=cfg)
        return torch.sign(prediction.view(len(x), self.P, -1))

    @torch.no_grad()
    def sample(self, cond, sample_steps, cfg_scale=1.0, cfg_schedule="linear", chunk_size=0):
        self.eval()
        count = len(cond)
        if cfg_scale > 1:
            cond = torch.cat([cond, torch.full_like(cond, self.num_classes)])
        self.enable_kv_cache(len(cond))
        x, at, made = self.prefix(cond), 0, []
        for i in range(self.grid**2 // self.P):
            end = at + x.shape[1]
            x = self.forward_model(x, *self.masks(at, end), at, end)
            tokens = self.head_sample(x[:, -self.P :], i, sample_steps, cfg_scale, cfg_schedule)
            made.append(tokens)
            x, at = self.proj_in(tokens), end
        codes = self.to_latents(torch.cat(made, 1)[:count])
        chunks = codes.split(chunk_size) if chunk_size else [codes]
        return torch.cat([self.vae.decode(chunk) for chunk in chunks])
