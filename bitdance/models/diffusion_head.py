"""The binary diffusion head: predicts the clean bits of a patch from a noisy state.

Bits are corners of a hypercube, {-1, +1}^d. Rectified flow joins noise and data, z_t = (1 - t) e +
t x, and the network f predicts x itself; the velocity follows as v = (f(z_t, t, c) - z_t) /
max(1 - t, 0.05). One network serves all forms of the published heads; parameter names are the
official ones.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from bitdance.models.config import HeadConfig
from bitdance_kernels import (
    adaln_norm,
    gated_residual,
    gated_residual_adaln,
    patch_attention,
    swiglu,
)

__all__ = ["DiffusionHead", "shift_time", "timestep_embedding"]

LEAST_REMAINING = 0.05
"""The smallest 1 - t that a velocity is divided by, in training and in sampling."""

EPS = 1e-6
_FREQUENCIES = 256


def timestep_embedding(t: torch.Tensor, dim: int) -> torch.Tensor:
    """Sinusoids of 1000 t: [R] to [R, dim], cosines first; an odd last column is 0."""
    half = dim // 2
    index = torch.arange(half, dtype=torch.float32, device=t.device)
    angles = 1000 * t.float()[:, None] * torch.exp(-math.log(10000) * index / half)
    embedding = torch.cat([torch.cos(angles), torch.sin(angles)], dim=-1)
    return F.pad(embedding, (0, dim % 2))


def shift_time(t: torch.Tensor, shift: float) -> torch.Tensor:
    """Shift times: t' = (1/s) / (1/s + 1/t - 1); s of more than 1 moves t toward noise."""
    return (1 / shift) / (1 / shift + (1 / t - 1))


class _TimeEmbedding(nn.Module):
    def __init__(self, width: int, **factory: Any) -> None:
        super().__init__()
        first = nn.Linear(_FREQUENCIES, width, **factory)
        second = nn.Linear(width, width, **factory)
        self.mlp = nn.Sequential(first, nn.SiLU(), second)
        nn.init.normal_(first.weight, std=0.02)
        nn.init.normal_(second.weight, std=0.02)

    def forward(self, t: torch.Tensor) -> torch.Tensor:
        dtype = next(self.parameters()).dtype
        return self.mlp(timestep_embedding(t, _FREQUENCIES).to(dtype))


