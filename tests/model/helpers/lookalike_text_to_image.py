"""A pipeline built like the authors' text-to-image one: its attributes, arguments and draws.

Plain formulas, written for these tests, without anything of this library. The language model has
the names, settings and growing caches of Hugging Face's Qwen3.
"""

import math
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from tests.model.helpers import lookalike


class RMSNorm(nn.Module):
    def __init__(self, dim, eps):
        super().__init__()
        self.weight, self.variance_epsilon = nn.Parameter(torch.ones(dim)), eps

    def forward(self, x):
        wide = x if x.dtype == torch.float64 else x.float()
        scale = (wide.square().mean(-1, keepdim=True) + self.variance_epsilon).rsqrt()
        return self.weight * (wide * scale).to(x.dtype)


class Rotary(nn.Module):
    def __init__(self, head_dim, theta):
        super().__init__()
        self.rope_type, self.attention_scaling = "default", 1.0
        frequencies = 1 / theta ** (torch.arange(0, head_dim, 2) / head_dim)
        self.register_buffer("inv_freq", frequencies, persistent=False)

    def forward(self, x, start):
        angles = torch.arange(start, start + x.shape[1])[:, None] * self.inv_freq
        return angles.cos().to(x.dtype), angles.sin().to(x.dtype)


class Attention(nn.Module):
    def __init__(self, config):
        super().__init__()
        dim, heads, kv = (
            config[f"{name}"]
            for name in ("hidden_size", "num_attention_heads", "num_key_value_heads")
        )
        self.head_dim, bias = config["head_dim"], config["attention_bias"]
        self.scaling, self.attention_dropout = self.head_dim**-0.5, 0.0
        self.sliding_window = None
        self.q_proj = nn.Linear(dim, heads * self.head_dim, bias=bias)
        self.k_proj, self.v_proj = (nn.Linear(dim, kv * self.head_dim, bias=bias) for _ in "kv")
        self.o_proj = nn.Linear(heads * self.head_dim, dim, bias=bias)
        self.q_norm = RMSNorm(self.head_dim, config["rms_norm_eps"])
        self.k_norm = RMSNorm(self.head_dim, config["rms_norm_eps"])

    def turned(self, x, cos, sin):
        a, b = x.chunk(2, -1)
        cos, sin = cos[:, None], sin[:, None]
        return torch.cat([a * cos - b * sin, b * cos + a * sin], -1).transpose(1, 2)

    def forward(self, x, turns, mask, past):
        """Output, and keys and values so far, [B, Hkv, T, D]."""
        q, k, v = (
            projection(x).unflatten(-1, (-1, self.head_dim))
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        q, k = self.turned(self.q_norm(q), *turns), self.turned(self.k_norm(k), *turns)
        new = (k, v.transpose(1, 2))
        k, v = new = [torch.cat(pair, 2) for pair in zip(past, new, strict=True)] if past else new
        k, v = (t.repeat_interleave(q.shape[1] // t.shape[1], 1) for t in (k, v))
        scores = (q @ k.mT * self.scaling).masked_fill(~mask, -torch.inf)
        out = (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)
        return self.o_proj(out), tuple(new)


class MLP(nn.Module):
    def __init__(self, dim, hidden):
        super().__init__()
        self.gate_proj, self.up_proj = (nn.Linear(dim, hidden, bias=False) for _ in "gu")
        self.down_proj, self.act_fn = nn.Linear(hidden, dim, bias=False), nn.SiLU()

    def forward(self, x):
        return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    def __init__(self, config):
        super().__init__()
        dim, eps = config["hidden_size"], config["rms_norm_eps"]
        self.self_attn, self.mlp = Attention(config), MLP(dim, config["intermediate_size"])
        self.input_layernorm, self.post_attention_layernorm = RMSNorm(dim, eps), RMSNorm(dim, eps)

    def forward(self, x, *rest):
        h, past = self.self_attn(self.input_layernorm(x), *rest)
        x = x + h
        return x + self.mlp(self.post_attention_layernorm(x)), past


class Trunk(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.embed_tokens = nn.Embedding(config["vocab_size"], config["hidden_size"], padding_idx=0)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config["num_hidden_layers"]))
        self.norm = RMSNorm(config["hidden_size"], config["rms_norm_eps"])
        self.rotary_emb = Rotary(config["head_dim"], config["rope_theta"])

    def forward(self, inputs_embeds, past_key_values=None, use_cache=True, attention_mask=None):
        x, past = inputs_embeds, past_key_values or [()] * len(self.layers)
        start = past[0][0].shape[2] if past[0] else 0
        mask, count = attention_mask, x.shape[1]
        if mask is None:
            mask = torch.ones(count, start + count, dtype=torch.bool).tril(start)
        turns, now = self.rotary_emb(x, start), []
        for layer, before in zip(self.layers, past, strict=True):
            x, after = layer(x, turns, mask, before)
            now.append(after)
        return SimpleNamespace(last_hidden_state=self.norm(x), past_key_values=now)


class CausalLM(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.model = Trunk(config)
        self.lm_head = nn.Linear(config["hidden_size"], config["vocab_size"], bias=False)


class HeadBlock(lookalike.HeadBlock):
    """With heads of 128 channels, and perhaps without a gate in the network."""

    def __init__(self, dim, swiglu):
        super().__init__(dim, True)
        self.attn.n_head = max(1, dim // 128)
        if not swiglu:
            del self.w1, self.w2
            inner = int(1.5 * dim)
            self.mlp = nn.Sequential(nn.Linear(dim, inner), nn.SiLU(), nn.Linear(inner, dim))

    def forward(self, x, scale1, shift1, gate1, scale2, shift2, gate2):
        if not hasattr(self, "mlp"):
            return super().forward(x, scale1, shift1, gate1, scale2, shift2, gate2)
        x = x + self.attn(self.norm1(x) * (1 + scale1) + shift1) * gate1
        return x + self.mlp(self.norm2(x) * (1 + scale2) + shift2) * gate2


class HeadNet(lookalike.HeadNet):
    def __init__(self, target, cond, dim, depth, adaln, swiglu):
        super().__init__(target, cond, dim, depth, adaln, True)
        self.res_blocks = nn.ModuleList(HeadBlock(dim, swiglu) for _ in range(depth))

    def forward(self, x, t, c):
        return 2 * super().forward(x, t, c).sigmoid() - 1


class Projector(nn.Module):
    def __init__(self, bits, dim):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(bits, dim), nn.Linear(dim, dim)

    def forward(self, x):
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


class Words:
    """A tokenizer of known texts; other texts are spelt."""

    unk_token_id = None

    def __init__(self, special, texts):
        self.special, self.texts = special, texts

    def encode(self, text):
        return self.texts[text] if text in self.texts else [ord(letter) % 16 for letter in text]

    def convert_tokens_to_ids(self, name):
        return self.special.get(name, self.unk_token_id)


class Pipeline:
    """No module: a plain object, which holds some."""

    device = "cpu"

    def __init__(self, tokenizer, llm, head, ae, parallel_num, factor):
        dim = llm["hidden_size"]
        self.tokenizer, self.hidden_size, self.vae_patch_size = tokenizer, dim, factor
        self.llm_model = CausalLM(llm).eval()
        net = HeadNet(
            head["ch_target"], head["ch_cond"], head["ch_latent"], head["depth_latent"],
            head["depth_adanln"], head.get("use_swiglu", False),
        )  # fmt: skip
        shift = head.get("time_shift", 1.0)
        self.vision_head = lookalike.Head(
            net, head["ch_target"], shift, 0.0, 1.0, "logit_normal"
        ).eval()
        self.ae, self.embed_vision_mlp = ae.eval(), Projector(head["ch_target"], dim)
        self.parallel_num, self.ps = parallel_num, math.isqrt(parallel_num)
        quarter = dim // 4
        angles = torch.arange(4096 // factor)[:, None] / 10000 ** (torch.arange(quarter) / quarter)
        self.pos_embed_1d = torch.cat([angles.sin(), angles.cos()], 1)

    def get_2d_embed(self, h, w, ps=1):
        of_row, of_column = self.pos_embed_1d[:h, None], self.pos_embed_1d[None, :w]
        both = torch.cat([of_column.expand(h, -1, -1), of_row.expand(-1, w, -1)], -1)
        squares = both.unflatten(1, (-1, ps)).unflatten(0, (-1, ps)).transpose(1, 2)
        return squares.flatten(0, 3)

    @torch.no_grad()
    def generate(
        self, prompt, height=1024, width=1024, num_sampling_steps=50, guidance_scale=7.5,
        num_images=1, seed=1234,
    ):  # fmt: skip
        torch.manual_seed(seed)
        images = self.gen_image(
            cond_prompt=f"user {prompt}", uncond_prompt="none", guidance_scale=guidance_scale,
            num_sampling_steps=num_sampling_steps, num_images=num_images,
            image_size=[height, width], show_progress=True,
            max_length=(height // self.vae_patch_size) * (width // self.vae_patch_size),
        )  # fmt: skip
        grey = (127.5 * images + 128).clamp(0, 255).permute(0, 2, 3, 1).to(torch.uint8)
        return [Image.fromarray(array) for array in grey.numpy()]

    @torch.no_grad()
    def gen_image(
        self, cond_prompt, uncond_prompt=None, guidance_scale=1.0, num_sampling_steps=50,
        max_length=64, num_images=1, image_size=(256, 256), show_progress=False,
    ):  # fmt: skip
        model, words, P = self.llm_model.model, self.tokenizer, self.parallel_num
        h, w = (side // self.vae_patch_size for side in image_size)
        names = ["<|vision_start|>", f"<|res_{h}|>", f"<|res_{w}|>"]
        names += [f"<|query_{i}|>" for i in range(1, P)]
        special = [words.convert_tokens_to_ids(name) for name in names]
        halves = [cond_prompt, uncond_prompt] if guidance_scale > 1 else [cond_prompt]
        caches, outputs = [], []
        for text in halves:
            ids = torch.tensor([*words.encode(text), *special])
            x = model.embed_tokens(ids).repeat(num_images, 1, 1)
            first = model(inputs_embeds=x[:, :-P], use_cache=True)
            caches.append(first.past_key_values)
            outputs.append(self.seen_by_all(caches, len(caches) - 1, x[:, -P:]))
        made, position = [], self.get_2d_embed(h, w, ps=self.ps)
        for at in range(0, max_length // P * P, P):
            here = position[None, at : at + P]
            prediction = self.vision_head.sample(
                torch.cat(outputs) + here, num_sampling_steps=num_sampling_steps,
                cfg=guidance_scale,
            )  # fmt: skip
            tokens = torch.sign(prediction)
            made.append(tokens[:num_images])
            fed = (self.embed_vision_mlp(tokens) + here).split(num_images)
            outputs = [self.seen_by_all(caches, i, x) for i, x in enumerate(fed)]
        return self.decode_image(torch.cat(made, 1), [h, w], ps=self.ps)

    def seen_by_all(self, caches, half, x):
        mask = torch.ones(
            len(x), 1, x.shape[1], x.shape[1] + caches[half][0][0].shape[2], dtype=torch.bool
        )
        out = self.llm_model.model(
            inputs_embeds=x, past_key_values=caches[half], use_cache=True, attention_mask=mask
        )
        caches[half] = out.past_key_values
        return out.last_hidden_state

    def decode_image(self, image_latents, image_size=None, ps=1):
        h, w = image_size
        squares = image_latents.unflatten(1, (h // ps, w // ps, ps, ps))
        return self.ae.decode(squares.permute(0, 5, 1, 3, 2, 4).flatten(4).flatten(2, 3))
