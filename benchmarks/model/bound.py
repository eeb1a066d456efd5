"""The least time of a whole image: what its products and its traffic take at the card's limits.

A serial sum over phases of the larger of compute and traffic. In the head the weights of its blocks
stay in the L2 cache where they fit; at small batches a chain of dependent stages, each at least
`stage` long, is longer than either. Counted from the configuration; nothing is measured here but
the limits that are given.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch.utils.flop_counter import FlopCounterMode

from bitdance.models.class_conditional import BitDanceModel
from bitdance.models.config import ModelConfig

_BYTES = 2  # bfloat16
_L2_USABLE = 50e6
# Up to so many rows one grid can hold all of a head evaluation's rows, and its modulations of all
# evaluations are made at once.
_SMALL = 64


@dataclass(frozen=True)
class Limits:
    """Of a card: bytes and operations a second; seconds of a dependent stage."""

    copy: float
    matrix: float
    l2: float
    stage: float = 1e-6


@dataclass(frozen=True)
class Work:
    """Of one image at the published 100 denoising steps, with guidance (two rows)."""

    ar_steps: int
    evaluations: int
    rows: int
    block_weights: float
    modulation_weights: float
    stages: int
    trunk_weights: float
    positions: int
    cache_bytes: float
    decoder_flops: float


@functools.lru_cache
def work(config: ModelConfig, steps: int = 100) -> Work:
    """Count the work of an image from a model without memory."""
    with torch.device("meta"):
        model = BitDanceModel(config)
        tokens = torch.empty(1, config.tokens, config.token_bits)
        with FlopCounterMode(display=False) as counter:
            model.vae.decode(
                tokens.view(1, config.latent_dim, *[config.grid * config.patch_size] * 2)
            )
    net = model.head.net
    modulation = sum(p.numel() for p in net.ada_ln_blocks.parameters())
    modulation += sum(p.numel() for p in net.final_layer.ada_ln_modulation.parameters())
    once = sum(p.numel() for m in (net.time_embed, net.cond_embed) for p in m.parameters())
    everything = sum(p.numel() for p in net.parameters())
    P = config.parallel_num
    lengths = [config.prefix + P * i for i in range(config.ar_steps)]
    return Work(
        ar_steps=config.ar_steps,
        evaluations=config.ar_steps * (steps + 1),
        rows=2 * P,
        block_weights=everything - modulation - once,
        modulation_weights=modulation,
        stages=(2 if config.parallel_num == 1 else 4) * config.diff_layers,
        trunk_weights=sum(p.numel() for p in model.layers.parameters()),
        positions=lengths[-1],
        cache_bytes=2.0 * 2 * _BYTES * config.dim * config.n_layer * sum(lengths),
        decoder_flops=counter.get_total_flops(),
    )


def seconds(config: ModelConfig, batch: int, limits: Limits) -> dict[str, float]:
    """Seconds a batch of the trunk, the head and the decoder, and their sum."""
    image = work(config)
    rows = image.rows * batch
    blocks = image.block_weights * _BYTES
    read = limits.l2 if blocks < _L2_USABLE else limits.copy
    of_blocks = max(2 * rows * image.block_weights / limits.matrix, blocks / read)
    of_modulation = max(
        2 * rows * image.modulation_weights / limits.matrix,
        image.modulation_weights * _BYTES / limits.copy,
    )
    evaluation = of_blocks + of_modulation
    if rows <= _SMALL:
        evaluation = max(of_blocks, image.stages * limits.stage)
    trunk = max(
        image.ar_steps * image.trunk_weights * _BYTES / limits.copy,
        2 * 2 * batch * image.positions * image.trunk_weights / limits.matrix,
    )
    parts = {
        "trunk": trunk + batch * image.cache_bytes / limits.copy,
        "head": image.evaluations * evaluation,
        "decoder": batch * image.decoder_flops / limits.matrix,
    }
    return {**parts, "whole": sum(parts.values())}