class PatchAttention(nn.Module):
    """Full attention among the tokens of a patch: no mask and no position."""

    def __init__(self, dim: int, num_heads: int, **factory: Any) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.wqkv = nn.Linear(dim, 3 * dim, **factory)
        self.wo = nn.Linear(dim, dim, **factory)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[R, P, C] to [R, P, C]."""
        return self.wo(patch_attention(self.wqkv(x), self.num_heads))


class TokenBlock(nn.Module):
    """Block of the head for one token: a modulated SwiGLU network."""

    def __init__(self, width: int, **factory: Any) -> None:
        super().__init__()
        hidden = int(1.5 * width)
        self.norm = nn.LayerNorm(width, eps=EPS, **factory)
        self.w1 = nn.Linear(width, 2 * hidden, **factory)
        self.w2 = nn.Linear(hidden, width, **factory)

    def forward(self, x: torch.Tensor, modulation: Sequence[torch.Tensor]) -> torch.Tensor:
        scale, shift, gate = modulation
        h = adaln_norm(x, scale, shift, self.norm.weight, self.norm.bias, eps=EPS)
        return gated_residual(x, self.w2(swiglu(self.w1(h))), gate)


class PatchBlock(nn.Module):
    """Block of the head for a patch: modulated attention, then a modulated network."""

    def __init__(self, config: HeadConfig, **factory: Any) -> None:
        super().__init__()
        width = config.ch_latent
        hidden = int(1.5 * width)
        self.norm1 = nn.LayerNorm(width, eps=EPS, **factory)
        self.attn = PatchAttention(width, config.num_heads, **factory)
        self.norm2 = nn.LayerNorm(width, eps=EPS, **factory)
        if config.use_swiglu:
            self.w1 = nn.Linear(width, 2 * hidden, **factory)
            self.w2 = nn.Linear(hidden, width, **factory)
        else:
            self.mlp = nn.Sequential(
                nn.Linear(width, hidden, **factory), nn.SiLU(), nn.Linear(hidden, width, **factory)
            )
        self.use_swiglu = config.use_swiglu

    def forward(self, x: torch.Tensor, modulation: Sequence[torch.Tensor]) -> torch.Tensor:
        scale1, shift1, gate1, scale2, shift2, gate2 = modulation
        h = adaln_norm(x, scale1, shift1, self.norm1.weight, self.norm1.bias, eps=EPS)
        x, h = gated_residual_adaln(
            x, self.attn(h), gate1, scale2, shift2, self.norm2.weight, self.norm2.bias, eps=EPS
        )
        h = self.w2(swiglu(self.w1(h))) if self.use_swiglu else self.mlp(h)
        return gated_residual(x, h, gate2)


def _zeros(linear: nn.Linear) -> nn.Linear:
    """Zero modulation and zero output: a new head predicts 0 whatever it is given."""
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    return linear


class _FinalLayer(nn.Module):
    def __init__(self, width: int, out: int, **factory: Any) -> None:
        super().__init__()
        self.ada_ln_modulation = _zeros(nn.Linear(width, 2 * width, **factory))
        self.linear = _zeros(nn.Linear(width, out, **factory))

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        scale, shift = self.ada_ln_modulation(y).chunk(2, dim=-1)
        return self.linear(adaln_norm(x, scale, shift, eps=EPS))


class HeadNetwork(nn.Module):
    """The network f. A call is split where sampling can keep a part for later steps.

    ``embed_time`` depends on the schedule alone, ``cond_embed`` on the AR step alone, and
    ``input_proj`` is the same for both halves of a guided batch.
    """

    def __init__(self, config: HeadConfig, **factory: Any) -> None:
        super().__init__()
        self.config = config
        width = config.ch_latent
        self.parts = chunks = 3 if config.architecture == "mlp" else 6  # of a modulation
        self.time_embed = _TimeEmbedding(width, **factory)
        self.cond_embed = nn.Linear(config.ch_cond, width, **factory)
        self.input_proj = nn.Linear(config.ch_target, width, **factory)
        block = partial(TokenBlock, width) if chunks == 3 else partial(PatchBlock, config)
        self.res_blocks = nn.ModuleList(block(**factory) for _ in range(config.depth_latent))
        self.ada_ln_blocks = nn.ModuleList(
            _zeros(nn.Linear(width, chunks * width, **factory)) for _ in range(config.depth_adanln)
        )
        self.final_layer = _FinalLayer(width, config.ch_target, **factory)

    def denoise(self, h: torch.Tensor, time: torch.Tensor, cond: torch.Tensor) -> torch.Tensor:
        """Clean bits from the projected state.

        Args:
            h: [R, ..., C], ``input_proj`` of the state.
            time: embedded times, to be broadcast against `cond`.
            cond: [R, ..., C], ``cond_embed`` of the conditioning.

        Returns:
            [R, ..., ch_target].
        """
        y = F.silu(time + cond)
        # Blocks share the parts, not the whole, whose gradient would be put together for each.
        modulations = [ada_ln(y).chunk(self.parts, dim=-1) for ada_ln in self.ada_ln_blocks]
        for i, block in enumerate(self.res_blocks):
            h = block(h, modulations[self.config.adaln_of(i)])
        x = self.final_layer(h, y)
        return 2 * torch.sigmoid(x) - 1 if self.config.architecture == "t2i" else x

    def forward(self, x: torch.Tensor, t: torch.Tensor, cond: torch.Tensor) -> torch.Tensor:
        """Clean bits f(z_t, t, c) for x [R, ..., ch_target], t [R], cond [R, ..., ch_cond]."""
        time = self.time_embed(t)
        time = time.reshape(time.shape[0], *[1] * (x.dim() - 2), time.shape[1])
        return self.denoise(self.input_proj(x), time, self.cond_embed(cond))


class DiffusionHead(nn.Module):
    """The head and its training objective.

    Args:
        config: shape of the network.
        **factory: ``dtype`` and ``device`` as torch.nn's layers take them.
    """

    def __init__(self, config: HeadConfig, **factory: Any) -> None:
        super().__init__()
        self.config = config
        self.net = HeadNetwork(config, **factory)

    def forward(self, x: torch.Tensor, t: torch.Tensor, cond: torch.Tensor) -> torch.Tensor:
        """Predict the clean bits.

        Args:
            x: noisy state [R, P, ch_target], or [R, ch_target] with one token.
            t: [R], in [0, 1] from noise to data.
            cond: [R, P, ch_cond] or [R, ch_cond].

        Returns:
            Of the shape of `x`, in the dtype of the parameters, or of autocast where it is on.

        Raises:
            ValueError: shapes do not fit.
        """
        self._check(x, cond)
        if t.shape != x.shape[:1]:
            raise ValueError(f"DiffusionHead: t must be [R] = [{len(x)}], got {list(t.shape)}")
        return self.net(x, t, cond)

    def _check(self, x: torch.Tensor, cond: torch.Tensor) -> None:
        dims = 2 if self.config.architecture == "mlp" else 3
        letters = "[R, {}]" if dims == 2 else "[R, P, {}]"
        for name, tensor, width in (
            ("x", x, self.config.ch_target),
            ("cond", cond, self.config.ch_cond),
        ):
            if tensor.dim() != dims or tensor.shape[-1] != width:
                raise ValueError(
                    f"DiffusionHead: {name} must be {letters.format(width)}, got "
                    f"{list(tensor.shape)}"
                )
        if x.shape[:-1] != cond.shape[:-1]:
            raise ValueError(
                f"DiffusionHead: x and cond must have the same rows, got {list(x.shape)} and "
                f"{list(cond.shape)}"
            )

    def loss(
        self,
        x: torch.Tensor,
        cond: torch.Tensor,
        *,
        time_draw: torch.Tensor | None = None,
        noise: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Mean squared error of the velocity, in float32.

        With z_t = (1 - t) e + t x and c = max(1 - t, 0.05) it is the mean of
        ((x - z_t) / c - (f(z_t, t, cond) - z_t) / c)^2; one t for all tokens of a row.

        Args:
            x: clean bits, shaped as for ``forward``.
            cond: as for ``forward``.
            time_draw: [R], what times are made of: normal for "logit_normal", uniform for
                "uniform". Drawn here by default, before `noise`.
            noise: e, of the shape of `x`.

        Returns:
            A scalar; with "t2i" [R, P], the mean over channels alone.

        Raises:
            ValueError: shapes do not fit.
        """
        self._check(x, cond)
        config = self.config
        normal = config.time_schedule == "logit_normal"
        if time_draw is None:
            time_draw = torch.empty(x.shape[0], dtype=torch.float32, device=x.device)
            time_draw = time_draw.normal_() if normal else time_draw.uniform_()
        noise = torch.randn_like(x, dtype=torch.float32) if noise is None else noise
        t = torch.sigmoid(config.P_std * time_draw + config.P_mean) if normal else time_draw
        t = shift_time(t, config.time_shift)
        of_row = t.reshape(-1, *[1] * (x.dim() - 1))
        x = x.float()
        z = (1 - of_row) * noise + of_row * x
        remaining = (1 - of_row).clamp_min(LEAST_REMAINING)
        predicted = self.net(z.to(cond.dtype), t, cond).float()
        error = ((predicted - z) / remaining - (x - z) / remaining).square()
        return error.mean(-1) if config.architecture == "t2i" else error.mean()
