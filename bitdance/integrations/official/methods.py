"""What ``patch_official`` puts in place of the methods of the authors' objects.

Each class holds one of their modules, "theirs", and where it helps a module of this package,
"ours", whose layers are those of theirs; so weights exist once, and follow ``to`` and
``load_state_dict``. The methods have the names and arguments of those they replace.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import nn

from bitdance.models.autoencoder.blocks import Decoder
from bitdance.models.diffusion_head import HeadNetwork
from bitdance.models.layers import compute_dtype
from bitdance.sampling.flow_sampler import Schedule, denoise, make_head
from bitdance.sampling.graphs import parameters
from bitdance.sampling.head_runner import Head
from bitdance.sampling.lru_cache import LRUCache
from bitdance.sampling.workspace import Pool
from bitdance_kernels import (
    Ranges,
    block_causal_attention,
    block_decode_attention,
    rope,
    rope_append,
)

__all__ = [
    "AttentionMethods",
    "CausalAttentionMethods",
    "DecoderMethods",
    "FeedForwardMethods",
    "HeadMethods",
    "MaskedAttentionMethods",
    "MaskedTrunkMethods",
    "Masks",
    "TrunkMethods",
    "interval_ends",
]


def interval_ends(mask: torch.Tensor) -> torch.Tensor | None:
    """An additive mask [1, 1, T, Tk] as the number of keys, from the first on, each query sees.

    Returns:
        int32 [T] on the CPU, or None if the mask is of another kind.
    """
    if mask.dim() != 4 or mask.shape[:2] != (1, 1) or not mask.is_floating_point():
        return None
    host = mask[0, 0].detach().cpu()
    ends = (host == 0).sum(-1)
    seen = torch.arange(host.shape[1], dtype=torch.int64, device="cpu") < ends[:, None]
    expected = torch.where(seen, 0.0, -torch.inf).to(host.dtype)
    ordered = bool((ends[1:] >= ends[:-1]).all())
    return ends.int() if ordered and torch.equal(host, expected) else None


@functools.lru_cache(maxsize=512)
def _filled(value: int, rows: int, device: torch.device) -> torch.Tensor:
    """int32 [rows], to be read only; kept, since an image asks for few of them many times."""
    with torch.inference_mode(False):
        return torch.full((rows,), value, dtype=torch.int32, device=device)


class Masks:
    """The model's mask as ranges, on whatever device it is used.

    Args:
        model: theirs, with ``attn_mask``, whose values were checked.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        self._ranges: dict[torch.device, Ranges] = {}

    def whole(self, device: torch.device) -> Ranges:
        """Ranges of ``attn_mask``."""
        if device not in self._ranges:
            P, causal = self.model.parallel_num, self.model.cls_token_num - 1
            length = self.model.attn_mask.shape[-1]
            index = torch.arange(length, dtype=torch.int32, device="cpu")
            ends = torch.where(index < causal, index + 1, index + P - (index - causal) % P)
            with torch.inference_mode(False):
                ends = ends.int().to(device)
                self._ranges[device] = Ranges(torch.zeros_like(ends), ends, validate=False)
        return self._ranges[device]

    def part(self, start: int, end: int, device: torch.device) -> Ranges | None:
        """Ranges of the rows `start` to `end` over the keys up to `end`; None if all see all."""
        P, causal = self.model.parallel_num, self.model.cls_token_num - 1
        if start >= causal and (start - causal) // P == (end - 1 - causal) // P:
            return None  # one block, or a part of one, and what is before it
        whole = self.whole(device)
        return Ranges(whole.start[start:end], whole.end[start:end].clamp(max=end), validate=False)

    def of(self, mask: torch.Tensor | Ranges | None, x: torch.Tensor) -> Ranges | None:
        """What a caller passed as a mask for `x`, as ranges; None if all see all.

        Raises:
            ValueError: a mask that hides other keys than the last ones of a query.
        """
        if mask is None or isinstance(mask, Ranges):
            return mask
        if mask is self.model.attn_mask:
            return self.whole(x.device)
        ends = interval_ends(mask)
        if ends is None or len(ends) != x.shape[1]:
            raise ValueError(
                f"attention: mask must be [1, 1, {x.shape[1]}, keys], 0 for the keys that a query "
                f"sees, from the first one on, and then -inf, got another {list(mask.shape)}"
            )
        ends = ends.to(x.device)
        return Ranges(torch.zeros_like(ends), ends, validate=False)


