"""The language model of the text-to-image models: Qwen3 (arXiv 2505.09388).

Parameter names are those of Hugging Face's ``Qwen3ForCausalLM``, so its ``model.safetensors`` loads
unchanged. In training a whole sequence runs under an interval mask. In decoding a prompt runs
causally, once for all rows that share it; from then on every call feeds P
tokens a row, which see the row's cache and each other. Rows have lengths of their own: conditional
and unconditional ones, whose prompts differ in length, are one batch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.rnn import pad_sequence

from bitdance.io.settings import Bool, Count, Depth, Positive, Size, invalid, parse, settings
from bitdance.io.validation import brief
from bitdance.models import rms_gradient
from bitdance.models.kv_cache import KVCache
from bitdance.models.layers import compute_dtype
from bitdance_kernels import (
    Ranges,
    block_causal_attention,
    block_causal_ranges,
    block_decode_attention,
    rope,
    rope_append,
)

__all__ = [
    "Qwen3Config",
    "Qwen3ForCausalLM",
    "Qwen3Model",
    "rope_frequencies",
    "rope_table",
    "rotations",
]

Memory = tuple[torch.Tensor, torch.Tensor]


@settings
class Qwen3Config:
    """Shape of a Qwen3 model; field names and defaults are those of transformers' ``Qwen3Config``.

    Args:
        hidden_size: C.
        num_hidden_layers: blocks.
        num_attention_heads: H, query heads.
        num_key_value_heads: Hkv, which divides H.
        intermediate_size: width of the SwiGLU network.
        vocab_size: number of tokens.
        head_dim: D, even.
        max_position_embeddings: tokens that the model was trained to tell apart; rotations are
            computed for any number.
        rope_theta: base of the rotations.
        rms_norm_eps: epsilon of all norms.
        attention_bias: whether the attention's projections have biases.
        tie_word_embeddings: whether the output projection is the input's; then it has no weight.

    Raises:
        ValueError: a field has the wrong type or is out of range, or two do not fit each other.
    """

    hidden_size: Size = 4096
    num_hidden_layers: Depth = 32
    num_attention_heads: Size = 32
    num_key_value_heads: Size = 32
    intermediate_size: Size = 22016
    vocab_size: Size = 151936
    head_dim: Size = 128
    max_position_embeddings: Count = 32768
    rope_theta: Positive = 10000.0
    rms_norm_eps: Positive = 1e-6
    attention_bias: Bool = False
    tie_word_embeddings: Bool = False

    def __post_init__(self) -> None:
        heads = self.num_attention_heads
        if heads % self.num_key_value_heads != 0:
            raise invalid(self, "num_key_value_heads", f"a divisor of {heads} query heads")
        if self.head_dim % 2 != 0:
            raise invalid(self, "head_dim", "even")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Qwen3Config:
        """Read what a ``config.json`` says; keys that do not change the network are passed over.

        Raises:
            ValueError: a key has the wrong type or is out of range, or asks for what Qwen3 here has
                not: other activations, scaled rotations, windows that slide.
        """
        known = {field.name for field in dataclasses.fields(cls)}
        fields = {name: value for name, value in values.items() if name in known}
        # Newer files keep the rotation's settings together.
        rope = values.get("rope_parameters") or values.get("rope_scaling") or {}
        if not isinstance(rope, Mapping):
            raise ValueError(f"Qwen3Config: rope_parameters must be a section, got {brief(rope)}")
        if "rope_theta" in rope:
            fields["rope_theta"] = rope["rope_theta"]
        if fields.get("num_key_value_heads", 0) is None:  # as many as there are query heads
            default = cls.__dataclass_fields__["num_attention_heads"].default
            fields["num_key_value_heads"] = fields.get("num_attention_heads", default)
        kind = rope.get("rope_type", rope.get("type", "default"))
        for name, got, expected in (
            ("model_type", values.get("model_type", "qwen3"), ("qwen3",)),
            ("hidden_act", values.get("hidden_act", "silu"), ("silu", "swish")),
            ("the type of the rotations", kind, ("default",)),
        ):
            if got not in expected:
                raise ValueError(f"Qwen3Config: {name} must be {expected[0]!r}, got {brief(got)}")
        config = parse(cls, fields)
        _refuse_windows(values, config.num_hidden_layers)
        return config

    def to_dict(self) -> dict[str, Any]:
        """All fields as JSON can hold them; ``from_dict`` is the inverse."""
        return dataclasses.asdict(self)


def _refuse_windows(values: Mapping[str, Any], layers: int) -> None:
    """Check that all layers see all that is before, however a ``config.json`` says so."""
    kinds = values.get("layer_types")
    if kinds is not None:
        if kinds != ["full_attention"] * layers:
            raise ValueError(
                f"Qwen3Config: layer_types must be {layers} times 'full_attention', got "
                f"{brief(kinds)}"
            )
        return
    uses, window = values.get("use_sliding_window", False), values.get("sliding_window", 4096)
    first = values.get("max_window_layers", 28)  # the layers before it have no window
    if not isinstance(uses, bool):
        raise ValueError(
            f"Qwen3Config: use_sliding_window must be true or false, got {brief(uses)}"
        )
    if not uses or window is None:
        return
    whole = isinstance(first, int) and not isinstance(first, bool)
    if not whole or first < layers:
        raise ValueError(
            f"Qwen3Config: max_window_layers must be at least the {layers} layers where "
            f"use_sliding_window is true, got {brief(first)}"
        )


def rope_frequencies(head_dim: int, theta: float) -> torch.Tensor:
    """Angle of each pair of channels per position, theta^(-2 i / D): float32 [D / 2]."""
    return 1.0 / theta ** (
        torch.arange(0, head_dim, 2, dtype=torch.float32, device="cpu") / head_dim
    )


def rope_table(tokens: int, frequencies: torch.Tensor) -> torch.Tensor:
    """Rotations of the positions from 0 to `tokens` - 1.

    Args:
        tokens: T.
        frequencies: [D / 2], see ``rope_frequencies``.

    Returns:
        float32 [T, D / 2, 2]: cosine and sine, on the device of `frequencies`.
    """
    return rotations(
        torch.arange(tokens, dtype=torch.float32, device=frequencies.device), frequencies
    )


def rotations(positions: torch.Tensor, frequencies: torch.Tensor) -> torch.Tensor:
    """Rotations of given positions.

    Args:
        positions: [T], of any dtype.
        frequencies: as for ``rope_table``.

    Returns:
        float32 [T, D / 2, 2]: cosine and sine.
    """
    angles = positions.float()[:, None] * frequencies.float()
    return torch.stack([torch.cos(angles), torch.sin(angles)], dim=-1)


def _rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """RMSNorm in the dtype of `x`, which under autocast differs from that of the weight."""
    if rms_gradient.applies(x, weight):
        return rms_gradient.rms_norm(x, weight, eps)
    return F.rms_norm(x, x.shape[-1:], weight.to(x.dtype), eps)


class _Attention(nn.Module):
    def __init__(self, config: Qwen3Config, **factory: Any) -> None:
        super().__init__()
        self.config = config
        C, D, bias = config.hidden_size, config.head_dim, config.attention_bias
        self.q_proj = nn.Linear(C, config.num_attention_heads * D, bias=bias, **factory)
        self.k_proj = nn.Linear(C, config.num_key_value_heads * D, bias=bias, **factory)
        self.v_proj = nn.Linear(C, config.num_key_value_heads * D, bias=bias, **factory)
        self.o_proj = nn.Linear(config.num_attention_heads * D, C, bias=bias, **factory)
        self.q_norm = nn.RMSNorm(D, eps=config.rms_norm_eps, **factory)
        self.k_norm = nn.RMSNorm(D, eps=config.rms_norm_eps, **factory)

    def forward(self, x: torch.Tensor, freqs: torch.Tensor, ranges: Ranges) -> torch.Tensor:
        """A whole sequence [B, T, C] under an interval mask."""
        D, eps = self.config.head_dim, self.config.rms_norm_eps
        q, k, v = (
            projection(x).unflatten(-1, (-1, D))
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        q = rope(_rms_norm(q, self.q_norm.weight, eps), freqs, interleaved=False)
        k = rope(_rms_norm(k, self.k_norm.weight, eps), freqs, interleaved=False)
        return self.o_proj(block_causal_attention(q, k, v, ranges).flatten(2))

    def decode(
        self,
        x: torch.Tensor,
        freqs: torch.Tensor,
        memory: Memory,
        lengths: torch.Tensor,
        mask: Ranges | torch.Tensor,
    ) -> torch.Tensor:
        config, (keys, values) = self.config, memory
        qkv = torch.cat([self.q_proj(x), self.k_proj(x), self.v_proj(x)], dim=-1)
        q = rope_append(
            qkv.to(keys.dtype), keys, values, lengths, freqs,
            num_heads=config.num_attention_heads, num_kv_heads=config.num_key_value_heads,
            interleaved=False, q_norm=self.q_norm.weight, k_norm=self.k_norm.weight,
            eps=config.rms_norm_eps,
        )  # fmt: skip
        if isinstance(mask, Ranges):
            count = x.shape[1]
            out = block_causal_attention(q, keys[:, :count], values[:, :count], mask)
        else:
            out = block_decode_attention(q, keys, values, mask)
        return self.o_proj(out.flatten(2).to(qkv.dtype))


class _FeedForward(nn.Module):
    def __init__(self, config: Qwen3Config, **factory: Any) -> None:
        super().__init__()
        C, hidden = config.hidden_size, config.intermediate_size
        self.gate_proj = nn.Linear(C, hidden, bias=False, **factory)
        self.up_proj = nn.Linear(C, hidden, bias=False, **factory)
        self.down_proj = nn.Linear(hidden, C, bias=False, **factory)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        # Two projections, as published: to put their results side by side for ``swiglu`` would
        # cost the pass that it saves.
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Qwen3Block(nn.Module):
    """Pre-norm attention and SwiGLU network.

    Args:
        config: shape of the model.
        **factory: ``dtype`` and ``device`` as torch.nn's layers take them.
    """

    def __init__(self, config: Qwen3Config, **factory: Any) -> None:
        super().__init__()
        self.eps = config.rms_norm_eps
        self.self_attn = _Attention(config, **factory)
        self.mlp = _FeedForward(config, **factory)
        self.input_layernorm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps, **factory)
        self.post_attention_layernorm = nn.RMSNorm(
            config.hidden_size, eps=config.rms_norm_eps, **factory
        )

    def forward(self, x: torch.Tensor, freqs: torch.Tensor, ranges: Ranges) -> torch.Tensor:
        """A whole sequence [B, T, C] to [B, T, C], under an interval mask."""
        return self._apply_parts(x, lambda h: self.self_attn(h, freqs, ranges))

    def decode(
        self,
        x: torch.Tensor,
        freqs: torch.Tensor,
        memory: Memory,
        lengths: torch.Tensor,
        mask: Ranges | torch.Tensor,
    ) -> torch.Tensor:
        """New tokens [B, T, C] after `lengths` cached ones; `memory`, a layer's cache, is written.

        `mask` is Ranges for the first tokens of an empty cache, which see each other by them; else
        int32 [B], lengths with the new tokens, all of which every new token sees.
        """
        attention = self.self_attn
        return self._apply_parts(x, lambda h: attention.decode(h, freqs, memory, lengths, mask))

    def _apply_parts(
        self, x: torch.Tensor, attend: Callable[[torch.Tensor], torch.Tensor]
    ) -> torch.Tensor:
        x = x + attend(_rms_norm(x, self.input_layernorm.weight, self.eps))
        return x + self.mlp(_rms_norm(x, self.post_attention_layernorm.weight, self.eps))


class Qwen3Model(nn.Module):
    """Embeddings, blocks and last norm; parameters are below ``model.`` in a checkpoint.

    Args:
        config: shape of the model.
        **factory: ``dtype`` and ``device`` as torch.nn's layers take them.
    """

    def __init__(self, config: Qwen3Config, **factory: Any) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, **factory)
        self.layers = nn.ModuleList(
            Qwen3Block(config, **factory) for _ in range(config.num_hidden_layers)
        )
        self.norm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps, **factory)
        # As transformers draws them; where they are the output's too, others give large logits.
        nn.init.normal_(self.embed_tokens.weight, std=0.02)

    def allocate(self, rows: int, tokens: int) -> KVCache:
        """An empty cache for `tokens` tokens of `rows` rows, in the dtype of the products."""
        config = self.config
        return KVCache.allocate(
            config.num_hidden_layers, rows, tokens, config.num_key_value_heads, config.head_dim,
            dtype=compute_dtype(self.layers), device=self.embed_tokens.weight.device,
        )  # fmt: skip

    def forward(self, x: torch.Tensor, freqs: torch.Tensor, ranges: Ranges) -> torch.Tensor:
        """A whole sequence through all blocks, with gradients.

        Args:
            x: embedded, [B, T, C].
            freqs: [T, D / 2, 2], see ``rotations``.
            ranges: which tokens each token sees.

        Returns:
            Normalized outputs [B, T, C].
        """
        for block in self.layers:
            x = block(x, freqs, ranges)
        return _rms_norm(x, self.norm.weight, self.config.rms_norm_eps)

    @torch.no_grad()
    def prefill(
        self,
        prompts: Sequence[torch.Tensor],
        row_prompts: torch.Tensor,
        freqs: torch.Tensor,
        cache: KVCache,
    ) -> torch.Tensor:
        """Begin every row with a prompt, under a causal mask.

        Each prompt is computed once, however many rows have it.

        Args:
            prompts: embedded, [T_n, C] each, at least one token long.
            row_prompts: int64 [B], index of the prompt of each row.
            freqs: [Tmax, D / 2, 2], see ``rope_table``.
            cache: cache of B rows; its content is discarded.

        Returns:
            Normalized outputs [N, longest T, C]; those after the end of a prompt have no meaning.
        """
        longest = max(len(prompt) for prompt in prompts)
        x = pad_sequence(list(prompts), batch_first=True)
        cache.reset()
        first = cache.first(len(prompts))
        mask = block_causal_ranges(longest, 0, 1, device=x.device)
        x = self._blocks(x, freqs, first, mask)
        # Padding of a shorter prompt is written after its end, where it is never read and later
        # overwritten.
        for memory in cache.layers:
            for tensor in memory:
                tensor[:, :longest] = tensor[row_prompts, :longest]
        lengths = torch.tensor([len(prompt) for prompt in prompts], dtype=torch.int32, device="cpu")
        cache.lengths.copy_(lengths.to(x.device)[row_prompts])
        return _rms_norm(x, self.norm.weight, self.config.rms_norm_eps)

    @torch.no_grad()
    def decode(self, x: torch.Tensor, freqs: torch.Tensor, cache: KVCache) -> torch.Tensor:
        """New tokens of every row, which see the row's cache and each other.

        Args:
            x: embedded, [B, P, C].
            freqs: as for ``prefill``.
            cache: cache of B rows; the new tokens are added.

        Returns:
            Normalized outputs [B, P, C].
        """
        x = self._blocks(x, freqs, cache, cache.lengths + x.shape[1])
        cache.advance(x.shape[1])
        return _rms_norm(x, self.norm.weight, self.config.rms_norm_eps)

    def _blocks(
        self, x: torch.Tensor, freqs: torch.Tensor, cache: KVCache, mask: Ranges | torch.Tensor
    ) -> torch.Tensor:
        blocks = cast(Iterable[Qwen3Block], self.layers)
        for block, memory in zip(blocks, cache.layers, strict=True):
            x = block.decode(x, freqs, memory, cache.lengths, mask)
        return x


class Qwen3ForCausalLM(nn.Module):
    """A whole checkpoint: the trunk, and the projection to words, which only training uses.

    Args:
        config: shape of the model.
        **factory: ``dtype`` and ``device`` as torch.nn's layers take them.
    """

    def __init__(self, config: Qwen3Config, **factory: Any) -> None:
        super().__init__()
        self.config = config
        self.model = Qwen3Model(config, **factory)
        self.lm_head: nn.Linear | None = None
        if not config.tie_word_embeddings:
            self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False, **factory)

    @property
    def output_weight(self) -> torch.Tensor:
        """Weight of the projection to words, [vocabulary, C]; the input's where they are tied."""
        layer = self.model.embed_tokens if self.lm_head is None else self.lm_head
        return layer.weight