class AttentionMethods:
    """Attention of a transformer block, with or without a cache.

    The cache is [B, Tmax, H, D] in memory; ``k_cache`` and ``v_cache`` show it as [B, H, Tmax, D].

    Args:
        theirs: with ``wqkv``, ``wo``, ``n_head``, ``head_dim``, ``resid_dropout``.
    """

    def __init__(self, theirs: Any) -> None:
        self.theirs = theirs

    def enable_kv_cache(self, bsz: int, max_seq_len: int) -> None:
        """Have a cache of that size, a new one if that of before does not fit."""
        theirs = self.theirs
        weight = theirs.wo.weight
        kind = weight.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype
        old = theirs.k_cache
        if theirs.kv_cache_size == (bsz, max_seq_len) and (
            (old.dtype, old.device) == (dtype, weight.device)
        ):
            return
        shape = (bsz, max_seq_len, theirs.n_head, theirs.head_dim)
        with torch.inference_mode(False):
            keys, values = (torch.zeros(shape, dtype=dtype, device=weight.device) for _ in "kv")
        theirs.k_cache, theirs.v_cache = keys.transpose(1, 2), values.transpose(1, 2)
        theirs.kv_cache_size = (bsz, max_seq_len)

    def _whole(self, x: torch.Tensor, ranges: Ranges, freqs: torch.Tensor | None) -> torch.Tensor:
        """A sequence of which each token sees what `ranges` say; differentiable."""
        theirs = self.theirs
        q, k, v = theirs.wqkv(x).unflatten(-1, (3, theirs.n_head, theirs.head_dim)).unbind(2)
        if freqs is not None:
            q, k = rope(q, freqs), rope(k, freqs)
        return self._out(block_causal_attention(q, k, v, ranges))

    def _cached(
        self,
        x: torch.Tensor,
        ranges: Ranges | None,
        freqs: torch.Tensor | None,
        start: int,
        end: int,
    ) -> torch.Tensor:
        """New tokens at `start` to `end`, which see the cache and, by `ranges`, each other."""
        theirs = self.theirs
        keys, values = theirs.k_cache.transpose(1, 2), theirs.v_cache.transpose(1, 2)
        if freqs is None:
            freqs = x.new_ones(x.shape[1], theirs.head_dim // 2, 2)
            freqs[..., 1] = 0
        qkv = theirs.wqkv(x)
        first = _filled(0, len(x), x.device)
        # A view from `start` on, so that the rows of `freqs` are those of the new tokens.
        q = rope_append(
            qkv.to(keys.dtype), keys[:, start:end], values[:, start:end], first, freqs,
            num_heads=theirs.n_head,
        )  # fmt: skip
        if ranges is None:
            out = block_decode_attention(q, keys, values, _filled(end, len(x), x.device))
        else:
            out = block_causal_attention(q, keys[:, :end], values[:, :end], ranges)
        return self._out(out.to(qkv.dtype))

    def _out(self, heads: torch.Tensor) -> torch.Tensor:
        return self.theirs.resid_dropout(self.theirs.wo(heads.flatten(2)))


class MaskedAttentionMethods(AttentionMethods):
    """Of a model of several tokens a step.

    Args:
        theirs: as for ``AttentionMethods``.
        masks: of the model.
    """

    def __init__(self, theirs: Any, masks: Masks) -> None:
        super().__init__(theirs)
        self.masks = masks

    def forward(
        self,
        x: torch.Tensor,
        mask: torch.Tensor | Ranges | None,
        freqs_cis: torch.Tensor | None = None,
        start_pos: int | None = None,
        end_pos: int | None = None,
    ) -> torch.Tensor:
        """[B, T, C] to [B, T, C]; with positions and a cache, at these positions of it."""
        if self.theirs.k_cache is None or start_pos is None or end_pos is None:
            ranges = self.masks.of(mask, x) or _everything(x)
            return self._whole(x, ranges, freqs_cis)
        # A single query sees the whole cache whatever the mask says, as in the original.
        ranges_or_none = self.masks.of(mask, x) if x.shape[1] > 1 else None
        return self._cached(x, ranges_or_none, freqs_cis, start_pos, end_pos)


class CausalAttentionMethods(AttentionMethods):
    """Of a model of one token a step."""

    def forward(
        self,
        x: torch.Tensor,
        freqs_cis: torch.Tensor | None = None,
        start_pos: int | None = None,
        end_pos: int | None = None,
    ) -> torch.Tensor:
        """[B, T, C] to [B, T, C]; with positions and a cache, at these positions of it."""
        count = x.shape[1]
        if self.theirs.k_cache is None or start_pos is None or end_pos is None:
            return self._whole(x, _causal(count, count, x.device), freqs_cis)
        ranges = _causal(count, end_pos, x.device) if count > 1 else None
        return self._cached(x, ranges, freqs_cis, start_pos, end_pos)


def _causal(queries: int, keys: int, device: torch.device) -> Ranges:
    ends = torch.arange(keys - queries + 1, keys + 1, dtype=torch.int32, device=device)
    return Ranges(torch.zeros_like(ends), ends, validate=False)


def _everything(x: torch.Tensor) -> Ranges:
    ends = _filled(x.shape[1], x.shape[1], x.device)
    return Ranges(torch.zeros_like(ends), ends, validate=False)


class FeedForwardMethods:
    """A SwiGLU network.

    Args:
        theirs: with ``ffn_dropout``.
        ours: with its layers.
    """

    def __init__(self, theirs: Any, ours: nn.Module) -> None:
        self.theirs, self.ours = theirs, ours

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., in] to [..., out]."""
        return self.theirs.ffn_dropout(self.ours(x))


class TrunkMethods:
    """The transformer's step with a cache, of a model of one token a step.

    Args:
        theirs: the model.
    """

    def __init__(self, theirs: Any) -> None:
        self.theirs = theirs

    def forward_model(self, x: torch.Tensor, start_pos: int, end_pos: int) -> torch.Tensor:
        """Embedded tokens [B, T, C] at the given positions to normalized outputs."""
        return self._step(x, start_pos, end_pos)

    def _step(self, x: torch.Tensor, start: int, end: int, *visible: Ranges | None) -> torch.Tensor:
        theirs = self.theirs
        x = theirs.emb_norm(x)
        for layer in theirs.layers:
            x = layer.forward_onestep(x, *visible, theirs.freqs_cis[start:end], start, end)
        return theirs.norm(x)


class MaskedTrunkMethods(TrunkMethods):
    """Of a model of several tokens a step.

    Args:
        theirs: the model.
        masks: its masks.
    """

    def __init__(self, theirs: Any, masks: Masks) -> None:
        super().__init__(theirs)
        self.masks = masks

    # Another signature, as there.
    def forward_model(  # type: ignore[override]
        self, x: torch.Tensor, mask: torch.Tensor | None, start_pos: int, end_pos: int
    ) -> torch.Tensor:
        """Embedded tokens [B, T, C] at the given positions to normalized outputs."""
        of_model = self.theirs.attn_mask.untyped_storage().data_ptr()
        if mask is None or mask.untyped_storage().data_ptr() == of_model:
            # ``sample`` passes the rows and columns of these positions; they need not be read.
            visible = self.masks.part(start_pos, end_pos, x.device)
        else:
            visible = self.masks.of(mask, x)
        return self._step(x, start_pos, end_pos, visible)


class HeadMethods:
    """The head's network and its sampling loop.

    Args:
        theirs: the head, with ``net`` and ``time_shift``.
        ours: with the layers of its network.
    """

    def __init__(self, theirs: Any, ours: HeadNetwork) -> None:
        self.theirs, self.ours = theirs, ours
        # Of the last kinds of batches.
        self.heads: Pool[LRUCache[tuple[Head, Schedule]]] = Pool(functools.partial(LRUCache, 2))

    def forward(self, x: torch.Tensor, t: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
        """Of ``net``: clean bits of the noisy `x` at times `t` under conditions `c`."""
        net = self.theirs.net
        if net.training and getattr(net, "grad_checkpointing", False):
            return type(net).forward(net, x, t, c)  # keeps fewer activations than ours
        return self.ours(x, t, c)

    @torch.no_grad()
    def sample(self, z: torch.Tensor, cfg: float, num_sampling_steps: int) -> torch.Tensor:
        """Sample the bits of a patch, before their sign is taken.

        Args:
            z: conditions [R, (P,) C]; with guidance conditional rows first, then unconditional.
            cfg: guidance; at most 1 is none.
            num_sampling_steps: noisy steps.

        Returns:
            float32 [R, (P,) bits], with guidance twice the same half.
        """
        guided = cfg > 1
        rows = len(z) // 2 if guided else len(z)
        shape = (rows, *z.shape[1:-1], self.theirs.ch_target)
        # The order of draws of the original, so that a seed gives the same image.
        noise = [draw(shape, z.device) for _ in range(num_sampling_steps + 1)]
        with self.heads.lease() as heads:
            head, schedule = self._ready(heads, z, num_sampling_steps)
            head.load()
            x = denoise(head, schedule, z, cfg=cfg if guided else None, noise=noise)
        return torch.cat([x, x]) if guided else x

    def _ready(
        self, heads: LRUCache[tuple[Head, Schedule]], z: torch.Tensor, steps: int
    ) -> tuple[Head, Schedule]:
        """What serves conditions like `z`: that of the last call, in an image of many."""
        patch = z.shape[1] if z.dim() > 2 else None
        shift = self.theirs.time_shift

        def make() -> tuple[Head, Schedule]:
            schedule = Schedule.of(self.ours, steps, shift)
            return make_head(self.ours, schedule, len(z), patch), schedule

        weights = tuple(p.data_ptr() for p in parameters(self.ours))
        return heads.get(weights, (len(z), patch, steps, shift, compute_dtype(self.ours)), make)


class DecoderMethods:
    """The tokenizer's decoder.

    Args:
        theirs: the decoder.
        ours: with its layers.
    """

    def __init__(self, theirs: Any, ours: Decoder) -> None:
        self.theirs, self.ours = theirs, ours

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        """Codes [B, C, h, w] to images; noise of a decoder that takes it is drawn here."""
        return self.ours(z, torch.randn_like(z) if self.ours.config.gan_decoder else None)


def draw(shape: tuple[int, ...], device: torch.device) -> torch.Tensor:
    """Normals of the sampler from torch's generator of the device, float32."""
    return torch.randn(shape, dtype=torch.float32, device=device)
